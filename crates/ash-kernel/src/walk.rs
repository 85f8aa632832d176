//! Walks a directory tree that an untrusted program may change meanwhile, for copies and archives.
//!
//! The walk holds only the descriptors of the current directory and those above it: a directory can
//! have any number of entries. Each name is opened relative to its directory, without following
//! links, and the opened file is checked. Files of this process's user are read whatever their mode
//! ([`super::owned`]).

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

pub const MAX_DEPTH: usize = 128;
/// Most bytes of memory to find hard links.
const MAX_NAMES: usize = 16 << 20;

pub const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

#[derive(Debug)]
pub struct Entry<'a> {
    /// Relative to the root of the walk.
    pub path: &'a Path,
    pub name: &'a OsStr,
    pub stat: Stat,
    /// The intended permission bits, including setuid, setgid and sticky.
    pub mode: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Socket,
    Fifo,
    Device,
    /// It belongs to another user and is not readable.
    Unreadable,
    TooDeep,
    /// Included, as a separate file.
    LinkAsCopy,
}

impl Why {
    pub fn text(self) -> &'static str {
        match self {
            Self::Socket => "a socket",
            Self::Fifo => "a named pipe",
            Self::Device => "a device",
            Self::Unreadable => "not readable by ashd: it belongs to another user",
            Self::TooDeep => "more than 128 directories deep",
            Self::LinkAsCopy => "a hard link, kept as a separate file: the tree has too many hard links",
        }
    }
}

/// The visitor of a walk. Each file is visited once by its first name; other names follow as hard
/// links.
pub trait Visit {
    type Error: From<io::Error>;

    /// Whether files are opened. Otherwise the walk only checks whether they can be.
    fn reads(&self) -> bool {
        true
    }

    /// Called before the entries of a directory. `false`: skip it.
    ///
    /// # Errors
    /// Ends the walk.
    fn directory(&mut self, entry: &Entry<'_>) -> Result<bool, Self::Error>;

    /// Called after the entries of a directory.
    ///
    /// # Errors
    /// Ends the walk.
    fn leave(&mut self, entry: &Entry<'_>) -> Result<(), Self::Error>;

    /// A regular file, open for reading if [`Visit::reads`] is true. `false`: it is omitted, and
    /// its other names are visited as files.
    ///
    /// # Errors
    /// Ends the walk.
    fn file(&mut self, entry: &Entry<'_>, file: Option<File>) -> Result<bool, Self::Error>;

    /// Another name of the file at `first`.
    ///
    /// # Errors
    /// Ends the walk.
    fn hard_link(&mut self, entry: &Entry<'_>, first: &Path) -> Result<(), Self::Error>;

    /// # Errors
    /// Ends the walk.
    fn symlink(&mut self, entry: &Entry<'_>, target: &OsStr) -> Result<(), Self::Error>;

    /// # Errors
    /// Ends the walk.
    fn skipped(&mut self, path: &Path, why: Why) -> Result<(), Self::Error>;
}

/// An opened file, if any, and its metadata.
type Found = (Option<File>, Stat);

struct Level {
    entries: Dir,
    open: Opened,
    name: OsString,
    stat: Stat,
    mode: u32,
}

/// Walks everything below `root`, in directory order. Entries that vanish meanwhile are ignored.
///
/// # Errors
/// Errors of `visit` and I/O errors.
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
    /// Files with several names: the first name, and the number of names still to come.
    names: HashMap<(u64, u64), (PathBuf, u64)>,
    held: usize,
}

impl<V: Visit> Walk<'_, V> {
    /// Handles one name. Returns a directory to walk next, with `self.path` pointing to it.
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
            // Removed or replaced since it was listed.
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

    /// Remembers the first name of a file until its other names are found.
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

    /// `NONBLOCK`: a pipe in its place must not block the walk.
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

fn cost(name: &Path) -> usize {
    name.as_os_str().len() + 64
}

/// Whether the text of a link at `at` (relative to a tree) leads to a target in the tree.
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

/// The data pieces of a file, in order: offset and length, within `size` bytes.
///
/// # Errors
/// As for lseek(2). A file system without holes reports one piece.
pub fn next_piece(file: &File, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::SeekFrom;
    if from >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) if start < size => start,
        // Only a hole is left, or the file became shorter.
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

pub fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}
