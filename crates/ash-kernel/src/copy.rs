//! Copies a directory tree with links, modes, times, holes, hard links and empty directories.
//!
//! ```text
//!   walk (source, untrusted)  -->  a stack of descriptors (target, this process's own)
//!                                  file: each piece by copy_file_range(2), may share blocks
//!                                  directory: 0700 until it is complete, then mode and times
//! ```
//!
//! The result names everything that the copy omits. Copied modes have no setuid, setgid or sticky
//! bit, because the files on the disk belong to ashd.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::owned;
use super::walk::{self, Entry, RESOLVE, Visit, Why, next_piece, stays_inside};
use ash_model::Skipped;

/// Bounds of one copy. Beyond a bound the copy fails and names it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of all files together, without holes.
    pub bytes: u64,
    /// Files, directories and links together.
    pub entries: u64,
}

impl Default for Bounds {
    /// 1 GiB, 200,000 entries.
    fn default() -> Self {
        Self { bytes: 1 << 30, entries: 200_000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// All, unchanged: they are resolved inside a sandbox.
    All,
    /// Links to a target in the tree. Others are omitted and named.
    Inside,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub bytes: u64,
    pub entries: u64,
    pub skipped: Skipped,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{path}: {source}")]
    At { path: String, source: io::Error },
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it contains more than {} MiB", .0 >> 20)]
    TooLarge(u64),
    #[error("it contains more than {0} files and directories")]
    TooMany(u64),
}

/// Opens a session's directory as the source of a copy. A link is refused.
///
/// # Errors
/// As for openat(2).
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        // The payload may have removed the permissions of its workspace.
        Err(Errno::ACCESS) => Ok(rustix::fs::openat(CWD, path, flags | OFlags::PATH, Mode::empty())?),
        other => Ok(other?),
    }
}

pub fn everything(_: &Stat) -> bool {
    true
}

/// Copies the content of `from` into the existing directory `to`, with the regular files that
/// `takes` selects. Blocks: call it on a blocking thread.
///
/// # Errors
/// A bound, or an I/O error.
pub fn copy_tree(
    from: BorrowedFd<'_>,
    to: &Path,
    bounds: Bounds,
    links: Links,
    takes: fn(&Stat) -> bool,
) -> Result<Copied, CopyError> {
    let target = directory(to).map_err(|source| CopyError::At { path: to.display().to_string(), source })?;
    let mut copy = Copy { bounds, links, takes, way: vec![target], done: Copied::default() };
    walk::walk(from, &mut copy)?;
    Ok(copy.done)
}

/// The entries that such a copy would omit. Reads directories and links only.
///
/// # Errors
/// A bound, or an I/O error.
pub fn would_skip(
    from: BorrowedFd<'_>,
    bounds: Bounds,
    links: Links,
    takes: fn(&Stat) -> bool,
) -> Result<Skipped, CopyError> {
    let mut look = Copy { bounds, links, takes, way: Vec::new(), done: Copied::default() };
    walk::walk(from, &mut look)?;
    Ok(look.done.skipped)
}

struct Copy {
    bounds: Bounds,
    links: Links,
    takes: fn(&Stat) -> bool,
    /// The open target directories from the root to the current one. Empty if nothing is written.
    way: Vec<OwnedFd>,
    done: Copied,
}

impl Copy {
    fn count(&mut self) -> Result<(), CopyError> {
        self.done.entries += 1;
        if self.done.entries > self.bounds.entries { Err(CopyError::TooMany(self.bounds.entries)) } else { Ok(()) }
    }

    /// Reports lost bits of the mode, and returns the rest.
    fn mode(&mut self, entry: &Entry<'_>) -> Mode {
        if entry.mode & 0o7000 != 0 {
            self.done.skipped.add(entry.path, "is kept without its setuid, setgid and sticky bits");
        }
        Mode::from_raw_mode(entry.mode & 0o777)
    }

    fn contents(&mut self, from: &File, size: u64, to: &File) -> Result<(), CopyError> {
        let mut at = 0;
        while let Some((start, length)) = next_piece(from, at, size)? {
            let left = self.bounds.bytes - self.done.bytes;
            if length > left {
                return Err(CopyError::TooLarge(self.bounds.bytes));
            }
            piece(from, to, start, length)?;
            self.done.bytes += length;
            at = start + length;
        }
        Ok(rustix::fs::ftruncate(to, size).map_err(io::Error::from)?)
    }

    fn write(&mut self, entry: &Entry<'_>, from: &File, mode: Mode) -> Result<(), CopyError> {
        let Some(to) = self.way.last() else { return Ok(()) };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target =
            File::from(rustix::fs::openat(to, entry.name, flags, Mode::RUSR | Mode::WUSR).map_err(at(entry.path))?);
        let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
        self.contents(from, size, &target).map_err(|error| match error {
            CopyError::Io(source) => CopyError::At { path: entry.path.display().to_string(), source },
            error => error,
        })?;
        finish(target.as_fd(), mode, &entry.stat).map_err(at(entry.path))
    }
}

impl Visit for Copy {
    type Error = CopyError;

    fn directory(&mut self, entry: &Entry<'_>) -> Result<bool, CopyError> {
        self.count()?;
        if let Some(to) = self.way.last() {
            rustix::fs::mkdirat(to, entry.name, Mode::RWXU).map_err(at(entry.path))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = rustix::fs::openat(to, entry.name, flags, Mode::empty()).map_err(at(entry.path))?;
            self.way.push(inner);
        }
        Ok(true)
    }

    fn leave(&mut self, entry: &Entry<'_>) -> Result<(), CopyError> {
        let mode = self.mode(entry);
        let Some(made) = self.way.pop() else { return Ok(()) };
        finish(made.as_fd(), mode, &entry.stat).map_err(at(entry.path))
    }

    fn reads(&self) -> bool {
        !self.way.is_empty()
    }

    fn file(&mut self, entry: &Entry<'_>, file: Option<File>) -> Result<bool, CopyError> {
        self.count()?;
        if !(self.takes)(&entry.stat) {
            self.done.skipped.add(entry.path, "a hard link to a file of ashd");
            return Ok(false);
        }
        let mode = self.mode(entry);
        if let Some(file) = file {
            self.write(entry, &file, mode)?;
        }
        Ok(true)
    }

    fn hard_link(&mut self, entry: &Entry<'_>, first: &Path) -> Result<(), CopyError> {
        self.count()?;
        let (Some(top), Some(to)) = (self.way.first(), self.way.last()) else { return Ok(()) };
        let name = first.file_name().unwrap_or_default();
        let above = first.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The target is this process's own. A finished directory may have a mode without access.
        let above = owned::open(top, above, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), RESOLVE);
        let above = above.map_err(at(entry.path))?;
        rustix::fs::linkat(above.as_fd(), name, to, entry.name, AtFlags::empty()).map_err(at(entry.path))
    }

    fn symlink(&mut self, entry: &Entry<'_>, target: &OsStr) -> Result<(), CopyError> {
        self.count()?;
        if self.links == Links::Inside && !stays_inside(entry.path, target) {
            let target = ash_model::names::shown(Path::new(target));
            self.done.skipped.add(entry.path, format!("a link that leads out of the directory, to {target}"));
            return Ok(());
        }
        let Some(to) = self.way.last() else { return Ok(()) };
        rustix::fs::symlinkat(target, to, entry.name).map_err(at(entry.path))?;
        let times = times(&entry.stat);
        rustix::fs::utimensat(to, entry.name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(at(entry.path))
    }

    fn skipped(&mut self, path: &Path, why: Why) -> Result<(), CopyError> {
        self.count()?;
        // An agent without some of its files would be incomplete: its deployment names them, and
        // its sessions do not start.
        if why == Why::Unreadable && self.links == Links::Inside && self.reads() {
            return Err(at(path)(Errno::ACCESS));
        }
        self.done.skipped.add(path, why.text());
        Ok(())
    }
}

fn finish(made: BorrowedFd<'_>, mode: Mode, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchmod(made, mode)?;
    rustix::fs::futimens(made, &times(stat))
}

pub fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies `length` bytes at `start`, in the kernel if possible. If the file became shorter, the
/// rest is a hole.
fn piece(from: &File, to: &File, start: u64, length: u64) -> io::Result<()> {
    let (mut read, mut written, end) = (start, start, start + length);
    while read < end {
        let most = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), most) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let (mut from, mut to) = (from, to);
    from.seek(SeekFrom::Start(read))?;
    to.seek(SeekFrom::Start(written))?;
    let mut buffer = vec![0; usize::try_from(end - read).unwrap_or(BUFFER).min(BUFFER)];
    while read < end {
        let most = usize::try_from(end - read).unwrap_or(BUFFER).min(BUFFER);
        match from.read(&mut buffer[..most])? {
            0 => break,
            n => {
                to.write_all(&buffer[..n])?;
                read += n as u64;
            }
        }
    }
    Ok(())
}

/// Bytes per copy step if the kernel cannot copy.
const BUFFER: usize = 256 << 10;

fn at(path: &Path) -> impl Fn(Errno) -> CopyError + '_ {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    move |errno| CopyError::At { path: path.display().to_string(), source: errno.into() }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
