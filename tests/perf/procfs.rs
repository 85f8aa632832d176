//! Memory and CPU time of processes, from `/proc`.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Proportional set size in bytes. `None` when the process is gone.
pub fn pss(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// CPU seconds of all threads of a process so far, in nanosecond resolution.
pub fn cpu_seconds(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let one = |dir: std::path::PathBuf| -> Option<u64> {
        fs::read_to_string(dir.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    tasks.flatten().filter_map(|entry| one(entry.path())).sum::<u64>() as f64 / 1e9
}

pub fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Pins every thread of a process, now and later ones, to one core.
pub fn pin(pid: u32, core: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(core).expect("a core's number");
    for entry in fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").flatten() {
        let thread: i32 = entry.file_name().to_string_lossy().parse().expect("a thread's id");
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(thread), &set).expect("pinned");
    }
}

pub fn owner(path: &std::path::Path) -> (u32, u32) {
    let meta = fs::metadata(path).expect("the file is there");
    (meta.uid(), meta.gid())
}
