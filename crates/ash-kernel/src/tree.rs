//! Root at work in a directory tree that another user owns.
//!
//! ```text
//!   Tree::open(path)   every directory above it is root's (kernel::trusted); the tree itself may be anybody's
//!        |
//!        +-- read, open, make_dir, create_file, symlink, rename, remove ...   (kernel::beneath: openat2, no link followed)
//! ```
//!
//! The owner of the tree may put links, pipes and other files at any name and exchange them at any time. So no operation
//! takes a path of the host: each is relative to a descriptor, owner and mode are changed on the descriptor of what was
//! just made, and a new file never replaces one that is there.

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

/// User and group that something is given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A directory that is held open, and the path it had, for messages.
#[derive(Debug)]
pub struct Tree {
    dir: OwnedFd,
    path: PathBuf,
    owner: Owner,
}

impl Tree {
    /// The directory at `path`, whose owner may be anybody; as root, all that leads to it must be root's.
    ///
    /// # Errors
    /// [`Untrusted`] names the component at fault.
    pub fn open(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        let (dir, stat) = trusted::any_directory(&path)?;
        Ok(Self { dir, path, owner: Owner { uid: stat.st_uid, gid: stat.st_gid } })
    }

    /// The directory at `path`, which only root may change.
    ///
    /// # Errors
    /// [`Untrusted`] names the component at fault.
    pub fn open_trusted(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        let dir = trusted::directory(&path)?;
        Self::held(dir, path.clone()).map_err(|source| Untrusted::Io { path, source })
    }

    /// As [`Tree::open_trusted`]; what is missing of the path is made, mode 0755.
    ///
    /// # Errors
    /// [`Untrusted`] names the component at fault.
    pub fn make_trusted(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        let dir = trusted::make_directory(&path)?;
        Self::held(dir, path.clone()).map_err(|source| Untrusted::Io { path, source })
    }

    /// As [`Tree::make_trusted`]; a sticky directory, such as `/tmp`, will do.
    ///
    /// # Errors
    /// [`Untrusted`] names the component at fault.
    pub fn make_within(path: &Path) -> Result<Self, Untrusted> {
        let path = absolute(path)?;
        match trusted::sticky_directory(&path) {
            Err(why) if why.is_missing() => Self::make_trusted(&path),
            other => Self::held(other?, path.clone()).map_err(|source| Untrusted::Io { path, source }),
        }
    }

    /// A directory that the caller of a command named for its own output. Its path may lead anywhere; what is made in it never
    /// replaces a file and never follows a link.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn of_caller(path: &Path) -> io::Result<Self> {
        let dir = beneath::root(path)?;
        Self::held(dir, std::path::absolute(path)?)
    }

    pub(super) fn held(dir: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let stat = fstat(&dir)?;
        Ok(Self { dir, path, owner: Owner { uid: stat.st_uid, gid: stat.st_gid } })
    }

    /// Who owned the directory when it was opened.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to the held directory within this process, whatever its name is by now.
    pub fn own_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }

    /// Mode, owner and type of what is at `at`; a link is not followed.
    ///
    /// # Errors
    /// [`Refused`] names what is there instead.
    pub fn stat(&self, at: impl AsRef<Path>) -> Result<Stat, Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        Ok(statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub fn has(&self, at: impl AsRef<Path>) -> bool {
        self.stat(at).is_ok()
    }

    /// A directory below.
    ///
    /// # Errors
    /// [`Refused`] names what is there instead.
    pub fn directory(&self, at: impl AsRef<Path>) -> Result<Self, Refused> {
        let dir = beneath::directory(&self.dir, at.as_ref())?;
        Self::held(dir, self.path.join(at)).map_err(Refused::Io)
    }

    /// A regular file for reading; a pipe or device is not opened.
    ///
    /// # Errors
    /// [`Refused`] names what is there instead.
    pub fn open_file(&self, at: impl AsRef<Path>) -> Result<File, Refused> {
        let file = beneath::open(&self.dir, at.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK)?;
        beneath::regular(&file)?;
        Ok(File::from(file))
    }

    /// The contents of a regular file that belongs to the tree's owner: a hard link to a file of somebody else is refused.
    ///
    /// # Errors
    /// [`Refused`]; also when it has more than `most` bytes.
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

    /// Names in the directory, sorted.
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

    /// Makes a directory, with exactly this mode, and gives it to `owner`.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Exchanged`] when the name led to another directory just after.
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

    /// Gives the directory itself to `owner`.
    ///
    /// # Errors
    /// As fchown(2).
    pub fn give_to(&self, owner: Owner) -> Result<(), Refused> {
        give(beneath::open(&self.dir, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?, owner)
    }

    /// Sets the mode of a directory below.
    ///
    /// # Errors
    /// [`Refused`] names what is there instead.
    pub fn set_mode(&self, at: impl AsRef<Path>, mode: u32) -> Result<(), Refused> {
        let dir = beneath::open(&self.dir, at.as_ref(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(fchmod(&dir, Mode::from_raw_mode(mode))?)
    }

    /// Makes a regular file, mode 0600, open for writing. One that is there is never opened.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn create_file(&self, at: impl AsRef<Path>) -> Result<File, Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// A regular file open for writing; one that is missing is made, mode 0600, and given to the tree's owner.
    ///
    /// # Errors
    /// [`Refused`] names what is there instead.
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

    /// Makes a symbolic link, and gives it to `owner`.
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

    /// Gives a file below another name.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn hard_link(&self, first: impl AsRef<Path>, at: impl AsRef<Path>) -> Result<(), Refused> {
        let ((above, old), (dir, name)) = (self.parent(first.as_ref())?, self.parent(at.as_ref())?);
        Ok(linkat(&above, old, &dir, name, AtFlags::empty())?)
    }

    /// Sets the times of what is at `at`; of a link its own.
    ///
    /// # Errors
    /// [`Refused`] names what is there instead.
    pub fn set_times(&self, at: impl AsRef<Path>, times: &Timestamps) -> Result<(), Refused> {
        let (dir, name) = self.parent(at.as_ref())?;
        Ok(utimensat(&dir, name, times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Moves an entry of this directory into `to`; what is there already is not replaced.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn rename(&self, from: impl AsRef<OsStr>, to: &Self, name: impl AsRef<OsStr>) -> Result<(), Refused> {
        let (from, name) = (from.as_ref(), name.as_ref());
        match renameat_with(&self.dir, from, &to.dir, name, RenameFlags::NOREPLACE) {
            // A file system that does not know the flag.
            Err(Errno::INVAL) if !to.has(name) => Ok(rustix::fs::renameat(&self.dir, from, &to.dir, name)?),
            other => Ok(other?),
        }
    }

    /// Gives an entry of this directory another name, in place of what has that name.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn replace(&self, from: impl AsRef<OsStr>, name: impl AsRef<OsStr>) -> Result<(), Refused> {
        Ok(rustix::fs::renameat(&self.dir, from.as_ref(), &self.dir, name.as_ref())?)
    }

    /// Exchanges two entries.
    ///
    /// # Errors
    /// [`Refused`]; some file systems cannot.
    pub fn exchange(&self, from: impl AsRef<OsStr>, to: &Self, name: impl AsRef<OsStr>) -> Result<(), Refused> {
        Ok(renameat_with(&self.dir, from.as_ref(), &to.dir, name.as_ref(), RenameFlags::EXCHANGE)?)
    }

    /// Removes an entry of this directory with all that is below; a link goes, and not what it leads to. What is gone
    /// already is no error.
    ///
    /// # Errors
    /// What could not be removed.
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
    /// As rmdir(2).
    pub fn remove_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, name.as_ref(), AtFlags::REMOVEDIR)?)
    }

    /// The directory that holds the last name of `at`, and that name.
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

/// Changes the owner of what is open.
///
/// # Errors
/// As fchown(2).
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
