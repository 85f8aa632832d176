//! The run directory: the launcher's socket, and the records of all sandboxes.
//!
//! ```text
//!   <run dir>/                          0755 root
//!     launcher.sock                     0660 root:<ashd's group>   requests
//!     sandboxes/                        0710 root:<ashd's group>   locked by the launcher in use
//!       <id>/                           0710 root:<ashd's group>
//!         sandbox.json                  0600 root                  the record, written by rename
//!         init.sock                     0600 ashd                  the sandbox's init listens
//! ```
//!
//! The run directory and everything above it must belong to root: root uses it by path, and a user
//! with write access could place a link where root changes an owner. ashd reaches its own files by
//! group and mode. It can pass through the directories but not open them, because an open directory
//! can be locked, which would block the next launcher. `sandboxes/` is held open, and everything
//! below uses that descriptor.

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
/// Mode of `sandboxes/` and the directories below: ashd's group can pass through but not open them.
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

#[derive(Debug)]
pub struct RunDir {
    sandboxes: Tree,
    /// The same directory, locked while this is open.
    _lock: OwnedFd,
    client_uid: u32,
}

impl RunDir {
    /// Creates missing directories and takes the lock.
    ///
    /// # Errors
    /// Names the path: a directory that ashd could replace or write, one of another user, or one in
    /// use by another launcher.
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

    /// Creates a sandbox's directory with a record that reserves its uids. `AlreadyExists` if there
    /// is one.
    ///
    /// # Errors
    /// Names the path. Nothing is left.
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

    /// Writes the record completely or not at all.
    ///
    /// # Errors
    /// Names the path.
    pub fn record(&self, info: &SandboxInfo) -> Result<(), RunDirError> {
        let dir = self.open_dir(info.id).map_err(|refused| fault("open", &self.of(info.id))(refused.into()))?;
        self.record_in(&dir, info)
    }

    /// An old record is exchanged and then removed. A rename over it would make ext4 write the new
    /// one to disk at once (auto_da_alloc in ext4(5)), which is for files that must survive a power
    /// cut. No sandbox does.
    fn record_in(&self, dir: &Tree, info: &SandboxInfo) -> Result<(), RunDirError> {
        let write = || -> io::Result<()> {
            // Left by an interrupted launcher.
            dir.remove(NEW_RECORD)?;
            let mut file = dir.create_file(NEW_RECORD)?;
            file.write_all(&serde_json::to_vec(info)?)?;
            match dir.exchange(NEW_RECORD, dir, RECORD) {
                Ok(()) => dir.remove(NEW_RECORD),
                // There is no old one, or the file system does not support the exchange.
                Err(_) => Ok(dir.replace(NEW_RECORD, RECORD)?),
            }
        };
        write().map_err(fault("write", &dir.path().join(RECORD)))
    }

    /// A sandbox's record. `None` if it is missing or invalid: the directory of an interrupted
    /// creation, or of another version.
    pub fn recorded(&self, id: Uuid) -> Option<SandboxInfo> {
        let text = self.open_dir(id).ok()?.read(RECORD, MAX_RECORD).ok()?;
        serde_json::from_slice::<SandboxInfo>(&text).ok().filter(|info| info.id == id)
    }

    /// The ids of all sandbox directories.
    ///
    /// # Errors
    /// Names the path.
    pub fn ids(&self) -> Result<Vec<Uuid>, RunDirError> {
        let names = self.sandboxes.names();
        let names = names.map_err(|refused| fault("list", self.sandboxes.path())(refused.into()))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Binds the socket of the sandbox's init. Only ashd may connect.
    ///
    /// # Errors
    /// Names the path.
    pub fn init_socket(&self, id: Uuid) -> Result<OwnedFd, RunDirError> {
        let path = self.of(id).join(INIT_SOCKET);
        let dir = self.open_dir(id).map_err(|refused| fault("open", &path)(refused.into()))?;
        let access = Access { mode: 0o600, uid: Some(self.client_uid), gid: None };
        seqpacket::listen_in(dir.as_fd(), INIT_SOCKET, access).map_err(fault("bind", &path))
    }

    /// Removes a sandbox's directory. A missing one is no error.
    ///
    /// # Errors
    /// Names the path.
    pub fn forget(&self, id: Uuid) -> Result<(), RunDirError> {
        self.sandboxes.remove(id.to_string()).map_err(fault("remove", &self.of(id)))
    }
}

/// Opens the run directory, or creates it for root. No other user may be able to change or replace
/// it.
fn directory(path: &Path) -> Result<OwnedFd, RunDirError> {
    let found = match trusted::directory(path) {
        Err(why) if why.is_missing() => trusted::make_directory(path),
        other => other,
    };
    let found = found.map_err(|why| {
        let remedy = why.remedy().map(|command| format!(", or `{command}`")).unwrap_or_default();
        let why = format!("{why}; the launcher uses it as root: remove it while no launcher runs{remedy}");
        fault("use", path)(io::Error::other(why))
    })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&found, ".", flags, Mode::empty()).map_err(|error| fault("open", path)(error.into()))
}

/// Checks whether [`RunDir::open`] would accept this directory, before the program is executed.
/// Creates a missing one.
///
/// # Errors
/// As for [`RunDir::open`], without the lock.
pub fn check(path: &Path) -> Result<(), RunDirError> {
    directory(path).map(drop)
}

/// Binds `<run dir>/launcher.sock`, and replaces a socket of an earlier launcher.
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

pub fn unbind_launcher(run_dir: &Path) {
    if let Ok(dir) = directory(run_dir) {
        // A missing socket is fine.
        rustix::fs::unlinkat(&dir, LAUNCHER_SOCKET, AtFlags::empty()).ok();
    }
}
