//! Facts read from /proc.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Start time of a process in clock ticks since boot, from the text of `/proc/<pid>/stat`: field 22
/// (proc_pid_stat(5)). Counted after the last `)`, because the program's name can contain anything.
pub fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// The parent of a process, from the text of `/proc/<pid>/stat`: field 4 (proc_pid_stat(5)).
fn parse_parent(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

/// The current children of this process, which must have one thread.
///
/// # Errors
/// /proc cannot be read.
pub fn children() -> io::Result<Vec<i32>> {
    let numbers = |text: &str| text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match std::fs::read_to_string("/proc/thread-self/children") {
        Ok(text) => Ok(numbers(&text)),
        // Not in every kernel (CONFIG_PROC_CHILDREN).
        Err(error) if error.kind() == io::ErrorKind::NotFound => children_by_scan(),
        Err(error) => Err(error),
    }
}

fn children_by_scan() -> io::Result<Vec<i32>> {
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended has no file.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if parse_parent(&stat) == Some(own) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The uids of a process (real, effective, saved, file system), from the text of
/// `/proc/<pid>/status`.
pub fn parse_uids(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The uids of one process. Empty if it has ended.
pub fn uids_of(pid: i32) -> Vec<u32> {
    // The owner of /proc/<pid> is root for processes that are not dumpable, such as a sandbox's
    // init.
    parse_uids(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
}

/// The uids in use by processes, among `count` uids from `first`. Takes about 20 microseconds per
/// process of the host.
///
/// # Errors
/// /proc cannot be read.
pub fn uids_in_use(first: u32, count: u32) -> io::Result<std::collections::BTreeSet<u32>> {
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        found
            .extend(uids_of(pid).into_iter().filter(|uid| uid.checked_sub(first).is_some_and(|offset| offset < count)));
    }
    Ok(found)
}

/// Start time of a running process.
///
/// # Errors
/// `NotFound` if no process has this pid.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}

/// A pidfd of the process with this pid *and* start time. `None` if it has ended, even if the pid
/// is in use again.
///
/// # Errors
/// As for pidfd_open(2), for other causes.
pub fn open_process(pid: i32, started: u64) -> io::Result<Option<OwnedFd>> {
    let Some(id) = Pid::from_raw(pid) else { return Ok(None) };
    let pidfd = match pidfd_open(id, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // A zombie keeps its pid until it is reaped. A pidfd is readable once its process has ended.
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    if poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0 {
        return Ok(None);
    }
    // Read after opening: the descriptor now holds the pid, so the file is of the same process.
    Ok(start_time(pid).ok().filter(|found| *found == started).map(|_| pidfd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11 12";
        assert_eq!(parse_start_time(stat), Some(987_654));
        assert_eq!(parse_start_time("42 (x) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn both_ways_to_find_children_find_them() {
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // The test runs in one of several threads, and a child belongs to the thread that created
        // it.
        let (listed, scanned) = (children().unwrap(), children_by_scan().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(listed.contains(&pid) && scanned.contains(&pid), "{pid}: {listed:?} {scanned:?}");
        assert_eq!(parse_parent("42 (a) b (c)) S 7 42 42 0"), Some(7));
        assert_eq!(parse_parent("42 (x"), None);
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        assert!(open_process(pid, started).unwrap().is_none());
        child.wait().unwrap();
    }

    #[test]
    fn another_start_is_another_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        let started = start_time(own).unwrap();
        assert!(open_process(own, started).unwrap().is_some());
        assert!(open_process(own, started + 1).unwrap().is_none());
        assert!(open_process(0, started).unwrap().is_none());
        assert!(open_process(i32::MAX, started).unwrap().is_none());
    }
}
