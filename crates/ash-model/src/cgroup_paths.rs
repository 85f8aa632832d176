//! Directories of a sandbox in the cgroup hierarchies.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
    pub fn join(&self, name: &str) -> Self {
        self.map(|dir| dir.join(name))
    }

    /// The same place, so many levels higher; the top stays where it is.
    pub fn above(&self, levels: usize) -> Self {
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
