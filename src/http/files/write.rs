//! Writing into a workspace and deleting from it.
//!
//! A file is written under a name of its own in the directory it belongs to and put in place by one rename, both
//! relative to that directory's descriptor. So a reader sees the old file or the new one, a link with that name is
//! replaced and never followed, and a directory that is swapped for a link while the call runs changes nothing: the
//! descriptor stays where it is, in the workspace.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::beneath::{self, Refused};

/// Creates the directories that are missing on the way to `path` and opens the last one.
pub fn make_directory(root: &File, path: &Path) -> Result<File, Refused> {
    let mut open = beneath::directory(root, Path::new(""))?;
    for part in path.components() {
        let part = Path::new(part.as_os_str());
        match rustix::fs::mkdirat(&open, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Refused::from_errno(errno)),
        }
        open = match beneath::directory(&open, part) {
            // There is something of that name, and it is a file.
            Err(Refused::NotFound) => return Err(Refused::NotDirectory),
            other => other?,
        };
    }
    Ok(open)
}

/// Writes a whole file, with the directories it needs.
pub fn put(root: &File, path: &Path, mut content: impl Read, mode: u32) -> Result<(), Refused> {
    let (directory, name) = split(path)?;
    let directory = make_directory(root, directory)?;
    let staging = format!(".ash-{}", Uuid::new_v4());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let mut file = beneath::open(&directory, Path::new(&staging), flags, Mode::from_raw_mode(mode))?;
    let written = io::copy(&mut content, &mut file)
        .map_err(Refused::from)
        .and_then(|_| rustix::fs::renameat(&directory, &staging, &directory, name).map_err(Refused::from_errno));
    if written.is_err() {
        // The first error is the one to report.
        let _ = rustix::fs::unlinkat(&directory, &staging, AtFlags::empty());
    }
    written
}

/// Removes one file, or the link of that name itself. Directories are refused.
pub fn delete(root: &File, path: &Path) -> Result<(), Refused> {
    let (directory, name) = split(path)?;
    let directory = beneath::directory(root, directory)?;
    let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Refused::from_errno)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Refused::Directory);
    }
    rustix::fs::unlinkat(&directory, name, AtFlags::empty()).map_err(Refused::from_errno)
}

/// Makes a symbolic link; whoever stands there (but for a directory) is replaced.
pub fn link(root: &File, path: &Path, target: &Path) -> Result<(), Refused> {
    let (directory, name) = split(path)?;
    let directory = make_directory(root, directory)?;
    let staging = format!(".ash-{}", Uuid::new_v4());
    rustix::fs::symlinkat(target, &directory, &staging).map_err(Refused::from_errno)?;
    rustix::fs::renameat(directory.as_fd(), &staging, directory.as_fd(), name).map_err(|errno| {
        let _ = rustix::fs::unlinkat(&directory, &staging, AtFlags::empty());
        Refused::from_errno(errno)
    })
}

fn split(path: &Path) -> Result<(&Path, &Path), Refused> {
    let name = path.file_name().ok_or_else(|| Refused::Io(io::Error::other("a path without a file name")))?;
    Ok((path.parent().unwrap_or(Path::new("")), Path::new(name)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Space {
        temp: tempfile::TempDir,
        root: File,
    }

    fn space() -> Space {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("workspace/dir")).unwrap();
        std::fs::create_dir_all(temp.path().join("outside")).unwrap();
        std::fs::write(temp.path().join("outside/secret"), "untouched").unwrap();
        let root = beneath::root(&temp.path().join("workspace")).unwrap();
        Space { temp, root }
    }

    impl Space {
        fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.temp.path().join(path)).unwrap()
        }
        fn names(&self, path: &str) -> Vec<String> {
            let mut names: Vec<_> = std::fs::read_dir(self.temp.path().join(path))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn files_are_made_replaced_and_deleted() {
        let space = space();
        put(&space.root, Path::new("a/b/c.txt"), &b"one"[..], 0o644).unwrap();
        put(&space.root, Path::new("a/b/c.txt"), &b"two"[..], 0o644).unwrap();
        assert_eq!(space.read("workspace/a/b/c.txt"), "two");
        assert_eq!(space.names("workspace/a/b"), ["c.txt"]);
        delete(&space.root, Path::new("a/b/c.txt")).unwrap();
        assert!(space.names("workspace/a/b").is_empty());
        assert!(matches!(delete(&space.root, Path::new("a/b/c.txt")), Err(Refused::NotFound)));
        assert!(matches!(delete(&space.root, Path::new("dir")), Err(Refused::Directory)));
        assert!(matches!(put(&space.root, Path::new("dir"), &b""[..], 0o644), Err(Refused::Directory)));
        put(&space.root, Path::new("file"), &b""[..], 0o644).unwrap();
        let below = put(&space.root, Path::new("file/x"), &b""[..], 0o644).unwrap_err();
        assert!(matches!(below, Refused::NotDirectory), "{below}");
        assert_eq!(space.names("workspace"), ["a", "dir", "file"], "no staging file stays");
    }

    #[test]
    fn links_are_replaced_and_never_followed() {
        let space = space();
        let workspace = space.temp.path().join("workspace");
        symlink("../outside/secret", workspace.join("file-link")).unwrap();
        symlink("../outside", workspace.join("dir-link")).unwrap();
        put(&space.root, Path::new("file-link"), &b"mine"[..], 0o644).unwrap();
        assert_eq!(space.read("workspace/file-link"), "mine");
        assert!(!workspace.join("file-link").is_symlink());
        assert!(matches!(put(&space.root, Path::new("dir-link/x"), &b""[..], 0o644), Err(Refused::Link)));
        assert!(matches!(delete(&space.root, Path::new("dir-link/secret")), Err(Refused::Link)));
        assert!(matches!(put(&space.root, Path::new("../outside/x"), &b""[..], 0o644), Err(Refused::Outside)));
        delete(&space.root, Path::new("dir-link")).unwrap();
        assert_eq!(space.read("outside/secret"), "untouched");
        assert_eq!(space.names("outside"), ["secret"]);
    }

    #[test]
    fn a_directory_that_is_swapped_while_we_write_keeps_us_inside() {
        let space = space();
        let workspace = space.temp.path().join("workspace");
        symlink("../outside", workspace.join("link")).unwrap();
        let writing = std::sync::atomic::AtomicBool::new(true);
        let mut written = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while writing.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&space.root, "dir", &space.root, "link", flags).unwrap();
                }
            });
            for _ in 0..3_000 {
                written += usize::from(put(&space.root, Path::new("dir/secret"), &b"evil"[..], 0o644).is_ok());
                let _ = delete(&space.root, Path::new("dir/secret"));
            }
            writing.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(written > 0, "the race did not happen");
        assert_eq!(space.read("outside/secret"), "untouched");
        assert_eq!(space.names("outside"), ["secret"]);
    }
}
