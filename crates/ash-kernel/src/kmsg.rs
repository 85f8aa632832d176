//! Reads OOM kills from the kernel log. It is the only source of the names: the cgroup only counts
//! kills, and a process killed beside others is reaped by its own parent.
//!
//! ```text
//!   Memory cgroup out of memory: Killed process 8273 (node) total-vm:364340kB,
//!     anon-rss:130560kB, file-rss:2556kB, shmem-rss:0kB, UID:1900000000 ...
//!   Out of memory: Killed process ...                 the host itself ran out of memory
//!   Tasks in /ashd/tenants/acme/<id> are going to be killed due to memory.oom.group set
//! ```
//!
//! `mm/oom_kill.c` prints the first line on one line, for each kill, before the signal is sent and
//! without a rate limit. The process chooses its name: at most 15 bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, SeekFrom};

/// Most records per read. The kernel's buffer holds fewer unless it was enlarged beyond 1 MiB.
const MAX_RECORDS: usize = 20_000;
/// The longest record of /dev/kmsg (`PRINTK_MESSAGE_MAX`).
const MAX_RECORD: usize = 8192;

/// `/dev/kmsg`, read from the position of its opening.
#[derive(Debug)]
pub struct KernelLog(OwnedFd);

impl AsFd for KernelLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl KernelLog {
    /// Opens it at its end.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_SYSLOG if `kernel.dmesg_restrict` is 1; `NotFound` in
    /// containers without the file.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
        rustix::fs::seek(&file, SeekFrom::End(0))?;
        Ok(Self(file))
    }

    pub fn of(file: OwnedFd) -> Self {
        Self(file)
    }

    /// Calls `each` with every line of the kernel since the last call. Overwritten lines are lost.
    pub fn read(&self, mut each: impl FnMut(&str)) {
        let mut buffer = vec![0; MAX_RECORD];
        for _ in 0..MAX_RECORDS {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if let Some(line) = std::str::from_utf8(&buffer[..length]).ok().and_then(text_of_kernel) {
                        each(line);
                    }
                }
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// `<priority>,<sequence>,<microseconds>,<flags>;<text>`. The kernel's facility is 0, and it does
/// not let programs of root use that (Documentation/ABI/testing/dev-kmsg).
fn text_of_kernel(record: &str) -> Option<&str> {
    let (head, rest) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    (priority < 8).then(|| rest.lines().next().unwrap_or(""))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// On the host.
    pub pid: i32,
    pub process: String,
    /// Bytes in memory, without swap.
    pub resident_bytes: u64,
    /// On the host.
    pub uid: u32,
    /// The host ran out of memory, not the group.
    pub of_host: bool,
}

/// Parses one line. `None` if it reports no kill.
pub fn parse(line: &str) -> Option<Kill> {
    let (why, rest) = line.split_once("ut of memory: Killed process ")?;
    let (pid, rest) = rest.split_once(" (")?;
    // Parsed from the end: the name can contain anything, and is shorter than what follows.
    let (process, rest) = rest.rsplit_once(") total-vm:")?;
    let word = |name: &str| rest.split([' ', ',']).find_map(|word| word.strip_prefix(name));
    let kib = |name: &str| word(name)?.strip_suffix("kB")?.parse::<u64>().ok();
    Some(Kill {
        pid: pid.parse().ok()?,
        process: process.to_owned(),
        resident_bytes: ["anon-rss:", "file-rss:", "shmem-rss:"]
            .into_iter()
            .filter_map(kib)
            .fold(0, u64::saturating_add)
            .saturating_mul(1024),
        uid: word("UID:")?.parse().ok()?,
        of_host: why == "O",
    })
}

/// Whether the line says that the whole group of the killed process is killed.
pub fn takes_its_group(line: &str) -> bool {
    line.starts_with("Tasks in ") && line.ends_with("memory.oom.group set")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: &str = "Memory cgroup out of memory: Killed process 8273 (no (de) x) total-vm:364340kB, anon-rss:130560kB, \
        file-rss:2556kB, shmem-rss:4kB, UID:1900000000 pgtables:308kB oom_score_adj:0";

    #[test]
    fn lines_of_the_kernel() {
        let kill = parse(KILLED).unwrap();
        assert_eq!((kill.pid, kill.uid, kill.of_host), (8273, 1_900_000_000, false));
        assert_eq!((kill.process.as_str(), kill.resident_bytes), ("no (de) x", (130_560 + 2556 + 4) * 1024));
        assert!(parse(&KILLED.replace("Memory cgroup out of", "Out of")).unwrap().of_host);
        for other in
            ["", "oom-kill:constraint=CONSTRAINT_MEMCG,task=claude,pid=8273", "Killed process 5 (x) total-vm:1kB"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
        assert!(takes_its_group("Tasks in /ashd/tenants/a/x are going to be killed due to memory.oom.group set"));
        assert!(!takes_its_group(KILLED));
    }

    #[test]
    fn only_the_kernel_is_heard() {
        assert_eq!(text_of_kernel("3,1234,5678,-;Out of memory\n SUBSYSTEM=x\n"), Some("Out of memory"));
        assert_eq!(text_of_kernel("12,1234,5678,-;Out of memory\n"), None, "root wrote it");
        assert_eq!(text_of_kernel("nonsense"), None);
    }
}
