//! Freezes a cgroup reliably.
//!
//! ```text
//!            write 1                 cgroup.events reads frozen 1
//!   running ---------> freezing ------------------------------------> frozen
//!      ^                  | after 5 s, or an error                       |
//!      |     write 0      v                                              | write 0
//!      +<------------- thawed again, Err <------------------------------+
//! ```
//!
//! The kernel returns from the write before the group is frozen, but `frozen 1` of an idle group
//! can be read about 45 us later. The notification on `cgroup.events` comes at most once in 10 ms,
//! so it is awaited only after the first reads. A failed freeze is always undone: a partly frozen
//! group would be neither paused nor running.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The time limit of a freeze. 100 busy processes on two cores need about 0.5 ms. A process in an
/// uninterruptible wait (a hung NFS server) may never freeze.
pub const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// The interval of reads, because the kernel's rate limit can drop the notification.
const READ_AGAIN: Duration = Duration::from_millis(20);
/// Reads before the first wait. Most groups are frozen by then.
const EAGER_READS: u32 = 3;

/// How long the file is polled before the notification is awaited. A group of idle processes is
/// frozen after 0.05 to 0.6 ms, but the kernel sends at most one notification in about 10 ms (both
/// measured).
const SOON: Duration = Duration::from_millis(3);
const READ_SOON: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A living process is in the group or below it.
    pub populated: bool,
    pub frozen: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("the kernel did not report the group as frozen within {} ms; it was thawed again", .0.as_millis())]
    TooSlow(Duration),
    #[error("cgroup.freeze or cgroup.events: {0}")]
    Io(#[from] io::Error),
}

/// Whether the first reads were sufficient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Reached,
    /// [`finish`] waits for it and blocks.
    Pending,
}

/// Parses `cgroup.events`. Unknown keys are ignored.
pub fn parse_events(text: &str) -> Events {
    let mut events = Events::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("populated", value)) => events.populated = value.trim() != "0",
            Some(("frozen", value)) => events.frozen = value.trim() != "0",
            _ => {}
        }
    }
    events
}

/// Reads `cgroup.events` from its beginning, which also re-arms the notification.
///
/// # Errors
/// `ENODEV` if the group was removed.
pub fn read_events(events: BorrowedFd<'_>) -> io::Result<Events> {
    let mut buffer = [0; 256];
    let len = rustix::io::pread(events, &mut buffer, 0)?;
    Ok(parse_events(&String::from_utf8_lossy(&buffer[..len])))
}

/// Requests the state and reads it at once. Takes about 50 us and never waits, so an async task can
/// call it.
///
/// After an error, or if [`finish`] is not called after `Pending`, the caller must [`thaw`].
///
/// # Errors
/// As for the file operations; `ENODEV` if the group was removed.
pub fn begin(freeze: BorrowedFd<'_>, events: BorrowedFd<'_>, frozen: bool) -> io::Result<Progress> {
    write_wish(freeze, frozen)?;
    for _ in 0..EAGER_READS {
        if read_events(events)?.frozen == frozen {
            return Ok(Progress::Reached);
        }
    }
    Ok(Progress::Pending)
}

/// Waits until the group has the requested state, at most `within`. Blocks.
///
/// # Errors
/// `TimedOut` if it does not reach the state; otherwise as for the file operations.
pub fn finish(events: BorrowedFd<'_>, frozen: bool, within: Duration) -> io::Result<()> {
    let deadline = Instant::now() + within;
    loop {
        if read_events(events)?.frozen == frozen {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if within - left < SOON {
            std::thread::sleep(READ_SOON);
            continue;
        }
        let wait = left.min(READ_AGAIN);
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Freezes the group and waits until every process is frozen. Blocks, at most `within`.
///
/// # Errors
/// [`FreezeError`]. The group is thawed again.
pub fn freeze(freeze: BorrowedFd<'_>, events: BorrowedFd<'_>, within: Duration) -> Result<(), FreezeError> {
    let reached = begin(freeze, events, true).and_then(|progress| match progress {
        Progress::Reached => Ok(()),
        Progress::Pending => finish(events, true, within),
    });
    settle(freeze, reached, within)
}

/// Completes every attempt: a failed one is undone here.
///
/// # Errors
/// The failure as a [`FreezeError`].
pub fn settle(freeze: BorrowedFd<'_>, reached: io::Result<()>, within: Duration) -> Result<(), FreezeError> {
    let Err(error) = reached else { return Ok(()) };
    // Fails for a removed group, which needs no thaw.
    write_wish(freeze, false).ok();
    match error.kind() {
        io::ErrorKind::TimedOut => Err(FreezeError::TooSlow(within)),
        _ => Err(FreezeError::Io(error)),
    }
}

/// Thaws the group. The processes may resume shortly after the return; there is nothing to wait
/// for.
///
/// # Errors
/// As for the file operations; `ENODEV` if the group was removed.
pub fn thaw(freeze: BorrowedFd<'_>) -> io::Result<()> {
    write_wish(freeze, false)
}

fn write_wish(freeze: BorrowedFd<'_>, frozen: bool) -> io::Result<()> {
    rustix::io::pwrite(freeze, if frozen { b"1" } else { b"0" }, 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_text() {
        let of = |populated, frozen| Events { populated, frozen };
        for (text, want) in [
            ("populated 1\nfrozen 0\n", of(true, false)),
            ("populated 1\nfrozen 1\n", of(true, true)),
            ("frozen 1\nnew 7\npopulated 0\n", of(false, true)),
            ("populated 1", of(true, false)),
            ("", of(false, false)),
            ("frozen\npopulated", of(false, false)),
        ] {
            assert_eq!(parse_events(text), want, "{text:?}");
        }
    }

    /// A file that never reads `frozen 1` simulates a process that cannot be frozen.
    #[test]
    fn a_freeze_that_never_comes_is_undone() {
        use std::io::{Read, Seek, Write};
        use std::os::fd::AsFd;
        let mut events = tempfile::tempfile().expect("a temporary file");
        events.write_all(b"populated 1\nfrozen 0\n").expect("written");
        let mut wish = tempfile::tempfile().expect("a temporary file");
        let within = Duration::from_millis(60);
        let start = Instant::now();
        let error = freeze(wish.as_fd(), events.as_fd(), within).expect_err("never frozen");
        assert!(matches!(error, FreezeError::TooSlow(_)), "{error}");
        assert!(start.elapsed() >= within);
        let mut text = String::new();
        wish.rewind().expect("rewound");
        wish.read_to_string(&mut text).expect("read");
        assert_eq!(text, "0", "the last write must be a thaw");
    }
}
