//! Copies a directory of an agent or of a session: its files, directories and harmless links, and nothing else.
//!
//! The source may belong to a hostile payload that changes it meanwhile. So the walk holds descriptors and never
//! follows a link: each name is opened relative to its directory with `O_NOFOLLOW`, and looked at after it was opened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

/// Bounds of one copy. At a bound the copy fails and says which.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of all files together (their length, holes included).
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

/// Directories below one another.
const MAX_DEPTH: usize = 128;

/// What was copied and what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub bytes: u64,
    pub entries: u64,
    /// Links that lead out of the tree, sockets, FIFOs, devices.
    pub skipped: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("it holds more than {} MiB", .0 >> 20)]
    TooLarge(u64),
    #[error("it holds more than {0} files and directories")]
    TooMany(u64),
    #[error("{0}: more than {MAX_DEPTH} directories deep")]
    TooDeep(String),
}

/// Copies what is in `from` into the existing directory `to`. Blocks: call it on a blocking thread.
pub fn copy_tree(from: &Path, to: &Path, bounds: Bounds) -> Result<Copied, CopyError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The agent's own directory may be reached through links (`current -> v3`): an admin named it.
    let source = rustix::fs::openat(CWD, from, flags, Mode::empty()).map_err(at(from))?;
    let target = rustix::fs::openat(CWD, to, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(at(to))?;
    let mut walk = Walk { bounds, done: Copied::default() };
    walk.directory(source.as_fd(), target.as_fd(), Path::new(""), 0)?;
    Ok(walk.done)
}

struct Walk {
    bounds: Bounds,
    done: Copied,
}

impl Walk {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
        depth: usize,
    ) -> Result<(), CopyError> {
        if depth > MAX_DEPTH {
            return Err(CopyError::TooDeep(path.display().to_string()));
        }
        for entry in Dir::read_from(from).map_err(at(path))? {
            let entry = entry.map_err(at(path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let here = path.join(name.to_string_lossy().as_ref());
            self.done.entries += 1;
            if self.done.entries > self.bounds.entries {
                return Err(CopyError::TooMany(self.bounds.entries));
            }
            let stat = match rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => continue,
                other => other.map_err(at(&here))?,
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let inner = rustix::fs::openat(from, name, flags, Mode::empty()).map_err(at(&here))?;
                    // Writable for us while it is filled, whatever the source says.
                    let mode = Mode::from_raw_mode(stat.st_mode & 0o777) | Mode::RWXU;
                    rustix::fs::mkdirat(to, name, mode).map_err(at(&here))?;
                    let outer = rustix::fs::openat(to, name, flags, Mode::empty()).map_err(at(&here))?;
                    self.directory(inner.as_fd(), outer.as_fd(), &here, depth + 1)?;
                }
                FileType::RegularFile => self.file(from, to, name, &here)?,
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(from, name, Vec::new()).map_err(at(&here))?;
                    if stays_inside(path, Path::new(&*target.to_string_lossy())) {
                        rustix::fs::symlinkat(&target, to, name).map_err(at(&here))?;
                    } else {
                        self.done.skipped += 1;
                    }
                }
                _ => self.done.skipped += 1,
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        here: &Path,
    ) -> Result<(), CopyError> {
        // NONBLOCK: a FIFO put there between the look and the open must not hold us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let source: OwnedFd = rustix::fs::openat(from, name, flags, Mode::empty()).map_err(at(here))?;
        let stat = rustix::fs::fstat(&source).map_err(at(here))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.done.skipped += 1;
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777) | Mode::RUSR | Mode::WUSR;
        let target = File::from(rustix::fs::openat(to, name, flags, mode).map_err(at(here))?);
        let left = self.bounds.bytes - self.done.bytes;
        if u64::try_from(stat.st_size).is_ok_and(|size| size > left) {
            return Err(CopyError::TooLarge(self.bounds.bytes));
        }
        // std copies between files inside the kernel (copy_file_range), which shares extents where the file system can.
        // One byte more than may be: a file that grows meanwhile is caught.
        let copied = io::copy(&mut io::Read::take(File::from(source), left + 1), &mut &target)
            .map_err(|source| CopyError::Io { path: here.display().to_string(), source })?;
        if copied > left {
            return Err(CopyError::TooLarge(self.bounds.bytes));
        }
        self.done.bytes += copied;
        Ok(())
    }
}

/// Whether a link in directory `at` (relative to the tree) leads to a place in the tree, by its words alone.
fn stays_inside(at: &Path, target: &Path) -> bool {
    let mut depth = at.components().count();
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

fn at(path: &Path) -> impl Fn(rustix::io::Errno) -> CopyError + '_ {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    move |errno| CopyError::Io { path: path.display().to_string(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_are_judged_by_where_they_lead() {
        for (at, target, want) in [
            ("", "a", true),
            ("", "../a", false),
            ("d", "../a", true),
            ("d", "../../a", false),
            ("d/e", "../../a/./b", true),
            ("", "/etc/passwd", false),
            ("", "a/../../b", false),
        ] {
            assert_eq!(stays_inside(Path::new(at), Path::new(target)), want, "{at} -> {target}");
        }
    }

    fn trees() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        (temp, from, to)
    }

    #[test]
    fn copies_what_is_harmless_and_leaves_the_rest() {
        let (_temp, from, to) = trees();
        std::fs::create_dir(from.join("d")).unwrap();
        std::fs::write(from.join("d/run.sh"), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(from.join("d/run.sh"), PermissionsExt::from_mode(0o4755)).unwrap();
        symlink("d/run.sh", from.join("inside")).unwrap();
        symlink("/etc/passwd", from.join("outside")).unwrap();
        rustix::fs::mknodat(CWD, from.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let copied = copy_tree(&from, &to, Bounds::default()).unwrap();
        assert_eq!(copied, Copied { bytes: 10, entries: 5, skipped: 2 });
        assert_eq!(std::fs::read_to_string(to.join("inside")).unwrap(), "#!/bin/sh\n");
        let mode = to.join("d/run.sh").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777 & 0o4700, 0o700, "no setuid bit");
        assert!(!to.join("outside").exists() && !to.join("fifo").exists());
    }

    #[test]
    fn bounds_are_errors_that_say_so() {
        let (_temp, from, to) = trees();
        std::fs::write(from.join("a"), [0; 100]).unwrap();
        let small = Bounds { bytes: 99, entries: 9 };
        assert!(matches!(copy_tree(&from, &to, small), Err(CopyError::TooLarge(99))));
        std::fs::remove_file(to.join("a")).unwrap();
        std::fs::write(from.join("b"), "").unwrap();
        assert!(matches!(copy_tree(&from, &to, Bounds { bytes: 100, entries: 1 }), Err(CopyError::TooMany(1))));
    }

    #[test]
    fn a_missing_source_is_named() {
        let (_temp, from, to) = trees();
        let text = copy_tree(&from.join("none"), &to, Bounds::default()).unwrap_err().to_string();
        assert!(text.contains("from/none") && text.contains("No such file"), "{text}");
    }
}
