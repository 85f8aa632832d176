//! Shows the host's files through an overlay per sandbox: contents and page cache are shared,
//! inodes are not.
//!
//! A bind mount shows the host's inodes, and their state is shared with everyone who can read the
//! file, even on a read-only mount: `flock(2)` and `fcntl(2)` locks, and inotify watches. A sandbox
//! could see what others open and run, and slow them down (128 watches on the C library make each
//! program start eight times as long, everywhere on the host).
//!
//! ```text
//!   launcher  overlay of /dev over / --open_tree--> /usr, /etc/..., null, tty, claude
//!                                                   descriptors on the detached overlay
//!   child     attaches the overlay to the old root, clones each of them, moves it to its place
//! ```

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use ash_kernel::mounts;

/// The two file systems with all shown host files. `/dev` is first, so `null` is `/dev/null`.
const DEV: &str = "/dev";
const ROOT: &str = "/";

/// The overlay of one sandbox. Paths on other mounts are not in it, and are shown as bind mounts.
#[derive(Debug)]
pub struct View {
    tree: OwnedFd,
    root: u64,
    dev: u64,
}

#[derive(Debug)]
pub enum Source {
    /// A detached tree, ready to be attached.
    Tree(OwnedFd),
    /// An entry of the [`View`], and its mount attributes (`MOUNT_ATTR_*`). It can be cloned while
    /// the view is attached.
    Seen(OwnedFd, u64),
}

impl Source {
    pub fn attach(&self, target: &CStr) -> io::Result<()> {
        match self {
            Self::Tree(tree) => mounts::attach(tree.as_fd(), target),
            Self::Seen(at, attributes) => {
                mounts::attach(mounts::detached_at(at.as_fd(), *attributes, None)?.as_fd(), target)
            }
        }
    }
}

impl View {
    /// # Errors
    /// As for [`mounts::overlay`].
    pub fn open() -> io::Result<Self> {
        let (root, dev) = (mount_of(Path::new(ROOT))?, mount_of(Path::new(DEV))?);
        Ok(Self { tree: mounts::overlay(DEV, ROOT)?, root, dev })
    }

    /// Attaches all of it to `target`, where it must stay while sources in it are attached.
    pub fn attach(&self, target: &CStr) -> io::Result<()> {
        mounts::attach(self.tree.as_fd(), target)
    }

    /// Finds an absolute path of the host, following links.
    fn find(&self, path: &Path) -> Option<OwnedFd> {
        let path = path.canonicalize().ok()?;
        let mount = mount_of(&path).ok()?;
        let inside = if mount == self.root {
            path.strip_prefix(ROOT).ok()?
        } else if mount == self.dev {
            path.strip_prefix(DEV).ok()?
        } else {
            return None;
        };
        rustix::fs::openat(&self.tree, inside, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()
    }
}

/// A path of the host with `attributes`: from the view if it contains the path, otherwise a bind
/// mount with all mounts below.
///
/// # Errors
/// As for [`mounts::detached`].
pub fn source(view: Option<&View>, path: &Path, attributes: u64) -> io::Result<Source> {
    match view.and_then(|view| view.find(path)) {
        Some(at) => Ok(Source::Seen(at, attributes)),
        None => Ok(Source::Tree(mounts::detached(&CString::new(path.as_os_str().as_bytes())?, attributes)?)),
    }
}

/// The same for an open file. The view's entry is used only if it is the same file.
///
/// # Errors
/// As for [`mounts::detached_at`].
pub fn source_of(view: Option<&View>, file: BorrowedFd<'_>, attributes: u64) -> io::Result<Source> {
    let seen = view.and_then(|view| view.find(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))));
    if let Some(at) = seen {
        let (here, there) = (rustix::fs::fstat(file)?, rustix::fs::fstat(&at)?);
        // The overlay reports the inode number and times of the underlying file.
        if (here.st_ino, here.st_size, here.st_ctime, here.st_ctime_nsec)
            == (there.st_ino, there.st_size, there.st_ctime, there.st_ctime_nsec)
        {
            return Ok(Source::Seen(at, attributes));
        }
    }
    Ok(Source::Tree(mounts::detached_at(file, attributes, None)?))
}

/// The host's mount points strictly below one of `directories`, without those below another of
/// them. An overlay does not show them.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn mounts_below(directories: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    Ok(points_below(&std::fs::read("/proc/self/mountinfo")?, directories))
}

fn points_below(mountinfo: &[u8], directories: &[PathBuf]) -> Vec<PathBuf> {
    // Column 5 (proc_pid_mountinfo(5)).
    let points = mountinfo.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape);
    let below = |point: &PathBuf| directories.iter().any(|dir| point.starts_with(dir) && point != dir);
    let mut points: Vec<PathBuf> = points.filter(below).collect();
    points.sort();
    points.dedup_by(|later, earlier| later.starts_with(earlier));
    points
}

/// Decodes the kernel's octal escapes: space, tab, newline, backslash.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

fn mount_of(path: &Path) -> io::Result<u64> {
    // STATX_MNT_ID, Linux 5.8.
    let wanted = StatxFlags::from_bits_retain(libc::STATX_MNT_ID);
    let found = rustix::fs::statx(rustix::fs::CWD, OsStr::new(path), AtFlags::empty(), wanted)?;
    if found.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    Ok(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_those_strictly_below_and_the_outermost() {
        let text = b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /usr rw - ext4 a rw\n3 2 8:3 / /usr/local\\040x rw - ext4 a rw\n\
            4 3 8:4 / /usr/local\\040x/y rw - ext4 a rw\n5 1 8:5 / /usrx rw - ext4 a rw\n6 1 8:6 / /var rw - ext4 a rw\n";
        assert_eq!(points_below(text, &["/usr".into()]), [PathBuf::from("/usr/local x")]);
        assert_eq!(points_below(text, &["/usr".into(), "/etc".into()]).len(), 1);
        assert!(points_below(text, &[]).is_empty());
        assert!(points_below(b"", &["/usr".into()]).is_empty());
    }
}
