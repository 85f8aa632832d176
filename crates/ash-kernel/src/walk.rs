//! Walks a directory tree that a hostile program may be changing, for whoever copies or packs it.
//!
//! The walk holds a descriptor of each directory on the way to where it is, and nothing else of the tree: a directory may have any
//! number of entries. Each name is opened relative to its directory, through no link, and judged by what was opened. What this
//! process owns is read whatever its mode is ([`super::owned`]).

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::owned::{self, Opened};

/// Directories below one another.
pub const MAX_DEPTH: usize = 128;
/// Bytes that are held to find the second names of files.
const MAX_NAMES: usize = 16 << 20;

pub const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Where the walk is.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Relative to the tree.
    pub path: &'a Path,
    pub name: &'a OsStr,
    pub stat: Stat,
    /// Permission bits as they are meant to be, setuid, setgid and sticky included.
    pub mode: u32,
}

/// Why something was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Socket,
    Fifo,
    Device,
    /// It belongs to another user, who does not let this process read it.
    Unreadable,
    TooDeep,
    /// It is there, as a file of its own.
    LinkAsCopy,
}

impl Why {
    pub fn text(self) -> &'static str {
        match self {
            Self::Socket => "a socket",
            Self::Fifo => "a named pipe",
            Self::Device => "a device",
            Self::Unreadable => "ashd may not read it: it belongs to another user",
            Self::TooDeep => "more than 128 directories deep",
            Self::LinkAsCopy => "a hard link, kept as a file of its own: the tree has too many",
        }
    }
}

/// What is done with a tree. Each file is met once by its first name; its other names follow as hard links.
pub trait Visit {
    type Error: From<io::Error>;

    /// Whether files are opened; otherwise it is only asked whether they could be.
    fn reads(&self) -> bool {
        true
    }

    /// Before what is in it. `false`: it is left out.
    ///
    /// # Errors
    /// The walk ends with them.
    fn directory(&mut self, entry: &Entry<'_>) -> Result<bool, Self::Error>;

    /// After what is in it.
    ///
    /// # Errors
    /// The walk ends with them.
    fn leave(&mut self, entry: &Entry<'_>) -> Result<(), Self::Error>;

    /// A regular file, open for reading if [`Visit::reads`] says so. `false`: it is left out, and its other names are files of their
    /// own.
    ///
    /// # Errors
    /// The walk ends with them.
    fn file(&mut self, entry: &Entry<'_>, file: Option<File>) -> Result<bool, Self::Error>;

    /// Another name of the file at `first`.
    ///
    /// # Errors
    /// The walk ends with them.
    fn hard_link(&mut self, entry: &Entry<'_>, first: &Path) -> Result<(), Self::Error>;

    /// # Errors
    /// The walk ends with them.
    fn symlink(&mut self, entry: &Entry<'_>, target: &OsStr) -> Result<(), Self::Error>;

    /// # Errors
    /// The walk ends with them.
    fn skipped(&mut self, path: &Path, why: Why) -> Result<(), Self::Error>;
}

/// A file, if it was opened, and what it is.
type Found = (Option<File>, Stat);

/// A directory on the way.
struct Level {
    entries: Dir,
    open: Opened,
    name: OsString,
    stat: Stat,
    mode: u32,
}

/// Walks what is below `root`, in the order of its directories. What vanishes meanwhile is not handed over.
///
/// # Errors
/// Those of `visit`, and what the disk answers.
pub fn walk<V: Visit>(root: BorrowedFd<'_>, visit: &mut V) -> Result<(), V::Error> {
    let mut walk = Walk { visit, path: PathBuf::new(), names: HashMap::new(), held: 0 };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open = owned::open(root, Path::new("."), flags, Mode::empty(), RESOLVE).map_err(io::Error::from)?;
    let mut way = vec![Level::new(open, OsString::new())?];
    while let Some(level) = way.last_mut() {
        match level.entries.next() {
            Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Some(Ok(entry)) => {
                let depth = way.len();
                if let Some(inner) = walk.entry(&way[depth - 1], entry.file_name(), depth)? {
                    way.push(inner);
                }
            }
            Some(Err(errno)) => return Err(io::Error::from(errno).into()),
            None if way.len() == 1 => break,
            None => {
                let Some(Level { name, stat, mode, .. }) = way.pop() else { break };
                walk.visit.leave(&Entry { path: &walk.path, name: &name, stat, mode })?;
                walk.path.pop();
            }
        }
    }
    Ok(())
}

impl Level {
    fn new(open: Opened, name: OsString) -> Result<Self, io::Error> {
        let stat = rustix::fs::fstat(open.as_fd())?;
        let mode = owned::mode_of(&stat);
        Ok(Self { entries: Dir::read_from(open.as_fd())?, open, name, stat, mode })
    }
}

struct Walk<'a, V> {
    visit: &'a mut V,
    path: PathBuf,
    /// Files with several names: where the first one is, and how many are still to come.
    names: HashMap<(u64, u64), (PathBuf, u64)>,
    held: usize,
}

impl<V: Visit> Walk<'_, V> {
    /// One name. A directory that is to be walked next is returned, and is the end of `self.path` then.
    fn entry(&mut self, level: &Level, name: &CStr, depth: usize) -> Result<Option<Level>, V::Error> {
        let at = level.open.as_fd();
        let Ok(stat) = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
        let name = OsStr::from_bytes(name.to_bytes());
        self.path.push(name);
        let inner = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth > MAX_DEPTH => self.skip(Why::TooDeep),
            FileType::Directory => self.directory(at, name),
            FileType::RegularFile => self.file(at, name, &stat).map(|()| None),
            FileType::Symlink => match rustix::fs::readlinkat(at, name, Vec::new()) {
                Ok(target) => {
                    let entry = Entry { path: &self.path, name, stat, mode: stat.st_mode & 0o7777 };
                    self.visit.symlink(&entry, OsStr::from_bytes(target.to_bytes())).map(|()| None)
                }
                Err(_) => Ok(None),
            },
            FileType::Socket => self.skip(Why::Socket),
            FileType::Fifo => self.skip(Why::Fifo),
            _ => self.skip(Why::Device),
        }?;
        if inner.is_none() {
            self.path.pop();
        }
        Ok(inner)
    }

    fn skip(&mut self, why: Why) -> Result<Option<Level>, V::Error> {
        self.visit.skipped(&self.path, why).map(|()| None)
    }

    fn directory(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Level>, V::Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let open = match owned::open(at, Path::new(name), flags, Mode::empty(), RESOLVE) {
            Ok(open) => open,
            Err(Errno::ACCESS) => return self.skip(Why::Unreadable),
            // Removed, or exchanged for a link or a file, since it was seen.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        let level = Level::new(open, name.to_owned())?;
        let entry = Entry { path: &self.path, name, stat: level.stat, mode: level.mode };
        Ok(self.visit.directory(&entry)?.then_some(level))
    }

    fn file(&mut self, at: BorrowedFd<'_>, name: &OsStr, seen: &Stat) -> Result<(), V::Error> {
        if seen.st_nlink > 1
            && let Some((first, left)) = self.names.remove(&(seen.st_dev, seen.st_ino))
        {
            self.held -= cost(&first);
            let entry = Entry { path: &self.path, name, stat: *seen, mode: owned::mode_of(seen) };
            self.visit.hard_link(&entry, &first)?;
            self.remember(seen, first, left - 1);
            return Ok(());
        }
        let opened = if self.visit.reads() { self.open(at, name)? } else { self.look(at, name, seen)? };
        let Some((file, stat)) = opened else { return Ok(()) };
        let entry = Entry { path: &self.path, name, stat, mode: owned::mode_of(&stat) };
        if !self.visit.file(&entry, file)? || stat.st_nlink < 2 {
            return Ok(());
        }
        if self.held > MAX_NAMES {
            return self.visit.skipped(&self.path, Why::LinkAsCopy);
        }
        #[allow(clippy::unnecessary_cast, reason = "the width of this field differs between architectures")]
        let names = stat.st_nlink as u64;
        self.remember(&stat, self.path.clone(), names - 1);
        Ok(())
    }

    /// Keeps the first name of a file for as many others as are still to come.
    fn remember(&mut self, stat: &Stat, first: PathBuf, left: u64) {
        if left > 0 {
            self.held += cost(&first);
            self.names.insert((stat.st_dev, stat.st_ino), (first, left));
        }
    }

    fn look(&mut self, at: BorrowedFd<'_>, name: &OsStr, seen: &Stat) -> Result<Option<Found>, V::Error> {
        let own = rustix::process::geteuid().as_raw() == seen.st_uid;
        let denied = !own && rustix::fs::accessat(at, name, Access::READ_OK, AtFlags::EACCESS) == Err(Errno::ACCESS);
        if denied { self.skip(Why::Unreadable).map(|_| None) } else { Ok(Some((None, *seen))) }
    }

    /// `NONBLOCK`: a pipe that was put there since must not hold us.
    fn open(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Found>, V::Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match owned::open(at, Path::new(name), flags, Mode::empty(), RESOLVE) {
            Ok(file) => file.into_fd(),
            Err(Errno::ACCESS) => return self.skip(Why::Unreadable).map(|_| None),
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::ISDIR) => return Ok(None),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(regular.then(|| (Some(File::from(file)), stat)))
    }
}

/// Bytes that a name costs.
fn cost(name: &Path) -> usize {
    name.as_os_str().len() + 64
}

/// Whether a link at `at` (relative to a tree) leads to a place in the tree, by its words alone.
pub fn stays_inside(at: &Path, target: &OsStr) -> bool {
    let mut depth = at.components().count().saturating_sub(1);
    for part in target.as_bytes().split(|byte| *byte == b'/').enumerate() {
        match part {
            (0, b"") => return false,
            (_, b"" | b".") => {}
            (_, b"..") => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    true
}

/// The pieces of a file that are not holes, in order: offset and length, within `size` bytes.
///
/// # Errors
/// As lseek(2). A file system that knows no holes says that the file is one piece.
pub fn next_piece(file: &File, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::SeekFrom;
    if from >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) if start < size => start,
        // Nothing but a hole is left, or the file became shorter.
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some((from, size - from))),
        Err(errno) => return Err(errno.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok((end > start).then_some((start, end - start)))
}

/// A path of bytes.
pub fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}
