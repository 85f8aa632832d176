//! The run directory: the launcher's socket, and what is known of each sandbox.
//!
//! ```text
//!   <run dir>/launcher.sock             0660 root:<ashd's group>   requests
//!   <run dir>/sandboxes/                0750 root:<ashd's group>   locked by the one launcher that uses it
//!     <id>/sandbox.json                 0600 root                  the record, written by rename
//!     <id>/init.sock                    0600 ashd                  the sandbox's init listens
//! ```
//!
//! ashd may own the run directory, and may be hostile. So `sandboxes/` belongs to root and is held open: everything
//! below goes through that descriptor, and exchanging the name for another directory changes nothing.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, renameat_with};
use uuid::Uuid;

use super::protocol::SandboxInfo;
use crate::kernel::seqpacket;

const RECORD: &str = "sandbox.json";
const INIT_SOCKET: &str = "init.sock";
/// A record is about 1 KiB.
const MAX_RECORD: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("{act} {path}: {source}")]
pub struct RunDirError {
    pub act: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

fn fault(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_owned();
    move |source| RunDirError { act, path, source }
}

/// The open run directory.
#[derive(Debug)]
pub struct RunDir {
    /// Held for the lock; a name below `/proc/self/fd` leads through it.
    _sandboxes: OwnedFd,
    base: PathBuf,
    client_uid: u32,
}

impl RunDir {
    /// Makes what is missing and takes the lock.
    ///
    /// # Errors
    /// Names the path: a directory that belongs to somebody else, or another launcher that uses it already.
    pub fn open(path: &Path, client_uid: u32, client_gid: u32) -> Result<Self, RunDirError> {
        if !path.exists() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(fault("create", path))?;
            chown(path, Some(client_uid), Some(client_gid)).map_err(fault("change the owner of", path))?;
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path, mode).map_err(fault("change the mode of", path))?;
        }
        let at = path.join("sandboxes");
        match std::fs::DirBuilder::new().mode(0o750).create(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fault("create", &at)(error)),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::open(&at, flags, Mode::empty());
        let sandboxes = open.map_err(|error| fault("open", &at)(error.into()))?;
        let base = PathBuf::from(format!("/proc/self/fd/{}", sandboxes.as_raw_fd()));
        let meta = std::fs::metadata(&base).map_err(fault("look at", &at))?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            let why = format!("belongs to uid {}, not to the launcher: remove it", meta.uid());
            return Err(fault("use", &at)(io::Error::other(why)));
        }
        let locked = flock(&sandboxes, FlockOperation::NonBlockingLockExclusive);
        locked
            .map_err(|_| fault("use", &at)(io::Error::other("another launcher is running with this run directory")))?;
        rustix::fs::fchown(&sandboxes, None, Some(rustix::fs::Gid::from_raw(client_gid)))
            .and_then(|()| rustix::fs::fchmod(&sandboxes, Mode::from_raw_mode(0o750)))
            .map_err(|error| fault("prepare", &at)(error.into()))?;
        Ok(Self { _sandboxes: sandboxes, base, client_uid })
    }

    fn of(&self, id: Uuid) -> PathBuf {
        self.base.join(id.to_string())
    }

    /// Makes a sandbox's directory, with a record that says who uses its uids. `AlreadyExists` when there is one.
    ///
    /// # Errors
    /// Names the path; nothing is left.
    pub fn claim(&self, info: &SandboxInfo, client_gid: u32) -> Result<(), RunDirError> {
        let dir = self.of(info.id);
        std::fs::DirBuilder::new().mode(0o750).create(&dir).map_err(fault("create", &dir))?;
        let made = chown(&dir, None, Some(client_gid))
            .and_then(|()| std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o750)))
            .map_err(fault("prepare", &dir))
            .and_then(|()| self.record(info));
        if made.is_err() {
            self.forget(info.id).ok();
        }
        made
    }

    /// Writes the record, whole or not at all.
    ///
    /// An old one is exchanged and then removed: a rename in its place makes ext4 send the new one to the disk at once
    /// (auto_da_alloc in ext4(5)), which is for files that must outlast a power cut. No sandbox does.
    ///
    /// # Errors
    /// Names the path.
    pub fn record(&self, info: &SandboxInfo) -> Result<(), RunDirError> {
        let path = self.of(info.id).join(RECORD);
        let new = self.of(info.id).join("sandbox.json.new");
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(info)?)?;
            match renameat_with(CWD, &new, CWD, &path, RenameFlags::EXCHANGE) {
                Ok(()) => std::fs::remove_file(&new),
                // There is no old one, or the file system cannot exchange.
                Err(_) => std::fs::rename(&new, &path),
            }
        };
        write().map_err(fault("write", &path))
    }

    /// A sandbox's record. `None` when it is missing or cannot be understood: the directory of a creation that was
    /// interrupted, or of another version.
    pub fn recorded(&self, id: Uuid) -> Option<SandboxInfo> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.of(id).join(RECORD))
            .ok()?;
        let mut text = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut text).ok()?;
        serde_json::from_slice::<SandboxInfo>(&text).ok().filter(|info| info.id == id)
    }

    /// The ids of all sandboxes' directories.
    ///
    /// # Errors
    /// Names the path.
    pub fn ids(&self) -> Result<Vec<Uuid>, RunDirError> {
        let entries = std::fs::read_dir(&self.base).map_err(fault("list", &self.base))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Binds the socket the sandbox's init will listen on; only ashd may connect to it.
    ///
    /// # Errors
    /// Names the path.
    pub fn init_socket(&self, id: Uuid) -> Result<OwnedFd, RunDirError> {
        let path = self.of(id).join(INIT_SOCKET);
        let socket = seqpacket::listen(&path).map_err(fault("bind", &path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| chown(&path, Some(self.client_uid), None))
            .map_err(fault("hand over", &path))?;
        Ok(socket)
    }

    /// Removes a sandbox's directory; one that is gone is no error.
    ///
    /// # Errors
    /// Names the path.
    pub fn forget(&self, id: Uuid) -> Result<(), RunDirError> {
        let dir = self.of(id);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault("remove", &dir)(error)),
            _ => Ok(()),
        }
    }
}

/// Binds `<run dir>/launcher.sock` in place of a socket that an earlier launcher left.
///
/// # Errors
/// Names the path.
pub fn bind_launcher(run_dir: &Path, client_gid: u32) -> Result<OwnedFd, RunDirError> {
    let path = run_dir.join("launcher.sock");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(run_dir, flags, Mode::empty()).map_err(|error| fault("open", run_dir)(error.into()))?;
    // Short, whatever the length of the directory's own name: a socket's address holds 107 bytes.
    let base = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let fresh = base.join(format!(".launcher.sock.{}", std::process::id()));
    std::fs::remove_file(&fresh).ok();
    let bind = || {
        let socket = seqpacket::listen(&fresh)?;
        chown(&fresh, None, Some(client_gid))?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&fresh, base.join("launcher.sock"))?;
        Ok(socket)
    };
    bind().map_err(fault("bind", &path))
}

/// The undo of [`bind_launcher`].
pub fn unbind_launcher(run_dir: &Path) {
    std::fs::remove_file(run_dir.join("launcher.sock")).ok();
}
