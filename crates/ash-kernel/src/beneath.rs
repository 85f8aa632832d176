//! Opens files only below a given directory.
//!
//! `openat2` with `RESOLVE_BENEATH` checks and opens a path in one step, so there is no race
//! between check and use. No link of any kind is followed: the owner of the tree (ashd, or a
//! payload) can create links, pipes and devices at any time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("does not exist")]
    NotFound,
    #[error("is or contains a link, which is never followed")]
    Link,
    #[error("leads out of its root directory")]
    Outside,
    #[error("is not a directory")]
    NotDirectory,
    #[error("is not a regular file")]
    NotRegular,
    #[error("belongs to uid {found}, not to uid {wanted}")]
    Owner { found: u32, wanted: u32 },
    #[error("was replaced while it was in use")]
    Exchanged,
    #[error("has mode {mode:o}, which gives other users access")]
    Open { mode: u32 },
    #[error("cannot be opened: {0}")]
    Io(io::Error),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Io(error) => error,
            Refused::NotFound => Self::new(io::ErrorKind::NotFound, refused),
            refused => Self::new(io::ErrorKind::PermissionDenied, refused),
        }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::NotFound,
            Errno::LOOP => Self::Link,
            Errno::XDEV => Self::Outside,
            Errno::NOTDIR => Self::NotDirectory,
            other => Self::Io(other.into()),
        }
    }
}

/// Opens a root directory from the caller's configuration. Links in the path are the
/// administrator's and are followed.
///
/// # Errors
/// As for openat(2).
pub fn root(path: &Path) -> Result<OwnedFd, Refused> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// A directory below `root`, as an `O_PATH` descriptor.
///
/// # Errors
/// [`Refused`] names the cause.
pub fn directory(root: impl AsFd, path: &Path) -> Result<OwnedFd, Refused> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(root, path, flags, Mode::empty(), RESOLVE)?)
}

/// Opens `path` below `root` with `flags`. The last component must not be a link either.
///
/// # Errors
/// [`Refused`] names the cause.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Refused> {
    Ok(openat2(root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), RESOLVE)?)
}

/// A regular file below `root`, as an `O_PATH` descriptor: FIFOs and devices are not triggered.
///
/// # Errors
/// [`Refused`] names the cause.
pub fn file(root: impl AsFd, path: &Path) -> Result<OwnedFd, Refused> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat2(root, path, flags, Mode::empty(), RESOLVE)?;
    regular(&file)?;
    Ok(file)
}

/// Refuses everything but regular files. Links are reported separately, because `O_PATH` opens the
/// link itself.
///
/// # Errors
/// [`Refused::Link`] or [`Refused::NotRegular`].
pub fn regular(file: impl AsFd) -> Result<(), Refused> {
    match FileType::from_raw_mode(fstat(file)?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(Refused::Link),
        _ => Err(Refused::NotRegular),
    }
}

/// Refuses a file that does not belong to `wanted`.
///
/// # Errors
/// [`Refused::Owner`].
pub fn owned_by(fd: impl AsFd, wanted: u32) -> Result<(), Refused> {
    let found = fstat(fd)?.st_uid;
    if found == wanted { Ok(()) } else { Err(Refused::Owner { found, wanted }) }
}

/// Refuses a directory that is accessible to users other than its owner.
///
/// # Errors
/// [`Refused::Open`].
pub fn closed(fd: impl AsFd) -> Result<(), Refused> {
    let mode = fstat(fd)?.st_mode & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(Refused::Open { mode }) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn word<T>(result: Result<T, Refused>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(Refused::NotFound) => "not found",
            Err(Refused::Link) => "link",
            Err(Refused::Outside) => "outside",
            Err(Refused::NotDirectory) => "not a directory",
            Err(Refused::NotRegular) => "not regular",
            Err(Refused::Owner { .. }) => "owner",
            Err(Refused::Exchanged) => "exchanged",
            Err(Refused::Open { .. }) => "open",
            Err(Refused::Io(_)) => "io",
        }
    }

    #[test]
    fn what_stands_at_a_path_decides() {
        let top = tempfile::tempdir().unwrap();
        let base = top.path();
        std::fs::create_dir_all(base.join("in/sub")).unwrap();
        std::fs::create_dir(base.join("out")).unwrap();
        std::fs::write(base.join("out/secret"), "s").unwrap();
        std::fs::write(base.join("in/sub/plain"), "p").unwrap();
        symlink("../out", base.join("in/dirlink")).unwrap();
        symlink("../out/secret", base.join("in/link")).unwrap();
        symlink("sub", base.join("in/inner")).unwrap();
        nix::unistd::mkfifo(&base.join("in/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(base.join("in/socket")).unwrap();
        let root = root(&base.join("in")).unwrap();
        for (path, as_file, as_directory) in [
            ("sub/plain", "ok", "not a directory"),
            ("sub", "not regular", "ok"),
            ("../out/secret", "outside", "outside"),
            ("sub/../../out", "outside", "outside"),
            ("/etc/passwd", "outside", "outside"),
            ("dirlink/secret", "link", "link"),
            ("dirlink", "link", "not a directory"),
            ("link", "link", "not a directory"),
            ("inner/plain", "link", "link"),
            ("pipe", "not regular", "not a directory"),
            ("socket", "not regular", "not a directory"),
            ("none", "not found", "not found"),
            ("", "not found", "not found"),
        ] {
            assert_eq!(word(file(&root, Path::new(path))), as_file, "{path:?} as a file");
            assert_eq!(word(directory(&root, Path::new(path))), as_directory, "{path:?} as a directory");
        }
        let magic = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&root));
        symlink(magic, base.join("in/magic")).unwrap();
        assert_eq!(word(directory(&root, Path::new("magic/sub"))), "link");
        let own = fstat(&root).unwrap().st_uid;
        assert_eq!(word(owned_by(&root, own)), "ok");
        assert_eq!(word(owned_by(&root, own + 1)), "owner");
    }

    /// Constantly exchanging a directory with a link never leads out of the root.
    #[test]
    fn a_race_with_a_link_is_never_lost() {
        let top = tempfile::tempdir().unwrap();
        let base = top.path().to_owned();
        std::fs::create_dir_all(base.join("in/d")).unwrap();
        std::fs::create_dir(base.join("out")).unwrap();
        std::fs::write(base.join("out/f"), "secret").unwrap();
        symlink("../out", base.join("in/l")).unwrap();
        let root = root(&base.join("in")).unwrap();
        let secret = fstat(std::fs::File::open(base.join("out/f")).unwrap()).unwrap().st_ino;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                while !stop.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, base.join("in/d"), CWD, base.join("in/l"), flags).unwrap();
                }
            });
            for _ in 0..20_000 {
                if let Ok(file) = file(&root, Path::new("d/f")) {
                    assert_ne!(fstat(&file).unwrap().st_ino, secret);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
