//! Moves the memory of a frozen cgroup to swap or zram.
//!
//! ```text
//!   frozen 1? --yes--> one step of at most 2 MiB --> frozen 1? --yes--> ... --> done
//!       | no                                             | no
//!       v                                                v
//!   thawed: stop                                     thawed: stop
//! ```
//!
//! The state of the group is read before each step, so any thaw ends the work within one step
//! (about 5 ms). Nothing is written to `cgroup.freeze` here.
//!
//! Two methods: `memory.reclaim` if the memory controller is on cgroup v2 (Linux 5.19), otherwise
//! process_madvise(2) with `MADV_PAGEOUT` for the mappings of each process (Linux 5.10; measured on
//! the hybrid layout: 207 MiB of claude to at most 26 MiB). Pages shared with other processes stay,
//! and so do file pages: claude has 75 MiB of its program in memory. The kernel drops these by
//! itself if needed, and the next turn would have to read them from disk first.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::Leaf;
use super::freeze;

/// Bytes per step: about 5 ms of a core with zram.
const STEP: usize = 2 << 20;
/// The time limit for one group. 200 MiB take 0.7 s on a quiet machine.
pub const WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The group's own file in cgroup v2.
    MemoryReclaim,
    /// process_madvise(2), one mapping at a time.
    ProcessMadvise,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All reclaimable memory was moved.
    Done,
    /// The group was thawed or removed.
    Thawed,
    TookTooLong,
}

#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub end: End,
    pub way: Way,
    /// Resident bytes of all processes before and after. Shared pages count in each process.
    pub before: u64,
    pub after: u64,
    pub took: Duration,
}

/// Free swap in bytes (including zram), from the text of `/proc/meminfo`.
pub fn parse_swap_free(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapFree:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Free swap of the host in bytes. 0 if it cannot be read.
pub fn swap_free() -> u64 {
    std::fs::read_to_string("/proc/meminfo").map_or(0, |text| parse_swap_free(&text))
}

/// Reclaims as much as possible. Blocks for up to [`WITHIN`]. May be killed at any time.
///
/// # Errors
/// `EPERM` without CAP_SYS_NICE; `ENOSYS` before Linux 5.10; errors of reading the group.
pub fn page_out(leaf: &Leaf) -> io::Result<Report> {
    let start = Instant::now();
    let events = leaf.events_file()?;
    let work = Work { events: events.as_fd(), until: start + WITHIN };
    let pids = leaf.processes()?;
    let before = resident(&pids);
    let (way, end) = match leaf.reclaim_file() {
        Ok(file) => (Way::MemoryReclaim, work.by_group(file.as_fd())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Way::ProcessMadvise, work.by_process(&pids)?),
        Err(error) => return Err(error),
    };
    Ok(Report { end, way, before, after: resident(&pids), took: start.elapsed() })
}

struct Work<'a> {
    events: BorrowedFd<'a>,
    until: Instant,
}

impl Work<'_> {
    fn over(&self) -> Option<End> {
        match freeze::read_events(self.events) {
            Ok(events) if events.frozen => (Instant::now() >= self.until).then_some(End::TookTooLong),
            _ => Some(End::Thawed),
        }
    }

    fn by_group(&self, file: BorrowedFd<'_>) -> io::Result<End> {
        // Prefers anonymous memory to file pages. Kernels before 6.9 do not support it.
        let mut wish = format!("{STEP} swappiness=200");
        loop {
            if let Some(end) = self.over() {
                return Ok(end);
            }
            match rustix::io::pwrite(file, wish.as_bytes(), 0) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::INVAL) if wish.contains(' ') => wish = STEP.to_string(),
                // Less than a step could be reclaimed: nothing is left.
                Err(rustix::io::Errno::AGAIN) => return Ok(End::Done),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn by_process(&self, pids: &[i32]) -> io::Result<End> {
        for pid in pids {
            let Some(id) = Pid::from_raw(*pid) else { continue };
            let Ok(pidfd) = pidfd_open(id, PidfdFlags::empty()) else { continue };
            // A process that has ended has no maps.
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            for range in parse_maps(&maps) {
                for from in range.clone().step_by(STEP) {
                    if let Some(end) = self.over() {
                        return Ok(end);
                    }
                    match advise(pidfd.as_fd(), from..range.end.min(from + STEP)) {
                        Ok(()) => {}
                        Err(error) => match error.raw_os_error() {
                            // Locked or special memory, a hole, or one busy page: continue with the
                            // next step.
                            Some(libc::EINVAL | libc::ENOMEM | libc::EAGAIN | libc::EBADF | libc::EIO) => {}
                            Some(libc::ESRCH) => break,
                            _ => return Err(error),
                        },
                    }
                }
            }
        }
        Ok(End::Done)
    }
}

/// The mappings of `/proc/<pid>/maps` (proc_pid_maps(5)) that can hold memory. Excludes unreadable
/// ones (claude reserves 5 GB of them), those of the kernel, and those of files.
fn parse_maps(text: &str) -> Vec<Range<usize>> {
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let access = fields.next()?;
        let inode = fields.nth(2)?;
        let name = fields.next().unwrap_or("");
        if access.starts_with("---")
            || inode != "0"
            || matches!(name, "[vvar]" | "[vvar_vclock]" | "[vdso]" | "[vsyscall]")
        {
            return None;
        }
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        (!range.is_empty()).then_some(range)
    };
    text.lines().filter_map(parse).collect()
}

fn advise(pidfd: BorrowedFd<'_>, range: Range<usize>) -> io::Result<()> {
    let part = libc::iovec { iov_base: range.start as *mut libc::c_void, iov_len: range.len() };
    let (fd, advice) = (pidfd.as_raw_fd(), libc::MADV_PAGEOUT);
    // SAFETY: the address belongs to the other process. Of this process only `part` is read, which
    // outlives the call. Paging out does not change the content of memory.
    let done = unsafe { libc::syscall(libc::SYS_process_madvise, fd, &raw const part, 1_usize, advice, 0_u32) };
    if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Resident bytes: `VmRSS` of `/proc/<pid>/status`.
fn resident(pids: &[i32]) -> u64 {
    let of = |pid: &i32| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    pids.iter().filter_map(of).sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_that_may_hold_memory() {
        let text = "00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus daemon\n\
            7f0000000000-7f0000001000 ---p 00000000 00:00 0 \n\
            7f0000001000-7f0000003000 rw-p 00000000 00:00 0                          [heap]\n\
            7f0000010000-7f0000020000 rw-p 00000000 00:00 0 \n\
            7ffd00000000-7ffd00004000 r--p 00000000 00:00 0                          [vvar]\n\
            7ffd00004000-7ffd00006000 r-xp 00000000 00:00 0                          [vdso]\n\
            nonsense\n";
        assert_eq!(parse_maps(text), [0x7f00_0000_1000..0x7f00_0000_3000, 0x7f00_0001_0000..0x7f00_0002_0000]);
    }

    #[test]
    fn free_swap() {
        let cases = [
            ("MemFree: 5 kB\nSwapTotal:     8 kB\nSwapFree:         3 kB\n", 3072),
            ("SwapFree: 0 kB", 0),
            ("MemFree: 1 kB", 0),
            ("SwapFree: x kB", 0),
        ];
        for (text, want) in cases {
            assert_eq!(parse_swap_free(text), want, "{text:?}");
        }
    }
}
