//! The parts of the host that appear in a sandbox, as detached mounts: made with the launcher's privilege, put in
//! place by the child.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::SetupSpec;
use super::steps::Steps;
use crate::kernel::mounts::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use crate::launcher::policy::{etc, landlock};
use crate::launcher::protocol::Failure;

/// The device files of a sandbox.
pub const DEVICES: [&CStr; 6] =
    [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom", c"/dev/tty"];

/// The program of [`crate::kernel::probe`].
const PROBE: &CStr = c"/opt/ashd/ash-probe";

/// What appears at a path of the new root.
#[derive(Debug)]
pub enum Part {
    Dir(OwnedFd),
    File(OwnedFd),
    Link(PathBuf),
}

#[derive(Debug)]
pub struct Trees {
    /// Absolute path inside, and what is there; in the order of mounting.
    pub system: Vec<(CString, Part)>,
    pub devices: Vec<OwnedFd>,
    pub workspace: OwnedFd,
    pub home: OwnedFd,
    pub claude: OwnedFd,
}

impl Trees {
    /// Opens all of them; they go with their descriptors.
    pub fn open(spec: &SetupSpec<'_>, idmap: BorrowedFd<'_>, steps: &mut Steps) -> Result<Self, Failure> {
        let read_only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        let own = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        let system = steps.run("open system trees", || system(read_only))?;
        let device = |path: &&CStr| mounts::detached(path, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
        let devices = steps.run("open devices", || DEVICES.iter().map(device).collect())?;
        let workspace = steps.run("open workspace", || mounts::detached_at(spec.workspace, own, Some(idmap)))?;
        let home = steps.run("open home", || mounts::detached_at(spec.home, own, Some(idmap)))?;
        let claude = steps.run("open claude", || mounts::detached_at(spec.claude, read_only, None))?;
        Ok(Self { system, devices, workspace, home, claude })
    }
}

/// `/usr`, what the host has of `/bin` and friends (a link or a directory), and the host's share of `/etc`.
fn system(read_only: u64) -> io::Result<Vec<(CString, Part)>> {
    let mut parts = vec![(c"/usr".to_owned(), Part::Dir(mounts::detached(c"/usr", read_only)?))];
    for path in landlock::UNMERGED {
        let Ok(meta) = Path::new(path).symlink_metadata() else { continue };
        let name = CString::new(*path)?;
        let part = if meta.is_symlink() {
            Part::Link(std::fs::read_link(path)?)
        } else {
            Part::Dir(mounts::detached(&name, read_only)?)
        };
        parts.push((name, part));
    }
    for (path, _why) in etc::FROM_HOST {
        // Follows links: /etc/localtime is one, and appears as the file it names.
        let Ok(meta) = Path::new(path).metadata() else { continue };
        let name = CString::new(*path)?;
        let tree = mounts::detached(&name, read_only | MOUNT_ATTR_NOEXEC)?;
        parts.push((name, if meta.is_dir() { Part::Dir(tree) } else { Part::File(tree) }));
    }
    // Beside the launcher's own program. Without it no session starts: what was not measured is not believed.
    if let Some(probe) = std::env::current_exe().ok().map(|exe| exe.with_file_name("ash-probe")).filter(|p| p.is_file())
    {
        let tree = mounts::detached(&CString::new(probe.into_os_string().into_vec())?, read_only)?;
        parts.push((PROBE.to_owned(), Part::File(tree)));
    }
    Ok(parts)
}
