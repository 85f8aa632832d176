//! The cgroups of a sandbox.
//!
//! ```text
//!   pure v2: below the launcher's own cgroup, which is delegated
//!     supervisor/             the launcher
//!     tenants/<tenant>/<id>   limits, freeze, kill
//!
//!   hybrid: v1 controllers beside a v2 mount
//!     /sys/fs/cgroup/{memory,cpu,pids,blkio}/<name>/tenants/<tenant>/<id>   limits
//!     /sys/fs/cgroup/unified/<name>/tenants/<tenant>/<id>                   freeze, kill
//! ```
//!
//! [`layout`] detects which of the two applies (pure), [`tree`] holds the roots, [`leaf`] manages
//! the groups of one sandbox, [`limits`] converts [`ash_model::Limits`] to the files' values.
//!
//! A cgroup is used once. After a write to `cgroup.kill`, a `clone3(CLONE_INTO_CGROUP)` into the
//! same group is killed at once (seen on 6.18), so a resumed sandbox gets a new directory.

pub mod device;
pub mod in_force;
pub mod layout;
pub mod leaf;
pub mod limits;
pub mod tree;

use std::io;
use std::path::{Path, PathBuf};

pub use ash_model::CgroupPaths;
pub use device::disk_of;
pub use in_force::{LimitInForce, in_force};
pub use layout::{Layout, LayoutError};
pub use leaf::Leaf;
pub use tree::Tree;

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("{act} {path}: {source}")]
    Io {
        /// The failed operation, such as `create` or `write 512 to`.
        act: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("limit {field} = {value}: {why}")]
    Limit { field: &'static str, value: u64, why: String },
    /// Still there after the timeout: a process that cannot exit, or a group created from outside.
    #[error("{path} cannot be removed yet: {source}")]
    Busy { path: PathBuf, source: io::Error },
}

impl CgroupError {
    pub(crate) fn io(act: impl Into<String>, path: &Path, source: io::Error) -> Self {
        Self::Io { act: act.into(), path: path.to_owned(), source }
    }

    /// The kernel's answer, if there is one.
    pub fn source_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } | Self::Busy { source, .. } => Some(source.kind()),
            Self::Layout(_) | Self::Limit { .. } => None,
        }
    }
}

/// Creates a directory of a cgroup hierarchy. An existing one is no error.
pub(crate) fn ensure_dir(path: &Path) -> Result<(), CgroupError> {
    match make_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::io("create", path, error)),
        _ => Ok(()),
    }
}

/// `mkdir` with read access for everyone, independent of the launcher's umask. The counters are not
/// secret, and ashd, an unprivileged user, reads from them whether a session is busy and why it was
/// killed.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// Writes a value to a cgroup file in one write, as the kernel requires.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| CgroupError::io(format!("write {value} to"), path, error))
}
