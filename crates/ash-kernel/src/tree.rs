//! Operations by root in a directory tree of another user.
//!
//! ```text
//!   Tree::open(path)   only root owns directories above it (kernel::trusted)
//!        |
//!        +-- read, open, make_dir, create_file, symlink, rename, remove ...
//!            (kernel::beneath: openat2, no link followed)
//! ```
//!
//! The owner of the tree can create and replace links, pipes and files at any time. So no operation
//! uses a path of the host: each is relative to a descriptor, owner and mode are changed on the
//! descriptor of the created file, and a new file never replaces an existing one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timestamps, Uid, fchmod, fchown, fstat, linkat, mkdirat,
    openat, renameat_with, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::beneath::{self, Refused};
use super::trusted::{self, Untrusted};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug)]
pub struct Tree {
    dir: OwnedFd,
    path: PathBuf,
    owner: Owner,
}

impl Tree {
    /// Opens the directory at `path`, which can have any owner. For root, everything above it must
    /// be root's.
    ///
    /// # Errors
    /// [`Untrusted`] names the component.
    pub fn open(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        let (dir, stat) = trusted::any_directory(&path)?;
        Ok(Self { dir, path, owner: Owner { uid: stat.st_uid, gid: stat.st_gid } })
    }

    /// Opens the directory at `path`, which only root can change.
    ///
    /// # Errors
    /// [`Untrusted`] names the component.
    pub fn open_trusted(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        let dir = trusted::directory(&path)?;
        Self::held(dir, path.clone()).map_err(|source| Untrusted::Io { path, source })
    }

    /// As [`Tree::open_trusted`]. Creates missing directories with mode 0755.
    ///
    /// # Errors
    /// [`Untrusted`] names the component.
    pub fn make_trusted(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        let dir = trusted::make_directory(&path)?;
        Self::held(dir, path.clone()).map_err(|source| Untrusted::Io { path, source })
    }

    /// As [`Tree::make_trusted`], and also accepts a sticky directory, such as `/tmp`.
    ///
    /// # Errors
    /// [`Untrusted`] names the component.
    pub fn make_within(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        match trusted::sticky_directory(&path) {
            Err(why) if why.is_missing() => Self::make_trusted(&path),
            other => Self::held(other?, path.clone()).map_err(|source| Untrusted::Io { path, source }),
        }
    }

    /// A directory for the output of a command, named by its caller. The path is not checked. Files
    /// created in it never replace a file and never follow a link.
    ///
    /// # Errors
    /// As for open(2).
    pub fn of_caller(path: &Path) -> io::Result<Self> {
        let dir = beneath::root(path)?;
        Self::held(dir, std::path::absolute(path)?)
    }

    pub(super) fn held(dir: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let stat = fstat(&dir)?;
        Ok(Self { dir, path, owner: Owner { uid: stat.st_uid, gid: stat.st_gid } })
    }

    /// The owner at the time of opening.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path to the held directory in this process, independent of its current name.
    pub fn own_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }

    /// Mode, owner and type of `at`. Does not follow a link.
    ///
    /// # Errors
    /// [`Refused`] names the cause.
    pub fn stat(&self, at: impl AsRef<Path>) -> Result<Stat, Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        Ok(statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub fn has(&self, at: impl AsRef<Path>) -> bool {
        self.stat(at).is_ok()
    }

    /// Opens a directory below.
    ///
    /// # Errors
    /// [`Refused`] names the cause.
    pub fn directory(&self, at: impl AsRef<Path>) -> Result<Self, Refused> {
        let dir = beneath::directory(&self.dir, at.as_ref())?;
        Self::held(dir, self.path.join(at)).map_err(Refused::Io)
    }

    /// Opens a regular file for reading. Pipes and devices are not opened.
    ///
    /// # Errors
    /// [`Refused`] names the cause.
    pub fn open_file(&self, at: impl AsRef<Path>) -> Result<File, Refused> {
        let file = beneath::open(&self.dir, at.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK)?;
        beneath::regular(&file)?;
        Ok(File::from(file))
    }

    /// The contents of a regular file that belongs to the tree's owner. A hard link to another
    /// user's file is refused.
    ///
    /// # Errors
    /// [`Refused`]; also for more than `most` bytes.
    pub fn read(&self, at: impl AsRef<Path>, most: u64) -> Result<Vec<u8>, Refused> {
        let file = self.open_file(at)?;
        beneath::owned_by(&file, self.owner.uid)?;
        let mut text = Vec::new();
        file.take(most + 1).read_to_end(&mut text).map_err(Refused::Io)?;
        if text.len() as u64 > most {
            return Err(Refused::Io(io::Error::other(format!("has more than {most} bytes"))));
        }
        Ok(text)
    }

    /// The names in the directory, sorted.
    ///
    /// # Errors
    /// [`Refused::Io`].
    pub fn names(&self) -> Result<Vec<OsString>, Refused> {
        let dir = openat(&self.dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Creates a directory with exactly this mode, and changes its owner.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Exchanged`] if the directory was replaced at once.
    pub fn make_dir(&self, at: impl AsRef<Path>, mode: u32, owner: Option<Owner>) -> Result<Self, Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        mkdirat(&dir, name, Mode::RWXU)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&dir, name, flags, Mode::empty())?;
        let own = rustix::process::geteuid().as_raw();
        let made = Self::held(made, self.path.join(&at)).map_err(Refused::Io)?;
        if made.owner.uid != own || !made.names()?.is_empty() {
            return Err(Refused::Exchanged);
        }
        fchmod(&made.dir, Mode::from_raw_mode(mode))?;
        if let Some(owner) = owner {
            give(&made.dir, owner)?;
        }
        Self::held(made.dir, made.path).map_err(Refused::Io)
    }

    /// Changes the owner of the directory itself.
    ///
    /// # Errors
    /// As for fchown(2).
    pub fn give_to(&self, owner: Owner) -> Result<(), Refused> {
        give(beneath::open(&self.dir, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?, owner)
    }

    /// Sets the mode of a directory below.
    ///
    /// # Errors
    /// [`Refused`] names the cause.
    pub fn set_mode(&self, at: impl AsRef<Path>, mode: u32) -> Result<(), Refused> {
        let dir = beneath::open(&self.dir, at.as_ref(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(fchmod(&dir, Mode::from_raw_mode(mode))?)
    }

    /// Creates a regular file with mode 0600, open for writing. An existing file is never opened.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn create_file(&self, at: impl AsRef<Path>) -> Result<File, Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// Opens a regular file for writing. A missing file is created with mode 0600 for the tree's
    /// owner.
    ///
    /// # Errors
    /// [`Refused`] names the cause.
    pub fn open_or_create(&self, at: impl AsRef<Path>) -> Result<File, Refused> {
        match beneath::open(&self.dir, at.as_ref(), OFlags::RDWR | OFlags::NONBLOCK) {
            Ok(file) => {
                beneath::regular(&file)?;
                Ok(File::from(file))
            }
            Err(Refused::NotFound) => {
                let file = self.create_file(at)?;
                give(&file, self.owner)?;
                Ok(file)
            }
            Err(refused) => Err(refused),
        }
    }

    /// Creates a symbolic link, and changes its owner.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn symlink(&self, target: &OsStr, at: impl AsRef<Path>, owner: Option<Owner>) -> Result<(), Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        symlinkat(target, &dir, name)?;
        let Some(owner) = owner else { return Ok(()) };
        let link = openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&link)?.st_mode) != FileType::Symlink {
            return Err(Refused::Exchanged);
        }
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        Ok(rustix::fs::chownat(&link, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    /// Creates a hard link.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn hard_link(&self, first: impl AsRef<Path>, at: impl AsRef<Path>) -> Result<(), Refused> {
        let ((above, old), (dir, name)) = (self.parent(first.as_ref())?, self.parent(at.as_ref())?);
        Ok(linkat(&above, old, &dir, name, AtFlags::empty())?)
    }

    /// Sets the times of `at`, of a link itself.
    ///
    /// # Errors
    /// [`Refused`] names the cause.
    pub fn set_times(&self, at: impl AsRef<Path>, times: &Timestamps) -> Result<(), Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        Ok(utimensat(&dir, name, times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Moves an entry of this directory to `to`. Never replaces an entry.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn rename(&self, from: impl AsRef<OsStr>, to: &Self, name: impl AsRef<OsStr>) -> Result<(), Refused> {
        let (from, name) = (from.as_ref(), name.as_ref());
        match renameat_with(&self.dir, from, &to.dir, name, RenameFlags::NOREPLACE) {
            // The file system does not support the flag.
            Err(Errno::INVAL) if !to.has(name) => Ok(rustix::fs::renameat(&self.dir, from, &to.dir, name)?),
            other => Ok(other?),
        }
    }

    /// Renames an entry of this directory, and replaces an existing entry.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn replace(&self, from: impl AsRef<OsStr>, name: impl AsRef<OsStr>) -> Result<(), Refused> {
        Ok(rustix::fs::renameat(&self.dir, from.as_ref(), &self.dir, name.as_ref())?)
    }

    /// Exchanges two entries.
    ///
    /// # Errors
    /// [`Refused`]; not supported by some file systems.
    pub fn exchange(&self, from: impl AsRef<OsStr>, to: &Self, name: impl AsRef<OsStr>) -> Result<(), Refused> {
        Ok(renameat_with(&self.dir, from.as_ref(), &to.dir, name.as_ref(), RenameFlags::EXCHANGE)?)
    }

    /// Removes an entry of this directory with everything below. A link is removed, not its target.
    /// A missing entry is no error.
    ///
    /// # Errors
    /// The entry that could not be removed.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let path = self.own_path().join(name.as_ref());
        let gone = match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As for rmdir(2).
    pub fn remove_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, name.as_ref(), AtFlags::REMOVEDIR)?)
    }

    /// The directory of the last component of `at`, and that component.
    fn parent<'a>(&self, at: &'a Path) -> Result<(OwnedFd, &'a OsStr), Refused> {
        let name = at.file_name().ok_or(Refused::Outside)?;
        let above = at.parent().filter(|above| !above.as_os_str().is_empty());
        Ok((beneath::directory(&self.dir, above.unwrap_or(Path::new(".")))?, name))
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Changes the owner of an open file.
///
/// # Errors
/// As for fchown(2).
pub fn give(fd: impl AsFd, owner: Owner) -> Result<(), Refused> {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if own == (owner.uid, owner.gid) {
        return Ok(());
    }
    Ok(fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?)
}

fn absolute(path: &Path) -> Result<PathBuf, Untrusted> {
    std::path::absolute(path).map_err(|source| Untrusted::Io { path: path.to_owned(), source })
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
