//! The parts of the host shown in a sandbox, as detached mounts: created with the launcher's
//! privileges, attached by the child.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::SetupSpec;
use super::host_etc::{self, Shown};
use super::steps::Steps;
use super::view::{self, Source, View};
use crate::policy::{landlock, processes};
use ash_kernel::cgroup::Leaf;
use ash_kernel::mounts::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use ash_protocol::launcher::Failure;

pub const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// The program of [`ash_kernel::probe`].
const PROBE: &CStr = c"/opt/ashd/ash-probe";

#[derive(Debug)]
pub enum Part {
    Dir(Source),
    File(Source),
    /// On top of an earlier part.
    Over(Source),
    Link(PathBuf),
}

#[derive(Debug)]
pub struct Trees {
    /// The overlay that contains most of the others. `None` without overlayfs.
    pub view: Option<View>,
    /// Absolute path inside and its content, in the order of mounting.
    pub system: Vec<(CString, Part)>,
    pub devices: Vec<Source>,
    pub workspace: OwnedFd,
    pub home: OwnedFd,
    pub claude: Source,
}

impl Trees {
    /// Opens all of them. Dropping their descriptors closes them.
    pub fn open(spec: &SetupSpec<'_>, idmap: BorrowedFd<'_>, steps: &mut Steps) -> Result<Self, Failure> {
        let read_only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        let own = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        let view = steps.run("open view", || Ok(View::open().inspect_err(no_view).ok()))?;
        let mut system = steps.run("open system trees", || system(view.as_ref(), read_only))?;
        system.extend(steps.run("open pids limit", || pids_limit(spec.leaf, read_only | MOUNT_ATTR_NOEXEC))?);
        // Read-only, so that times and attributes of a device file cannot change. Writes to the
        // device still work.
        let device = |path: &&str| {
            view::source(view.as_ref(), Path::new(path), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
        };
        let devices = steps.run("open devices", || DEVICES.iter().map(device).collect())?;
        let workspace = steps.run("open workspace", || mounts::detached_at(spec.workspace, own, Some(idmap)))?;
        let home = steps.run("open home", || mounts::detached_at(spec.home, own, Some(idmap)))?;
        let claude = steps.run("open claude", || view::source_of(view.as_ref(), spec.claude, read_only))?;
        Ok(Self { view, system, devices, workspace, home, claude })
    }
}

/// The process limit in force, if the host has one.
fn pids_limit(leaf: &Leaf, attributes: u64) -> io::Result<Option<(CString, Part)>> {
    let Some(group) = &leaf.paths().pids else { return Ok(None) };
    let file = CString::new(group.join("pids.max").into_os_string().into_vec())?;
    let source = Source::Tree(mounts::detached(&file, attributes)?);
    Ok(Some((CString::new(processes::LIMIT)?, Part::File(source))))
}

/// Logged once per launcher.
fn no_view(error: &io::Error) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| {
        tracing::warn!(%error, "no overlay of the host's files: locks and watches on files in /usr are shared between sandboxes and the host");
    });
}

/// `/usr`, the host's `/bin` and others (a link or a directory), and the host's part of `/etc`.
fn system(view: Option<&View>, read_only: u64) -> io::Result<Vec<(CString, Part)>> {
    let mut parts = Vec::new();
    // Directories that are shown without the mounts below them.
    let mut bare = Vec::new();
    let mut add = |path: &str, attributes: u64, dir: bool| -> io::Result<()> {
        let source = view::source(view, Path::new(path), attributes)?;
        if dir && matches!(source, Source::Seen(..)) {
            bare.push(PathBuf::from(path));
        }
        parts.push((CString::new(path)?, if dir { Part::Dir(source) } else { Part::File(source) }));
        Ok(())
    };
    add("/usr", read_only, true)?;
    let mut links = Vec::new();
    for path in landlock::UNMERGED {
        let Ok(meta) = Path::new(path).symlink_metadata() else { continue };
        if meta.is_symlink() {
            links.push((CString::new(*path)?, Part::Link(std::fs::read_link(path)?)));
        } else {
            add(path, read_only, true)?;
        }
    }
    for (path, shown) in host_etc::all(Path::new("/")) {
        match shown {
            Shown::Link(target) => links.push((CString::new(path)?, Part::Link(target))),
            Shown::File => add(&path, read_only | MOUNT_ATTR_NOEXEC, false)?,
            Shown::Dir => add(&path, read_only | MOUNT_ATTR_NOEXEC, true)?,
        }
    }
    parts.extend(links);
    for point in view::mounts_below(&bare)? {
        match mounts::detached(&CString::new(point.as_os_str().as_bytes())?, read_only) {
            Ok(tree) => parts.push((CString::new(point.into_os_string().into_vec())?, Part::Over(Source::Tree(tree)))),
            // Unmounted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // Next to the launcher's own program. Without it no session starts, because its confinement
    // cannot be measured.
    if let Some(probe) = std::env::current_exe().ok().map(|exe| exe.with_file_name("ash-probe")).filter(|p| p.is_file())
    {
        parts.push((PROBE.to_owned(), Part::File(view::source(view, &probe, read_only)?)));
    }
    Ok(parts)
}
