//! Writes into a workspace and deletes from it.
//!
//! A file is written under a temporary name in its directory and renamed into place, both relative
//! to that directory's descriptor. So a reader sees the old file or the new one, and a link with
//! that name is replaced and never followed. If the directory is exchanged for a link meanwhile,
//! the descriptor still refers to the directory in the workspace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timestamps};
use rustix::io::Errno;
use uuid::Uuid;

use super::beneath::{self, Refused};
use ash_kernel::owned::{self, Opened};
use ash_kernel::walk::MAX_DEPTH;

/// The permission bits of what is written.
#[derive(Clone, Copy, Debug)]
pub enum Bits {
    Set(u32),
    /// Keep those of the replaced file; these for a new file.
    KeepOr(u32),
}

/// Creates missing directories of `path` and opens the last one.
pub fn make_directory(root: &File, path: &Path) -> Result<Opened, Refused> {
    let mut open = beneath::directory(root, Path::new(""))?;
    for part in path.components() {
        let part = Path::new(part.as_os_str());
        let made = match rustix::fs::mkdirat(open.as_fd(), part, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(Refused::from_errno(errno)),
        };
        open = match beneath::directory(&open, part) {
            // An entry with that name exists and is a file.
            Err(Refused::NotFound) => return Err(Refused::NotDirectory),
            other => other?,
        };
        if made {
            // A new directory inherits the setgid bit of its parent; those of ashd have none.
            rustix::fs::fchmod(open.as_fd(), Mode::from_raw_mode(0o755)).map_err(Refused::from_errno)?;
        }
    }
    Ok(open)
}

/// Writes a whole file with `fill`, and creates its directories.
pub fn put_with(
    root: &File,
    path: &Path,
    bits: Bits,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), Refused> {
    let (directory, name) = split(path)?;
    let directory = make_directory(root, directory)?;
    let directory = directory.as_fd();
    let staging = format!(".ash-{}", Uuid::new_v4());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = beneath::open(directory, Path::new(&staging), flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file.into_fd());
    let mode = match (bits, rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)) {
        (Bits::KeepOr(_), Ok(old)) if is(&old, FileType::RegularFile) => owned::mode_of(&old),
        (Bits::Set(mode) | Bits::KeepOr(mode), _) => mode,
    };
    let written = rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))
        .map_err(Refused::from_errno)
        .and_then(|()| fill(&mut file).map_err(Refused::from))
        .and_then(|()| rustix::fs::renameat(directory, &staging, directory, name).map_err(Refused::from_errno));
    if written.is_err() {
        // Report the first error, not one of the clean-up.
        let _ = rustix::fs::unlinkat(directory, &staging, AtFlags::empty());
    }
    written
}

/// Writes a whole file, and creates its directories.
pub fn put(root: &File, path: &Path, content: &[u8], bits: Bits) -> Result<(), Refused> {
    put_with(root, path, bits, |file| io::Write::write_all(file, content))
}

/// Writes a whole file into `directory` under the first of `names` that is free, and returns its
/// path. The content is written once.
pub fn put_new(
    root: &File,
    directory: &Path,
    names: impl Iterator<Item = String>,
    content: &[u8],
    mode: u32,
) -> Result<Option<PathBuf>, Refused> {
    let open = make_directory(root, directory)?;
    let staging = format!(".ash-{}", Uuid::new_v4());
    put(root, &directory.join(&staging), content, Bits::Set(mode))?;
    let mut placed = Ok(None);
    for name in names {
        // Unlike a rename, this never replaces an entry.
        match rustix::fs::linkat(open.as_fd(), &staging, open.as_fd(), &name, AtFlags::empty()) {
            Ok(()) => placed = Ok(Some(directory.join(name))),
            Err(Errno::EXIST) => continue,
            Err(errno) => placed = Err(Refused::from_errno(errno)),
        }
        break;
    }
    let _ = rustix::fs::unlinkat(open.as_fd(), &staging, AtFlags::empty());
    placed
}

/// Removes a file, a link itself, or an empty directory; with `recursive` a directory and its
/// contents.
pub fn delete(root: &File, path: &Path, recursive: bool) -> Result<(), Refused> {
    let (directory, name) = split(path)?;
    let directory = beneath::directory(root, directory)?;
    let directory = directory.as_fd();
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Refused::from_errno)?;
    if !is(&stat, FileType::Directory) {
        return rustix::fs::unlinkat(directory, name, AtFlags::empty()).map_err(Refused::from_errno);
    }
    // A program of the session may add entries meanwhile.
    let mut tries = 0;
    loop {
        if recursive {
            empty(beneath::directory(directory, name)?)?;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) if recursive && tries < 8 => tries += 1,
            other => return other.map_err(Refused::from_errno),
        }
    }
}

/// Removes the contents of a directory. Links are removed, not followed.
fn empty(top: Opened) -> Result<(), Refused> {
    // For each directory on the path: its descriptor, its entries, and its name in its parent.
    let entries = Dir::read_from(top.as_fd()).map_err(Refused::from_errno)?;
    let mut way: Vec<(Opened, Dir, PathBuf)> = vec![(top, entries, PathBuf::new())];
    loop {
        let depth = way.len();
        let Some((open, entries, _)) = way.last_mut() else { return Ok(()) };
        let (here, next) = (open.as_fd(), entries.next());
        let Some(entry) = next else {
            let Some((_, _, name)) = way.pop() else { return Ok(()) };
            let Some((above, ..)) = way.last() else { return Ok(()) };
            match rustix::fs::unlinkat(above.as_fd(), &name, AtFlags::REMOVEDIR) {
                // Entries added meanwhile are left to the next try.
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => continue,
                Err(errno) => return Err(Refused::from_errno(errno)),
            }
        };
        let entry = entry.map_err(Refused::from_errno)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) if depth > MAX_DEPTH => return Err(Refused::TooDeep),
            Err(Errno::ISDIR) => {
                let path = ash_kernel::walk::path_of(name.to_bytes().to_vec());
                match beneath::directory(here, &path) {
                    Ok(inner) => {
                        let entries = Dir::read_from(inner.as_fd()).map_err(Refused::from_errno)?;
                        way.push((inner, entries, path));
                    }
                    Err(Refused::NotFound | Refused::Link | Refused::NotDirectory) => {}
                    Err(why) => return Err(why),
                }
            }
            Err(errno) => return Err(Refused::from_errno(errno)),
        }
    }
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// Creates a symbolic link; replaces an existing entry except a directory.
pub fn link(root: &File, path: &Path, target: &Path, times: Timestamps) -> Result<(), Refused> {
    place(root, path, |directory, staging| {
        rustix::fs::symlinkat(target, directory, staging)?;
        rustix::fs::utimensat(directory, staging, &times, AtFlags::SYMLINK_NOFOLLOW)
    })
}

/// Gives the file at `first` another name; replaces an existing entry except a directory.
pub fn hard_link(root: &File, path: &Path, first: &Path) -> Result<(), Refused> {
    let (above, old) = split(first)?;
    let above = beneath::directory(root, above)?;
    place(root, path, |directory, staging| rustix::fs::linkat(above.as_fd(), old, directory, staging, AtFlags::empty()))
}

/// Creates an entry under a temporary name and moves it into place.
fn place(
    root: &File,
    path: &Path,
    make: impl FnOnce(BorrowedFd<'_>, &str) -> Result<(), Errno>,
) -> Result<(), Refused> {
    let (directory, name) = split(path)?;
    let directory = make_directory(root, directory)?;
    let directory = directory.as_fd();
    let staging = format!(".ash-{}", Uuid::new_v4());
    let made = make(directory, &staging).and_then(|()| rustix::fs::renameat(directory, &staging, directory, name));
    // It still exists when the rename failed, and when both names are the same file.
    let _ = rustix::fs::unlinkat(directory, &staging, AtFlags::empty());
    made.map_err(Refused::from_errno)
}

/// Sets mode and times of a directory that is complete.
pub fn finish_directory(root: &File, path: &Path, mode: u32, times: Timestamps) -> Result<(), Refused> {
    // `open` restores a mode when it is dropped, so it goes before the new mode is set.
    let open = beneath::directory(root, path)?;
    let own = open.as_fd().try_clone_to_owned().map_err(Refused::Io)?;
    drop(open);
    let mode = Mode::from_raw_mode(mode & 0o777);
    rustix::fs::fchmod(&own, mode).and_then(|()| rustix::fs::futimens(&own, &times)).map_err(Refused::from_errno)
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
        put(&space.root, Path::new("a/b/c.txt"), b"one", Bits::KeepOr(0o644)).unwrap();
        put(&space.root, Path::new("a/b/c.txt"), b"two", Bits::KeepOr(0o644)).unwrap();
        assert_eq!(space.read("workspace/a/b/c.txt"), "two");
        assert_eq!(space.names("workspace/a/b"), ["c.txt"]);
        delete(&space.root, Path::new("a/b/c.txt"), false).unwrap();
        assert!(space.names("workspace/a/b").is_empty());
        assert!(matches!(delete(&space.root, Path::new("a/b/c.txt"), false), Err(Refused::NotFound)));
        assert!(matches!(put(&space.root, Path::new("dir"), b"", Bits::Set(0o644)), Err(Refused::Directory)));
        put(&space.root, Path::new("file"), b"", Bits::Set(0o644)).unwrap();
        let below = put(&space.root, Path::new("file/x"), b"", Bits::Set(0o644)).unwrap_err();
        assert!(matches!(below, Refused::NotDirectory), "{below}");
        assert_eq!(space.names("workspace"), ["a", "dir", "file"], "no staging file stays");
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let space = space();
        let at = space.temp.path().join("workspace/run.sh");
        std::fs::write(&at, "old").unwrap();
        let mode = |at: &Path| std::fs::metadata(at).unwrap().permissions().mode() & 0o7777;
        for (before, bits, after) in
            [(0o755, Bits::KeepOr(0o644), 0o755), (0o600, Bits::KeepOr(0o644), 0o600), (0o600, Bits::Set(0o750), 0o750)]
        {
            std::fs::set_permissions(&at, PermissionsExt::from_mode(before)).unwrap();
            put(&space.root, Path::new("run.sh"), b"new", bits).unwrap();
            assert_eq!(mode(&at), after);
        }
        put(&space.root, Path::new("fresh"), b"", Bits::KeepOr(0o644)).unwrap();
        assert_eq!(mode(&at.with_file_name("fresh")), 0o644);
    }

    #[test]
    fn directories_go_when_they_are_empty_or_with_all_that_is_in_them() {
        let space = space();
        let workspace = space.temp.path().join("workspace");
        std::fs::create_dir_all(workspace.join("full/a/b")).unwrap();
        std::fs::write(workspace.join("full/a/file"), "x").unwrap();
        symlink("../../outside", workspace.join("full/out")).unwrap();
        symlink("/", workspace.join("full/a/b/root")).unwrap();
        assert!(matches!(delete(&space.root, Path::new("full"), false), Err(Refused::NotEmpty)));
        assert_eq!(space.names("workspace/full"), ["a", "out"], "nothing was deleted");
        delete(&space.root, Path::new("full"), true).unwrap();
        delete(&space.root, Path::new("dir"), false).unwrap();
        assert!(space.names("workspace").is_empty());
        assert_eq!(space.read("outside/secret"), "untouched");
        std::fs::create_dir_all(workspace.join("d/".repeat(200))).unwrap();
        assert!(matches!(delete(&space.root, Path::new("d"), true), Err(Refused::TooDeep)));
    }

    #[test]
    fn links_are_replaced_and_never_followed() {
        let space = space();
        let workspace = space.temp.path().join("workspace");
        symlink("../outside/secret", workspace.join("file-link")).unwrap();
        symlink("../outside", workspace.join("dir-link")).unwrap();
        put(&space.root, Path::new("file-link"), b"mine", Bits::KeepOr(0o644)).unwrap();
        assert_eq!(space.read("workspace/file-link"), "mine");
        assert!(!workspace.join("file-link").is_symlink());
        assert!(matches!(put(&space.root, Path::new("dir-link/x"), b"", Bits::Set(0o644)), Err(Refused::Link)));
        assert!(matches!(delete(&space.root, Path::new("dir-link/secret"), false), Err(Refused::Link)));
        assert!(matches!(put(&space.root, Path::new("../outside/x"), b"", Bits::Set(0o644)), Err(Refused::Outside)));
        delete(&space.root, Path::new("dir-link"), false).unwrap();
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
            // A write succeeds only if the directory is there at each of its steps, which is rare
            // while the other thread has a core alone.
            let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
            let mut rounds = 0;
            while rounds < 3_000 || (written == 0 && std::time::Instant::now() < until) {
                rounds += 1;
                written += usize::from(put(&space.root, Path::new("dir/secret"), b"evil", Bits::Set(0o644)).is_ok());
                let _ = delete(&space.root, Path::new("dir/secret"), false);
            }
            writing.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(written > 0, "the race did not happen");
        assert_eq!(space.read("outside/secret"), "untouched");
        assert_eq!(space.names("outside"), ["secret"]);
    }
}
