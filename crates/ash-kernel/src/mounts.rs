//! Mounts: detached trees made by the launcher, put in place by the child, and the few file systems the child makes.
//!
//! ```text
//!   launcher                              child, in its own user and mount namespace
//!   open_tree(CLONE) + mount_setattr      tmpfs root, move_mount of each tree, proc, devpts,
//!   (read-only, nosuid, idmapped...)      pivot_root, umount of the host's tree
//! ```
//!
//! The undo of all of it: a detached tree goes with its descriptor, a mount with the namespace's last process.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

pub use libc::{MOUNT_ATTR_IDMAP, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// A private copy of the mount (and those below it) that `path` is on, rooted at `path` and attached to nothing, with
/// `attributes` (`MOUNT_ATTR_*`) set on all of it. Needs `CAP_SYS_ADMIN` here.
///
/// # Errors
/// `ENOENT` when there is no such path; see open_tree(2), mount_setattr(2).
pub fn detached(path: &CStr, attributes: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = mount::open_tree(rustix::fs::CWD, path, flags)?;
    set_attributes(tree.as_fd(), attributes, None)?;
    Ok(tree)
}

/// As [`detached`], of a file or directory that is already open; without the mounts below it. With `idmap` (a user
/// namespace) the ids of its files are mapped by that namespace.
///
/// # Errors
/// `EINVAL` where the file system has no idmapped mounts.
pub fn detached_at(dir: BorrowedFd<'_>, attributes: u64, idmap: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = mount::open_tree(dir, c"", flags)?;
    set_attributes(tree.as_fd(), attributes, idmap)?;
    Ok(tree)
}

/// A read-only overlay of two directories, `first` over `second`, attached to nothing: the same files, with the page cache of the ones
/// below, and inodes of its own, so locks and inotify watches on them reach no other mount. Without the mounts below the two.
/// Needs `CAP_SYS_ADMIN` of the host: an overlay that is made with less has no device files.
///
/// # Errors
/// `ENODEV` without overlayfs; `EINVAL` where a directory cannot be below an overlay, such as an overlay on an overlay.
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
        // A copy of a shared mount is its peer: mounts made on the host later would appear inside.
        propagation: libc::MS_PRIVATE,
        userns_fd: idmap.map_or(0, |ns| ns.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: an empty path and a struct of the size that is passed, both outliving the call.
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

/// Puts a detached tree on the existing `target`.
pub fn attach(tree: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    Ok(mount::move_mount(tree, c"", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Cuts every mount of this namespace off from the namespace it was copied from.
pub fn make_all_private() -> io::Result<()> {
    Ok(mount::mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?)
}

/// A tmpfs; `options` such as `size=1m,mode=1777`. It is charged to the memory limit of the cgroup.
pub fn tmpfs(target: &CStr, options: &CStr) -> io::Result<()> {
    Ok(mount::mount(c"tmpfs", target, c"tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)?)
}

/// The pid namespace's own /proc, in which a process sees only those it may trace (`hidepid=2`, proc(5)): not init.
///
/// # Errors
/// `EPERM` where the host's own /proc is covered in part, as in many containers.
pub fn proc(target: &CStr) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount::mount(c"proc", target, c"proc", flags, c"hidepid=2")?)
}

/// Pseudo-terminals of its own.
pub fn devpts(target: &CStr) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    Ok(mount::mount(c"devpts", target, c"devpts", flags, c"newinstance,ptmxmode=0666,mode=0620,max=64")?)
}

/// Binds a path of this namespace onto another one, read-only.
pub fn bind_read_only(source: &CStr, target: &CStr) -> io::Result<()> {
    mount::mount_bind(source, target)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount::mount_remount(target, flags, c"")?)
}

/// Binds a path of this namespace onto another one, with the flags of the mount it is from.
pub fn bind(source: &CStr, target: &CStr) -> io::Result<()> {
    Ok(mount::mount_bind(source, target)?)
}

/// Makes the working directory (a mount point) the root, and drops everything that was reachable before.
pub fn pivot_to_here() -> io::Result<()> {
    // The old root is stacked on the new one and unmounted from there (pivot_root(2), "pivot_root(".", ".")").
    rustix::process::pivot_root(c".", c".")?;
    mount::unmount(c".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir(c"/")?)
}

/// Makes the root mount read-only, for itself and not for those on it.
pub fn seal_root() -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount::mount_remount(c"/", flags, c"")?)
}
