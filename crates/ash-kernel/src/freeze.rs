//! Freezing a cgroup, and being sure of it.
//!
//! ```text
//!            write 1                 cgroup.events says frozen 1
//!   running ---------> freezing ------------------------------------> frozen
//!      ^                  | 5 s are over, or an error                   |
//!      |     write 0      v                                             | write 0
//!      +<------------- thawed again, Err <------------------------------+
//! ```
//!
//! The kernel answers the write before the group is frozen, but for an idle group `frozen 1` can be read about 45 us
//! later. Its notice on `cgroup.events` comes at most once in 10 ms, so it is waited for only when the first read said
//! no. A freeze that fails is always undone: a half-frozen group would be neither paused nor running.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a freeze may take. 100 busy processes on two cores need about half a millisecond; a process in an
/// uninterruptible wait (a hung NFS server) needs for ever.
pub const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// The notice may be swallowed by the kernel's rate limit, so the file is read again this often.
const READ_AGAIN: Duration = Duration::from_millis(20);
/// Reads of the file before the first wait: most groups are frozen within them.
const EAGER_READS: u32 = 3;

/// A group of idle processes is frozen after 0.05 to 0.6 ms, but the kernel sends at most one notice in about 10 ms (both
/// measured). So for this long the file is read again, and only then is the notice waited for.
const SOON: Duration = Duration::from_millis(3);
const READ_SOON: Duration = Duration::from_micros(100);

/// The two words of `cgroup.events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A living process is in the group or below it.
    pub populated: bool,
    /// Every process in it stands still.
    pub frozen: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("the kernel did not report the group as frozen within {} ms; it was thawed again", .0.as_millis())]
    TooSlow(Duration),
    #[error("cgroup.freeze or cgroup.events: {0}")]
    Io(#[from] io::Error),
}

/// Whether the first, immediate look was enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Reached,
    /// [`finish`] waits for it, and blocks.
    Pending,
}

/// Parses `cgroup.events`; words it does not know are skipped.
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

/// Reads `cgroup.events` from its beginning; this also re-arms the notice.
///
/// # Errors
/// `ENODEV` when the group was removed.
pub fn read_events(events: BorrowedFd<'_>) -> io::Result<Events> {
    let mut buffer = [0; 256];
    let len = rustix::io::pread(events, &mut buffer, 0)?;
    Ok(parse_events(&String::from_utf8_lossy(&buffer[..len])))
}

/// Writes the wish and looks at once. Takes about 50 us and never waits, so an async task may call it.
///
/// On an error, or when [`finish`] is not called after `Pending`, the caller must [`thaw`].
///
/// # Errors
/// What the kernel answers; `ENODEV` when the group was removed.
pub fn begin(freeze: BorrowedFd<'_>, events: BorrowedFd<'_>, frozen: bool) -> io::Result<Progress> {
    write_wish(freeze, frozen)?;
    for _ in 0..EAGER_READS {
        if read_events(events)?.frozen == frozen {
            return Ok(Progress::Reached);
        }
    }
    Ok(Progress::Pending)
}

/// Waits until the group is in the wished state, at most `within`. Blocks.
///
/// # Errors
/// `TimedOut` when it is not; what the kernel answers otherwise.
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

/// Freezes the group and returns when every process in it stands still. Blocks, at most `within`.
///
/// # Errors
/// [`FreezeError`]; the group is thawed again in every case.
pub fn freeze(freeze: BorrowedFd<'_>, events: BorrowedFd<'_>, within: Duration) -> Result<(), FreezeError> {
    let reached = begin(freeze, events, true).and_then(|progress| match progress {
        Progress::Reached => Ok(()),
        Progress::Pending => finish(events, true, within),
    });
    settle(freeze, reached, within)
}

/// The end of every attempt: a failed one is undone here.
///
/// # Errors
/// The failure, in this module's words.
pub fn settle(freeze: BorrowedFd<'_>, reached: io::Result<()>, within: Duration) -> Result<(), FreezeError> {
    let Err(error) = reached else { return Ok(()) };
    // A removed group cannot be thawed, and has nothing left to thaw.
    write_wish(freeze, false).ok();
    match error.kind() {
        io::ErrorKind::TimedOut => Err(FreezeError::TooSlow(within)),
        _ => Err(FreezeError::Io(error)),
    }
}

/// Lets the group run. The processes run when this returns or shortly after: what they do next is their own
/// scheduling, so there is nothing to wait for.
///
/// # Errors
/// What the kernel answers; `ENODEV` when the group was removed.
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

    /// A file that never says `frozen 1` stands for a group with a process that cannot be stopped.
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
        assert_eq!(text, "0", "the last wish must be to thaw");
    }
}
