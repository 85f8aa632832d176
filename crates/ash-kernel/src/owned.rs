//! Opens files of this process's user, whatever their mode.
//!
//! Session files on the disk belong to ashd, and a payload can set any mode, including 000. The
//! owner can always change the mode. So a file that refuses its owner gets a wider mode, is opened,
//! and its mode is restored:
//!
//! ```text
//!   openat2(path) --EACCES--> each component: O_PATH, chmod u+r (directory: u+rwx), open, restore
//!                             (a directory keeps u+rwx while in use: checked at each lookup)
//! ```
//!
//! If the process ends in between, the wider mode stays. Several users of one directory share the
//! change. [`mode_of`] returns the intended mode.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, chmod, fstat, openat2};
use rustix::io::Errno;

type Identity = (u64, u64);

#[derive(Debug)]
struct Change {
    /// The mode before, which is restored later.
    meant: u32,
    set: u32,
    users: usize,
}

static CHANGES: Mutex<BTreeMap<Identity, Change>> = Mutex::new(BTreeMap::new());

fn changes() -> MutexGuard<'static, BTreeMap<Identity, Change>> {
    // The map is consistent between any two statements.
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open file or directory. A directory stays searchable while this value lives.
#[derive(Debug)]
pub struct Opened {
    fd: OwnedFd,
    _wider: Option<Wider>,
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Opened {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, _wider: None }
    }
}

/// Restores a mode when dropped.
#[derive(Debug)]
struct Wider {
    at: OwnedFd,
    identity: Identity,
}

impl Wider {
    /// Gives the owner `bits`. `None` if it has them already.
    fn new(at: OwnedFd, bits: u32) -> Result<Option<Self>, Errno> {
        let mut changes = changes();
        let stat = fstat(&at)?;
        let (mode, identity) = (stat.st_mode & 0o7777, (stat.st_dev, stat.st_ino));
        let known = changes.get(&identity).filter(|change| change.set == mode);
        if known.is_none() && mode & bits == bits {
            return Ok(None);
        }
        let (meant, users) = (known.map_or(mode, |change| change.meant), changes.get(&identity).map_or(0, |c| c.users));
        let set = mode | bits;
        if set != mode {
            change_mode(&at, set)?;
        }
        changes.insert(identity, Change { meant, set, users: users + 1 });
        Ok(Some(Self { at, identity }))
    }
}

impl Drop for Wider {
    fn drop(&mut self) {
        let mut changes = changes();
        let Some(change) = changes.get_mut(&self.identity) else { return };
        change.users -= 1;
        if change.users > 0 {
            return;
        }
        // A mode that the owner changed meanwhile stays.
        let now = fstat(&self.at).map(|stat| stat.st_mode & 0o7777);
        if now == Ok(change.set)
            && let Err(error) = change_mode(&self.at, change.meant)
        {
            tracing::warn!(%error, "the mode of a file was not restored");
        }
        changes.remove(&self.identity);
    }
}

/// Uses /proc, because fchmod(2) does not accept `O_PATH` descriptors.
fn change_mode(at: &OwnedFd, mode: u32) -> Result<(), Errno> {
    chmod(format!("/proc/self/fd/{}", at.as_raw_fd()), Mode::from_raw_mode(mode)).map_err(|errno| match errno {
        // Another user's file: report the original refusal.
        Errno::PERM => Errno::ACCESS,
        errno => errno,
    })
}

/// The intended permission bits of a file, also while this process has widened them.
pub fn mode_of(stat: &Stat) -> u32 {
    let mode = stat.st_mode & 0o7777;
    let changes = changes();
    let known = changes.get(&(stat.st_dev, stat.st_ino));
    known.filter(|change| change.set == mode).map_or(mode, |change| change.meant)
}

/// As openat2(2) with `resolve`. Modes that deny access to the owner are overridden.
///
/// # Errors
/// As for openat2(2); `EACCES` for a file of another user without permission.
pub fn open(dir: impl AsFd, path: &Path, flags: OFlags, mode: Mode, resolve: ResolveFlags) -> Result<Opened, Errno> {
    let dir = dir.as_fd();
    let flags = flags | OFlags::CLOEXEC;
    match openat2_again(dir, path, flags, mode, resolve) {
        Ok(fd) if flags.contains(OFlags::PATH) || !is_closed_directory(&fd) => return Ok(fd.into()),
        Ok(_) | Err(Errno::ACCESS) => {}
        Err(errno) => return Err(errno),
    }
    let mut above: Vec<Opened> = Vec::new();
    let mut parts = path.components().filter(|part| *part != Component::CurDir).peekable();
    if parts.peek().is_none() {
        // The directory itself: even `.` cannot be looked up without permission.
        let wider = Wider::new(dir.try_clone_to_owned().map_err(|_| Errno::MFILE)?, 0o700)?;
        return Ok(Opened { fd: openat2_again(dir, Path::new("."), flags, mode, resolve)?, _wider: wider });
    }
    while let Some(part) = parts.next() {
        let at = above.last().map_or(dir, AsFd::as_fd);
        let part = Path::new(part.as_os_str());
        if parts.peek().is_none() {
            return last(at, part, flags, mode, resolve);
        }
        let inner = last(at, part, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        above.push(inner);
    }
    Err(Errno::ACCESS)
}

fn last(dir: BorrowedFd<'_>, name: &Path, flags: OFlags, mode: Mode, resolve: ResolveFlags) -> Result<Opened, Errno> {
    match openat2_again(dir, name, flags, mode, resolve) {
        // A directory that is readable but not searchable opens, but cannot be used.
        Ok(fd) if flags.contains(OFlags::PATH) || !is_closed_directory(&fd) => return Ok(fd.into()),
        Ok(_) | Err(Errno::ACCESS) => {}
        Err(errno) => return Err(errno),
    }
    let at = openat2_again(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let bits = match FileType::from_raw_mode(fstat(&at)?.st_mode) {
        FileType::Directory => 0o700,
        FileType::RegularFile if flags.intersects(OFlags::WRONLY | OFlags::RDWR) => 0o600,
        FileType::RegularFile => 0o400,
        _ => return Err(Errno::ACCESS),
    };
    let wider = Wider::new(at, bits)?;
    let fd = openat2_again(dir, name, flags, mode, resolve)?;
    let directory = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Directory;
    Ok(Opened { fd, _wider: wider.filter(|_| directory) })
}

fn is_closed_directory(fd: &OwnedFd) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && own != 0
            && stat.st_uid == own
            && mode_of(&stat) & 0o700 != 0o700
    })
}

/// The kernel returns EAGAIN if a rename happened at the same time. A payload could repeat that, so
/// the number of attempts is limited.
fn openat2_again(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match openat2(dir, path, flags, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 64 => tries += 1,
            other => return other,
        }
    }
}

impl Opened {
    /// The descriptor of a file. It stays readable after the mode is restored.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

#[cfg(test)]
#[path = "owned_tests.rs"]
mod tests;
