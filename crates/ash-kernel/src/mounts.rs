//! Mounts: detached trees from the launcher, attached by the child, and the file systems that the
//! child creates.
//!
//! ```text
//!   launcher                              child, in its own user and mount namespace
//!   open_tree(CLONE) + mount_setattr      tmpfs root, move_mount of each tree, proc, devpts,
//!   (read-only, nosuid, idmapped...)      pivot_root, umount of the host's tree
//! ```
//!
//! Cleanup is automatic: a detached tree ends with its descriptor, a mount with the namespace's
//! last process.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

pub use libc::{MOUNT_ATTR_IDMAP, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// A private, detached copy of the mount of `path` and the mounts below it, rooted at `path`.
/// `attributes` (`MOUNT_ATTR_*`) apply to all of it. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `ENOENT` if the path does not exist; see open_tree(2), mount_setattr(2).
pub fn detached(path: &CStr, attributes: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = mount::open_tree(rustix::fs::CWD, path, flags)?;
    set_attributes(tree.as_fd(), attributes, None)?;
    Ok(tree)
}

/// As [`detached`], for an open file or directory, without the mounts below it. `idmap` (a user
/// namespace) maps the ids of its files.
///
/// # Errors
/// `EINVAL` if the file system has no idmapped mounts.
pub fn detached_at(dir: BorrowedFd<'_>, attributes: u64, idmap: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = mount::open_tree(dir, c"", flags)?;
    set_attributes(tree.as_fd(), attributes, idmap)?;
    Ok(tree)
}

/// A read-only, detached overlay of two directories, `first` over `second`, without the mounts
/// below them. It shares the page cache of the files below. Its inodes are its own, so locks and
/// inotify watches do not reach other mounts. Needs `CAP_SYS_ADMIN` on the host: with less, an
/// overlay has no device files.
///
/// # Errors
/// `ENODEV` without overlayfs; `EINVAL` for a directory that cannot be below an overlay, such as
/// another overlay.
pub fn overlay(first: &str, second: &str) -> io::Result<OwnedFd> {
    let context = mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_set_string(context.as_fd(), c"lowerdir", format!("{first}:{second}"))?;
    mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
    Ok(mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn set_attributes(tree: BorrowedFd<'_>, attributes: u64, idmap: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes | if idmap.is_some() { MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        // A copy of a shared mount is its peer: later mounts of the host would appear inside.
        propagation: libc::MS_PRIVATE,
        userns_fd: idmap.map_or(0, |ns| ns.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: an empty path and a struct of the passed size, which both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn attach(tree: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    Ok(mount::move_mount(tree, c"", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Disables mount propagation from the namespace that this one was copied from.
pub fn make_all_private() -> io::Result<()> {
    Ok(mount::mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?)
}

/// A tmpfs with `options` such as `size=1m,mode=1777`. Its memory counts against the memory limit
/// of the cgroup.
pub fn tmpfs(target: &CStr, options: &CStr) -> io::Result<()> {
    Ok(mount::mount(c"tmpfs", target, c"tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)?)
}

/// The pid namespace's own /proc. Processes see only those that they may trace (`hidepid=2`,
/// proc(5)), so not init.
///
/// # Errors
/// `EPERM` if the host's own /proc is partly covered, as in many containers.
pub fn proc(target: &CStr) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount::mount(c"proc", target, c"proc", flags, c"hidepid=2")?)
}

/// A new instance of pseudo-terminals.
pub fn devpts(target: &CStr) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    Ok(mount::mount(c"devpts", target, c"devpts", flags, c"newinstance,ptmxmode=0666,mode=0620,max=64")?)
}

/// Binds a path of this namespace to another one, read-only.
pub fn bind_read_only(source: &CStr, target: &CStr) -> io::Result<()> {
    mount::mount_bind(source, target)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount::mount_remount(target, flags, c"")?)
}

/// Binds a path of this namespace to another one, with the flags of its mount.
pub fn bind(source: &CStr, target: &CStr) -> io::Result<()> {
    Ok(mount::mount_bind(source, target)?)
}

/// Makes the working directory (a mount point) the root, and detaches the old root.
pub fn pivot_to_here() -> io::Result<()> {
    // The old root is stacked on the new one and unmounted from there (pivot_root(2),
    // "pivot_root(".", ".")").
    rustix::process::pivot_root(c".", c".")?;
    mount::unmount(c".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir(c"/")?)
}

/// Makes the root mount read-only, but not the mounts on it.
pub fn seal_root() -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount::mount_remount(c"/", flags, c"")?)
}
