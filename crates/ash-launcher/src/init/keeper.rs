//! The keeper of a command with a deadline. No process of the command can leave it, so the deadline
//! ends all of them.
//!
//! ```text
//!   init --+-- claude ...
//!          +-- keeper (child subreaper) -- command --+-- its children
//!                        ^                           +-- a daemon: forked twice, setsid
//!                        +---- adopts it, because its parents ended ----+
//! ```
//!
//! A process group or a session is not sufficient, because `setsid` leaves both. An orphan cannot
//! choose its new parent: it is the nearest subreaper above (prctl(2)). `CLONE_PARENT` creates a
//! sibling, which is the keeper's child too. The keeper runs as init's user, so the payload can
//! neither signal nor trace it.
//!
//! | the command | exit of the keeper |
//! |---|---|
//! | exits with n | n; background processes continue as children of init |
//! | is killed by signal n | 128 + n, as in a shell |
//! | runs past the deadline | SIGALRM, after all of its processes have ended |

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, WaitStatus, wait};

use ash_kernel::{clone, pidfd, procfs};

/// How long killing is repeated, for processes that fork fast or hang in the kernel.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Exit status if the keeper itself fails. Shells use it for "found, but not executable".
const BROKEN: i32 = 126;

/// Waits for `command`, so far this process's only child, at most `within`. SIGCHLD is already
/// blocked, as in init.
pub fn keep(command: i32, within: Duration) -> ! {
    let status = match watch(command, within) {
        Ok(Some(status)) => status,
        Ok(None) => {
            // The only end that differs from every end of a command; see the table.
            nix::sys::signal::raise(Signal::SIGALRM).ok();
            BROKEN
        }
        Err(_) => {
            for pid in procfs::children().unwrap_or_default() {
                kill(pid);
            }
            BROKEN
        }
    };
    clone::exit_now(status)
}

/// The command's end as an exit status. `None` if the deadline came first.
fn watch(command: i32, within: Duration) -> io::Result<Option<i32>> {
    let deadline = Instant::now() + within;
    let mut sigchld = SigSet::empty();
    sigchld.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&sigchld, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        if let Reaped::Command(status) = reap(command) {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        await_child(&signals, left)?;
    }
    let give_up = Instant::now() + END_WITHIN;
    while Instant::now() < give_up {
        // Top down: children of an ended process become the keeper's and are handled next.
        for pid in procfs::children()? {
            kill(pid);
        }
        if matches!(reap(0), Reaped::Nobody) {
            break;
        }
        await_child(&signals, Duration::from_millis(1))?;
    }
    Ok(None)
}

fn await_child(signals: &SignalFd, within: Duration) -> io::Result<()> {
    match pidfd::wait_readable(signals.as_fd(), within) {
        Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(error),
        _ => {}
    }
    while let Ok(Some(_)) = signals.read_signal() {}
    Ok(())
}

fn kill(pid: i32) {
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

enum Reaped {
    Command(i32),
    Others,
    /// No child is left, and so no descendant.
    Nobody,
}

fn reap(command: i32) -> Reaped {
    let mut ended = None;
    let rest = loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == command => ended = Some(code(status)),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => break Reaped::Others,
            Err(_) => break Reaped::Nobody,
        }
    };
    ended.map_or(rest, Reaped::Command)
}

fn code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => BROKEN,
    }
}
