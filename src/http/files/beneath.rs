//! Opens files in a workspace and nothing outside: `openat2` with `RESOLVE_BENEATH`, without links
//! of any kind and without crossing mounts. The kernel checks and opens in one step.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::error::ApiError;
use ash_kernel::owned::{self, Opened};

/// Why a path cannot be opened, for a text to the client.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("not found")]
    NotFound,
    #[error("goes through a symbolic link; links are not followed")]
    Link,
    #[error("leaves the workspace")]
    Outside,
    #[error("is a directory")]
    Directory,
    #[error("lies below a file")]
    NotDirectory,
    #[error("is not a regular file")]
    NotRegular,
    #[error("is a directory that is not empty; recursive=true deletes it with its contents")]
    NotEmpty,
    #[error("is nested deeper than 128 directories")]
    TooDeep,
    #[error("is not accessible: the file system denies it")]
    Denied,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Refused {
    pub fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Self::NotFound,
            Errno::LOOP => Self::Link,
            Errno::XDEV => Self::Outside,
            Errno::ISDIR => Self::Directory,
            Errno::NOTEMPTY => Self::NotEmpty,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            // A socket, or a FIFO without a reader.
            Errno::NXIO | Errno::NODEV => Self::NotRegular,
            other => Self::Io(other.into()),
        }
    }

    pub fn for_client(self, path: &str) -> ApiError {
        match self {
            Self::NotFound => ApiError::not_found(format!("File not found: {path}")),
            Self::Io(cause) if cause.kind() == io::ErrorKind::FileTooLarge => {
                ApiError::too_large(format!("path: \"{path}\" is larger than the file system allows"))
            }
            Self::Io(cause) => ApiError::disk("the file cannot be opened", &cause),
            other => ApiError::bad_request(format!("path: \"{path}\" {other}")),
        }
    }
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens the workspace itself. ashd chose its path, not the payload.
pub fn root(directory: &Path) -> io::Result<File> {
    Ok(ash_kernel::copy::directory(directory)?.into())
}

/// Opens beneath `root`. Files of ashd are opened whatever their mode is.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> Result<Opened, Refused> {
    owned::open(root, path, flags, mode, RESOLVE).map_err(Refused::from_errno)
}

/// Opens a regular file for reading and returns its size. `O_NONBLOCK`: a FIFO must not block
/// before it is refused.
pub fn read(root: impl AsFd, path: &Path) -> Result<(File, u64), Refused> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let file = File::from(open(root, path, flags, Mode::empty())?.into_fd());
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(Refused::Directory);
    }
    if !meta.is_file() {
        return Err(Refused::NotRegular);
    }
    Ok((file, meta.len()))
}

/// Inode and bytes on the disk of a file that a write to `path` replaces; `None` when it frees none.
pub fn replaced(root: impl AsFd, path: &Path) -> Option<(u64, u64)> {
    let file = open(root, path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(file.as_fd()).ok()?;
    let alone = FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_nlink == 1;
    alone.then(|| (stat.st_ino, u64::try_from(stat.st_blocks * 512).unwrap_or(0)))
}

/// Opens a directory. The empty path is the root.
pub fn directory(root: impl AsFd, path: &Path) -> Result<Opened, Refused> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // No O_NOFOLLOW: with it, a link at the end would be "not a directory" instead of a refused
    // link.
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn refusal(root: &File, path: &str) -> String {
        read(root, Path::new(path)).expect_err(path).to_string()
    }

    #[test]
    fn nothing_leaves_the_workspace() {
        let temp = tempfile::tempdir().unwrap();
        let space = temp.path().join("workspace");
        std::fs::create_dir_all(space.join("dir")).unwrap();
        std::fs::write(space.join("dir/file"), "inside").unwrap();
        std::fs::write(temp.path().join("secret"), "outside").unwrap();
        symlink("../secret", space.join("up")).unwrap();
        symlink("/etc/passwd", space.join("absolute")).unwrap();
        symlink("dir", space.join("alias")).unwrap();
        symlink("/proc/self/root", space.join("magic")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            space.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(space.join("socket")).unwrap();
        let root = root(&space).unwrap();
        assert_eq!(read(&root, Path::new("dir/file")).unwrap().1, 6);
        for (path, reason) in [
            ("../secret", "leaves the workspace"),
            ("dir/../../secret", "leaves the workspace"),
            ("/etc/passwd", "leaves the workspace"),
            ("up", "goes through a symbolic link; links are not followed"),
            ("absolute", "goes through a symbolic link; links are not followed"),
            ("alias/file", "goes through a symbolic link; links are not followed"),
            ("magic/etc/passwd", "goes through a symbolic link; links are not followed"),
            ("dir", "is a directory"),
            ("fifo", "is not a regular file"),
            ("socket", "is not a regular file"),
            ("nowhere", "not found"),
            ("dir/file/x", "not found"),
        ] {
            assert_eq!(refusal(&root, path), reason, "{path}");
        }
    }

    #[test]
    fn a_workspace_that_is_a_link_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        symlink("/etc", temp.path().join("workspace")).unwrap();
        assert!(root(&temp.path().join("workspace")).is_err());
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_never_shows_the_outside() {
        let temp = tempfile::tempdir().unwrap();
        let (space, outside) = (temp.path().join("workspace"), temp.path().join("outside"));
        for (dir, text) in [(&space.join("dir"), "inside"), (&outside, "outside")] {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(dir.join("file"), text).unwrap();
        }
        symlink(&outside, space.join("link")).unwrap();
        let root = root(&space).unwrap();
        let swapping = std::sync::atomic::AtomicBool::new(true);
        let (mut inside, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while swapping.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&root, "dir", &root, "link", flags).unwrap();
                }
            });
            for _ in 0..20_000 {
                match read(&root, Path::new("dir/file")) {
                    Ok((file, _)) => {
                        assert_eq!(io::read_to_string(file).unwrap(), "inside");
                        inside += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            swapping.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(inside > 0 && refused > 0, "the race did not happen: {inside} read, {refused} refused");
    }
}
