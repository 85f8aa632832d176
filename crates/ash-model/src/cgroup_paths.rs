//! Directories of a sandbox in the cgroup hierarchies.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Absolute directories of a sandbox in each cgroup hierarchy. `None`: the host has no such
/// controller, and the limit is not enforced. On a pure v2 host all are the same directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPaths {
    /// The v2 directory, always present: freeze, kill, events, pressure, cpu.stat.
    pub unified: PathBuf,
    pub memory: Option<PathBuf>,
    pub cpu: Option<PathBuf>,
    pub pids: Option<PathBuf>,
    pub io: Option<PathBuf>,
    /// The disk that the `io` limits apply to, as `<major>:<minor>`. `None`: the data directory is
    /// on no disk.
    #[serde(default)]
    pub io_device: Option<String>,
    pub v1: bool,
}

impl CgroupPaths {
    /// Every directory once, in the order of removal: v1 first, v2 last.
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

    /// The same directories, one level deeper.
    pub fn join(&self, name: &str) -> Self {
        self.map(|dir| dir.join(name))
    }

    /// The same directories, `levels` higher. The top stays.
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
