//! Resource usage of a sandbox, from its cgroup files. Reading them does not wake a frozen sandbox.
//!
//! The parsing is pure; paths and names of the files depend on the layout (see `docs/cgroups.md`).

use std::path::Path;

use serde::Serialize;
use utoipa::ToSchema;

use ash_kernel::cgroup::{CgroupPaths, Layout, disk_of, layout};
use ash_model::Limit;

/// Every number is `null` where this host has no controller (or no file) for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    pub memory: MemoryUsage,
    pub cpu: CpuUsage,
    pub pids: PidsUsage,
    pub pressure: Pressures,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemoryUsage {
    /// Bytes now, the page cache of its files included.
    pub current_bytes: Option<u64>,
    /// Bytes at most since the sandbox began.
    pub peak_bytes: Option<u64>,
    /// Bytes that the kernel could not simply take back: without the page cache.
    pub unreclaimable_bytes: Option<u64>,
    /// Bytes in swap.
    pub swap_bytes: Option<u64>,
    /// Processes the kernel killed because the limit was reached.
    pub oom_kills: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuUsage {
    /// Microseconds of CPU time, all cores together.
    pub usage_us: Option<u64>,
    /// Periods of 100 ms in which it ran, and those in which it was stopped by its limit.
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    /// Microseconds it was stopped by its limit.
    pub throttled_us: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PidsUsage {
    /// Processes and threads now.
    pub current: Option<u64>,
    pub peak: Option<u64>,
    /// Forks that the limit refused.
    pub refused: Option<u64>,
}

/// Share of the last 10 s in which something waited for the resource (psi(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Pressures {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pressure {
    /// Percent of the time in which some process waited.
    pub some10: f64,
    /// Percent of the time in which all of them waited.
    pub full10: f64,
    /// Microseconds in which some process waited, since the sandbox began.
    pub some_total_us: u64,
}

impl Usage {
    /// Reads everything: about fifteen small files, without waiting.
    pub fn read(paths: &CgroupPaths) -> Self {
        Self {
            memory: MemoryUsage::read(paths),
            cpu: CpuUsage::read(paths),
            pids: PidsUsage::read(paths),
            pressure: Pressures {
                cpu: pressure(&paths.unified.join("cpu.pressure")),
                memory: pressure(&paths.unified.join("memory.pressure")),
                io: pressure(&paths.unified.join("io.pressure")),
            },
        }
    }
}

impl MemoryUsage {
    pub fn read(paths: &CgroupPaths) -> Self {
        let Some(dir) = &paths.memory else { return Self::default() };
        let [current, peak, oom] = match paths.v1 {
            true => ["memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"],
            false => ["memory.current", "memory.peak", "memory.events"],
        };
        let current_bytes = number(&dir.join(current));
        let stat = text(&dir.join("memory.stat"));
        let swap_bytes = match paths.v1 {
            true => number(&dir.join("memory.memsw.usage_in_bytes"))
                .and_then(|both| Some(both.saturating_sub(current_bytes?))),
            false => number(&dir.join("memory.swap.current")),
        };
        Self {
            current_bytes,
            peak_bytes: number(&dir.join(peak)),
            unreclaimable_bytes: current_bytes.map(|bytes| bytes.saturating_sub(file_cache(&stat, paths.v1))),
            swap_bytes,
            oom_kills: field(&text(&dir.join(oom)), "oom_kill"),
        }
    }
}

impl CpuUsage {
    pub fn read(paths: &CgroupPaths) -> Self {
        // Every v2 group counts its time, with or without the controller.
        let usage_us = field(&text(&paths.unified.join("cpu.stat")), "usage_usec");
        let Some(dir) = &paths.cpu else { return Self { usage_us, ..Self::default() } };
        let stat = text(&dir.join("cpu.stat"));
        let throttled_us = match paths.v1 {
            true => field(&stat, "throttled_time").map(|ns| ns / 1000),
            false => field(&stat, "throttled_usec"),
        };
        Self {
            usage_us,
            periods: field(&stat, "nr_periods"),
            throttled_periods: field(&stat, "nr_throttled"),
            throttled_us,
        }
    }
}

impl PidsUsage {
    pub fn read(paths: &CgroupPaths) -> Self {
        let Some(dir) = &paths.pids else { return Self::default() };
        Self {
            current: number(&dir.join("pids.current")),
            peak: number(&dir.join("pids.peak")),
            refused: field(&text(&dir.join("pids.events")), "max"),
        }
    }
}

/// The effective limit of processes and threads; `None` if there is none.
pub fn pids_limit(paths: &CgroupPaths) -> Option<u64> {
    number(&paths.pids.as_ref()?.join("pids.max"))
}

/// Whether this host enforces a limit on the sandbox with these cgroups. ashd enforces disk and
/// turn time itself.
pub fn enforced(paths: &CgroupPaths, limit: Limit) -> bool {
    let swap = if paths.v1 { "memory.memsw.limit_in_bytes" } else { "memory.swap.max" };
    match limit {
        Limit::MemoryBytes => paths.memory.is_some(),
        Limit::SwapBytes => paths.memory.as_ref().is_some_and(|dir| dir.join(swap).exists()),
        Limit::CpuMillis | Limit::CpuWeight => paths.cpu.is_some(),
        Limit::Pids => paths.pids.is_some(),
        Limit::IoReadBps | Limit::IoWriteBps | Limit::IoReadIops | Limit::IoWriteIops => {
            paths.io.is_some() && paths.io_device.is_some()
        }
        Limit::DiskBytes | Limit::DiskFiles | Limit::TurnMs => true,
    }
}

/// The mounts of the hierarchies that would limit a sandbox, without one. What the launcher was not
/// delegated shows only in a sandbox. `data_dir` is on the disk whose use would be limited.
pub fn host(data_dir: &Path) -> CgroupPaths {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let io_device = || disk_of(data_dir).ok();
    match layout::detect(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")) {
        Ok(Layout::Hybrid { unified, memory, cpu, pids, blkio }) => {
            CgroupPaths { unified, memory, cpu, pids, io: blkio, io_device: io_device(), v1: true }
        }
        Ok(Layout::Unified { mount, own }) => {
            let on = text(&mount.join("cgroup.controllers"));
            // The root has no limit files; this process's group has them if the controller is
            // enabled.
            let leg = |controller: &str| on.split_whitespace().any(|word| word == controller).then(|| own.clone());
            CgroupPaths {
                memory: leg("memory"),
                cpu: leg("cpu"),
                pids: leg("pids"),
                io: leg("io"),
                io_device: io_device(),
                v1: false,
                unified: own.clone(),
            }
        }
        Err(_) => CgroupPaths::default(),
    }
}

/// Empty if the file cannot be read (no such controller, the group is gone).
fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &Path) -> Option<u64> {
    text(path).trim().parse().ok()
}

/// The number after `name ` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn file_cache(stat: &str, v1: bool) -> u64 {
    let names = if v1 { ["total_inactive_file", "total_active_file"] } else { ["inactive_file", "active_file"] };
    names.iter().filter_map(|name| field(stat, name)).sum()
}

fn pressure(path: &Path) -> Option<Pressure> {
    parse_pressure(&text(path))
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    let word = |kind: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    Some(Pressure {
        some10: word("some", "avg10")?.parse().ok()?,
        full10: word("full", "avg10").and_then(|avg| avg.parse().ok()).unwrap_or(0.0),
        some_total_us: word("some", "total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_files_of_v2() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("memory.current", "1000\n"),
                ("memory.peak", "5000\n"),
                ("memory.swap.current", "7\n"),
                ("memory.swap.max", "max\n"),
                ("memory.stat", "anon 500\ninactive_file 100\nactive_file 50\n"),
                ("memory.events", "low 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n"),
                ("cpu.stat", "usage_usec 9\nuser_usec 5\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n"),
                ("pids.current", "12\n"),
                ("pids.events", "max 6\n"),
                (
                    "cpu.pressure",
                    "some avg10=1.50 avg60=0.00 avg300=0.00 total=33\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=4\n",
                ),
            ],
        );
        let at = Some(dir.path().to_owned());
        let paths = CgroupPaths {
            unified: dir.path().into(),
            memory: at.clone(),
            cpu: at.clone(),
            pids: at.clone(),
            io: at,
            io_device: Some("8:0".into()),
            v1: false,
        };
        let usage = Usage::read(&paths);
        let want = MemoryUsage {
            current_bytes: Some(1000),
            peak_bytes: Some(5000),
            unreclaimable_bytes: Some(850),
            swap_bytes: Some(7),
            oom_kills: Some(2),
        };
        assert_eq!(usage.memory, want);
        let want = CpuUsage { usage_us: Some(9), periods: Some(4), throttled_periods: Some(3), throttled_us: Some(2) };
        assert_eq!(usage.cpu, want);
        assert_eq!(usage.pids, PidsUsage { current: Some(12), peak: None, refused: Some(6) });
        assert_eq!(usage.pressure.cpu, Some(Pressure { some10: 1.5, full10: 0.25, some_total_us: 33 }));
        assert_eq!(usage.pressure.io, None);
        assert!(Limit::ALL.iter().all(|limit| enforced(&paths, *limit)));
    }

    #[test]
    fn the_files_of_v1() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.max_usage_in_bytes", "5000\n"),
                ("memory.memsw.usage_in_bytes", "1300\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 50\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
                ("cpu.stat", "nr_periods 4\nnr_throttled 3\nthrottled_time 2000000\n"),
            ],
        );
        let at = Some(dir.path().to_owned());
        let paths =
            CgroupPaths { unified: "/nowhere".into(), memory: at.clone(), cpu: at, v1: true, ..CgroupPaths::default() };
        let usage = Usage::read(&paths);
        assert_eq!((usage.memory.swap_bytes, usage.memory.oom_kills), (Some(300), Some(4)));
        assert_eq!(usage.memory.unreclaimable_bytes, Some(850));
        assert_eq!((usage.cpu.throttled_us, usage.cpu.usage_us), (Some(2000), None));
        assert_eq!(usage.pids, PidsUsage::default());
        assert!(!enforced(&paths, Limit::SwapBytes) && !enforced(&paths, Limit::Pids));
        assert!(!enforced(&paths, Limit::IoReadBps));
        assert!(enforced(&paths, Limit::MemoryBytes) && enforced(&paths, Limit::DiskBytes));
    }
}
