//! The run directory: the launcher's socket, and what is known of each sandbox.
//!
//! ```text
//!   <run dir>/                           0755 root
//!     launcher.sock                     0660 root:<ashd's group>   requests
//!     sandboxes/                        0710 root:<ashd's group>   locked by the one launcher that uses it
//!       <id>/                           0710 root:<ashd's group>
//!         sandbox.json                  0600 root                  the record, written by rename
//!         init.sock                     0600 ashd                  the sandbox's init listens
//! ```
//!
//! The run directory is root's, and so is all that it is reached through: root works in it by path, and whoever could write it
//! could put a link in the place of what root is about to hand over. ashd reaches what is its own by group and mode: it passes
//! through the directories and cannot open them, since whoever opens a directory can lock it, and keep the next launcher out.
//! `sandboxes/` is held open: everything below goes through that descriptor.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use uuid::Uuid;

use ash_kernel::beneath::Refused;
use ash_kernel::seqpacket::{self, Access};
use ash_kernel::tree::{Owner, Tree};
use ash_kernel::trusted;
use ash_protocol::launcher::SandboxInfo;

const SANDBOXES: &str = "sandboxes";
const RECORD: &str = "sandbox.json";
const NEW_RECORD: &str = "sandbox.json.new";
const INIT_SOCKET: &str = "init.sock";
const LAUNCHER_SOCKET: &str = "launcher.sock";
/// Of `sandboxes/` and what is in it: ashd's group passes through, and cannot open it.
const PASS: u32 = 0o710;
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
    sandboxes: Tree,
    /// The same directory, locked as long as this is open.
    _lock: OwnedFd,
    client_uid: u32,
}

impl RunDir {
    /// Makes what is missing and takes the lock.
    ///
    /// # Errors
    /// Names the path: a directory that ashd could exchange or write, one that belongs to another user, or another launcher that uses
    /// it already.
    pub fn open(path: &Path, client_uid: u32, client_gid: u32) -> Result<Self, RunDirError> {
        directory(path)?;
        let at = path.join(SANDBOXES);
        let run = Tree::open_trusted(path).map_err(|why| fault("use", path)(why.into()))?;
        match run.make_dir(SANDBOXES, 0o700, None) {
            Ok(_) => {}
            Err(Refused::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(refused) => return Err(fault("create", &at)(refused.into())),
        }
        let sandboxes = run.directory(SANDBOXES).map_err(|refused| fault("open", &at)(refused.into()))?;
        let owner = sandboxes.owner().uid;
        if owner != rustix::process::geteuid().as_raw() {
            let why = format!("belongs to uid {owner}, not to the launcher: remove it");
            return Err(fault("use", &at)(io::Error::other(why)));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&sandboxes, ".", flags, Mode::empty());
        let lock = lock.map_err(|error| fault("open", &at)(error.into()))?;
        let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        locked
            .map_err(|_| fault("use", &at)(io::Error::other("another launcher is running with this run directory")))?;
        rustix::fs::fchown(&lock, None, Some(rustix::fs::Gid::from_raw(client_gid)))
            .and_then(|()| rustix::fs::fchmod(&lock, Mode::from_raw_mode(PASS)))
            .map_err(|error| fault("prepare", &at)(error.into()))?;
        Ok(Self { sandboxes, _lock: lock, client_uid })
    }

    /// For messages.
    fn of(&self, id: Uuid) -> PathBuf {
        self.sandboxes.path().join(id.to_string())
    }

    fn open_dir(&self, id: Uuid) -> Result<Tree, Refused> {
        self.sandboxes.directory(id.to_string())
    }

    /// Makes a sandbox's directory, with a record that says who uses its uids. `AlreadyExists` when there is one.
    ///
    /// # Errors
    /// Names the path; nothing is left.
    pub fn claim(&self, info: &SandboxInfo, client_gid: u32) -> Result<(), RunDirError> {
        let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: client_gid };
        let dir = match self.sandboxes.make_dir(info.id.to_string(), PASS, Some(owner)) {
            Ok(dir) => dir,
            Err(refused) => return Err(fault("create", &self.of(info.id))(refused.into())),
        };
        let made = self.record_in(&dir, info);
        if made.is_err() {
            self.forget(info.id).ok();
        }
        made
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// Names the path.
    pub fn record(&self, info: &SandboxInfo) -> Result<(), RunDirError> {
        let dir = self.open_dir(info.id).map_err(|refused| fault("open", &self.of(info.id))(refused.into()))?;
        self.record_in(&dir, info)
    }

    /// An old one is exchanged and then removed: a rename in its place makes ext4 send the new one to the disk at once
    /// (auto_da_alloc in ext4(5)), which is for files that must outlast a power cut. No sandbox does.
    fn record_in(&self, dir: &Tree, info: &SandboxInfo) -> Result<(), RunDirError> {
        let write = || -> io::Result<()> {
            // One that an interrupted launcher left.
            dir.remove(NEW_RECORD)?;
            let mut file = dir.create_file(NEW_RECORD)?;
            file.write_all(&serde_json::to_vec(info)?)?;
            match dir.exchange(NEW_RECORD, dir, RECORD) {
                Ok(()) => dir.remove(NEW_RECORD),
                // There is no old one, or the file system cannot exchange.
                Err(_) => Ok(dir.replace(NEW_RECORD, RECORD)?),
            }
        };
        write().map_err(fault("write", &dir.path().join(RECORD)))
    }

    /// A sandbox's record. `None` when it is missing or cannot be understood: the directory of a creation that was
    /// interrupted, or of another version.
    pub fn recorded(&self, id: Uuid) -> Option<SandboxInfo> {
        let text = self.open_dir(id).ok()?.read(RECORD, MAX_RECORD).ok()?;
        serde_json::from_slice::<SandboxInfo>(&text).ok().filter(|info| info.id == id)
    }

    /// The ids of all sandboxes' directories.
    ///
    /// # Errors
    /// Names the path.
    pub fn ids(&self) -> Result<Vec<Uuid>, RunDirError> {
        let names = self.sandboxes.names();
        let names = names.map_err(|refused| fault("list", self.sandboxes.path())(refused.into()))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Binds the socket the sandbox's init will listen on; only ashd may connect to it.
    ///
    /// # Errors
    /// Names the path.
    pub fn init_socket(&self, id: Uuid) -> Result<OwnedFd, RunDirError> {
        let path = self.of(id).join(INIT_SOCKET);
        let dir = self.open_dir(id).map_err(|refused| fault("open", &path)(refused.into()))?;
        let access = Access { mode: 0o600, uid: Some(self.client_uid), gid: None };
        seqpacket::listen_in(dir.as_fd(), INIT_SOCKET, access).map_err(fault("bind", &path))
    }

    /// Removes a sandbox's directory; one that is gone is no error.
    ///
    /// # Errors
    /// Names the path.
    pub fn forget(&self, id: Uuid) -> Result<(), RunDirError> {
        self.sandboxes.remove(id.to_string()).map_err(fault("remove", &self.of(id)))
    }
}

/// The run directory, made as root's where it is missing. No other user may be able to change it, or exchange it for another.
fn directory(path: &Path) -> Result<OwnedFd, RunDirError> {
    let found = match trusted::directory(path) {
        Err(why) if why.is_missing() => trusted::make_directory(path),
        other => other,
    };
    let found = found.map_err(|why| {
        let remedy = why.remedy().map(|command| format!(", or `{command}`")).unwrap_or_default();
        let why = format!("{why}; the launcher works in it as root: remove it while nothing runs{remedy}");
        fault("use", path)(io::Error::other(why))
    })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&found, ".", flags, Mode::empty()).map_err(|error| fault("open", path)(error.into()))
}

/// Whether [`RunDir::open`] would take this directory, for a program that is asked before it is executed. One that is missing is
/// made.
///
/// # Errors
/// As [`RunDir::open`], without the lock.
pub fn check(path: &Path) -> Result<(), RunDirError> {
    directory(path).map(drop)
}

/// Binds `<run dir>/launcher.sock` in place of a socket that an earlier launcher left.
///
/// # Errors
/// Names the path.
pub fn bind_launcher(run_dir: &Path, client_gid: u32) -> Result<OwnedFd, RunDirError> {
    let path = run_dir.join(LAUNCHER_SOCKET);
    let dir = directory(run_dir)?;
    let fresh = format!(".launcher.sock.{}", std::process::id());
    rustix::fs::unlinkat(&dir, fresh.as_str(), AtFlags::empty()).ok();
    let access = Access { mode: 0o660, uid: None, gid: Some(client_gid) };
    let bind = || {
        let socket = seqpacket::listen_in(dir.as_fd(), &fresh, access)?;
        rustix::fs::renameat(&dir, fresh.as_str(), &dir, LAUNCHER_SOCKET)?;
        Ok(socket)
    };
    bind().map_err(fault("bind", &path))
}

/// The undo of [`bind_launcher`].
pub fn unbind_launcher(run_dir: &Path) {
    if let Ok(dir) = directory(run_dir) {
        // Gone already is as good.
        rustix::fs::unlinkat(&dir, LAUNCHER_SOCKET, AtFlags::empty()).ok();
    }
}
