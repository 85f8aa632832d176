//! A sandbox's place in the cgroup hierarchies.
//!
//! ```text
//!   pure v2                                        hybrid (v1 controllers beside a v2 mount)
//!   <launcher's own cgroup, delegated>             /sys/fs/cgroup/{memory,cpu,pids,blkio}/<name>/tenants/<tenant>/<id>   limits
//!     supervisor/           the launcher           /sys/fs/cgroup/unified/<name>/tenants/<tenant>/<id>             freeze, kill
//!     tenants/<tenant>/<id> limits, freeze, kill
//! ```
//!
//! [`layout`] finds out which of the two it is (pure), [`tree`] holds the roots, [`leaf`] is one sandbox's life in
//! them, [`limits`] turns [`crate::model::Limits`] into the files' values.
//!
//! The files of the limits are written through the crate `cgroups-rs`. Making, freezing, killing and removing are done here:
//! that crate's freeze answers before the group is frozen, its kill and its roots know no hybrid layout, and it has
//! no descriptor to clone into.
//!
//! A cgroup is used once. After a write to `cgroup.kill`, a `clone3(CLONE_INTO_CGROUP)` into the same group is
//! killed at birth (seen on 6.18), so a sandbox that comes back gets a new directory.

pub mod device;
pub mod in_force;
pub mod layout;
pub mod leaf;
pub mod limits;
pub mod tree;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use device::disk_of;
pub use in_force::{LimitInForce, in_force};
pub use layout::{Layout, LayoutError};
pub use leaf::Leaf;
pub use tree::Tree;

/// Where a sandbox sits in each cgroup hierarchy (absolute directories); `None` where the host has no such controller,
/// and so no such limit is enforced. On a pure v2 host all of them are the same directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPaths {
    /// The v2 directory: freeze, kill, events, pressure, cpu.stat. Always there.
    pub unified: PathBuf,
    pub memory: Option<PathBuf>,
    pub cpu: Option<PathBuf>,
    pub pids: Option<PathBuf>,
    pub io: Option<PathBuf>,
    /// The disk whose use `io` limits, as `<major>:<minor>`; `None` where the data directory is on none.
    #[serde(default)]
    pub io_device: Option<String>,
    /// Whether the limits' files are those of cgroup v1.
    pub v1: bool,
}

impl CgroupPaths {
    /// Every directory once: those of v1 first, the v2 one last, which is the order to remove them in.
    pub fn directories(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = Vec::with_capacity(4);
        for dir in [&self.memory, &self.cpu, &self.pids, &self.io].into_iter().flatten() {
            if *dir != self.unified && !all.contains(&dir.as_path()) {
                all.push(dir);
            }
        }
        all.push(&self.unified);
        all
    }

    /// The same place, one level deeper.
    pub(crate) fn join(&self, name: &str) -> Self {
        self.map(|dir| dir.join(name))
    }

    /// The same place, so many levels higher; the top stays where it is.
    pub(crate) fn above(&self, levels: usize) -> Self {
        self.map(|dir| dir.ancestors().nth(levels).unwrap_or(dir).to_owned())
    }

    fn map(&self, to: impl Fn(&PathBuf) -> PathBuf) -> Self {
        Self {
            unified: to(&self.unified),
            memory: self.memory.as_ref().map(&to),
            cpu: self.cpu.as_ref().map(&to),
            pids: self.pids.as_ref().map(&to),
            io: self.io.as_ref().map(&to),
            io_device: self.io_device.clone(),
            v1: self.v1,
        }
    }
}

/// What failed on which file or directory.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("{act} {path}: {source}")]
    Io {
        /// The failed act, such as `create` or `write 512 to`.
        act: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("limit {field} = {value}: {why}")]
    Limit { field: &'static str, value: u64, why: String },
    /// Still there after the time allowed: processes that cannot die, or a sub-group made from outside.
    #[error("{path} cannot be removed yet: {source}")]
    Busy { path: PathBuf, source: io::Error },
}

impl CgroupError {
    pub(crate) fn io(act: impl Into<String>, path: &Path, source: io::Error) -> Self {
        Self::Io { act: act.into(), path: path.to_owned(), source }
    }

    /// The kernel's answer, where it was one.
    pub fn source_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } | Self::Busy { source, .. } => Some(source.kind()),
            Self::Layout(_) | Self::Limit { .. } => None,
        }
    }
}

/// Creates a directory of a cgroup hierarchy; one that exists is no error.
pub(crate) fn ensure_dir(path: &Path) -> Result<(), CgroupError> {
    match make_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::io("create", path, error)),
        _ => Ok(()),
    }
}

/// `mkdir` that everybody may look into, whatever the launcher's umask says: what a group counts is no secret, and ashd, which
/// is nobody here, reads from it whether a session is busy and why it was killed.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// Writes a value to a cgroup file in one write, as the kernel wants it.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| CgroupError::io(format!("write {value} to"), path, error))
}
