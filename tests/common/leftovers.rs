//! What a daemon leaves behind, counted from outside: processes, mounts, cgroups, namespaces,
//! files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Daemon;

/// Everything of this daemon that still exists after at most `patience`, one line each.
pub fn find(daemon: &Daemon, patience: Duration) -> Vec<String> {
    let start = Instant::now();
    loop {
        let mut left: Vec<String> =
            processes(daemon).into_iter().map(|(pid, what)| format!("process {pid}: {what}")).collect();
        left.extend(mounts(&daemon.cgroup).into_iter().map(|m| format!("mount {m}")));
        left.extend(cgroups(&daemon.cgroup).into_iter().map(|c| format!("cgroup {}", c.display())));
        let sandboxes = fs::read_dir(daemon.run().join("sandboxes")).into_iter().flatten().filter_map(Result::ok);
        left.extend(sandboxes.map(|entry| format!("file {}", entry.path().display())));
        if left.is_empty() || start.elapsed() > patience {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes of the daemon: its directory is in their argv or environment, or they are in its
/// cgroups. Without a process there is no namespace either.
pub fn processes(daemon: &Daemon) -> Vec<(i32, String)> {
    let mark = daemon.cgroup.as_bytes();
    let own = i32::try_from(std::process::id()).expect("a pid is an i32");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == own {
            continue;
        }
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let ours =
            ["cmdline", "environ", "cgroup"].iter().any(|name| memchr::memmem::find(&read(name), mark).is_some());
        if ours {
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push((pid, format!("{} {command}", String::from_utf8_lossy(&read("comm")).trim())));
        }
    }
    found
}

fn mounts(mark: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(mark)).map(str::to_owned).collect()
}

/// Directories of that name in every cgroup hierarchy, deepest first.
pub fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let mut found: Vec<PathBuf> = hierarchies
        .chain([root.to_owned()])
        .map(|hierarchy| hierarchy.join(name))
        .filter(|dir| dir.is_dir())
        .flat_map(|dir| {
            walkdir::WalkDir::new(dir)
                .into_iter()
                .filter_map(Result::ok)
                .filter(|e| e.file_type().is_dir())
                .map(|e| e.path().to_owned())
        })
        .collect();
    found.sort();
    found.dedup();
    found.reverse();
    found
}

/// For a failed test: the machine must be clean for the next one.
pub fn kill_all(daemon: &Daemon) {
    for dir in cgroups(&daemon.cgroup) {
        let _ = fs::write(dir.join("cgroup.freeze"), "0");
        let _ = fs::write(dir.join("cgroup.kill"), "1");
    }
    for (pid, _) in processes(daemon) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    let start = Instant::now();
    while !cgroups(&daemon.cgroup).is_empty() && start.elapsed() < Duration::from_secs(3) {
        for dir in cgroups(&daemon.cgroup) {
            let _ = fs::remove_dir(dir);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
