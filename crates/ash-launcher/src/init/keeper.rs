//! Between init and a command with a deadline: nothing that the command starts can leave it, so the deadline ends all.
//!
//! ```text
//!   init --+-- claude ...
//!          +-- keeper (child subreaper) -- command --+-- its children
//!                        ^                           +-- a daemon: forked twice, setsid
//!                        +---- adopts it, because its parents ended ----+
//! ```
//!
//! A process group or a session would not do: `setsid` leaves both. An orphan cannot choose its new parent: it is the
//! nearest subreaper above it (prctl(2)), and `CLONE_PARENT` gives a sibling, which is the keeper's child too. The keeper
//! is of init's user, so the payload can neither signal nor trace it.
//!
//! | the command | the keeper ends with |
//! |---|---|
//! | exits with n | n; what it left running in the background goes on, as init's |
//! | dies of signal n | 128 + n, as a shell says it |
//! | runs past the deadline | SIGALRM, when all of its processes are gone |

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, WaitStatus, wait};

use ash_kernel::{clone, pidfd, procfs};

/// How long the killing is repeated: long enough for processes that fork as fast as they can, or stand in the kernel.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Exit status when the keeper itself cannot go on; the shells have it for "found, and not executable".
const BROKEN: i32 = 126;

/// Waits for `command`, this process's only child so far, at most `within`. SIGCHLD is blocked already, as in init.
pub fn keep(command: i32, within: Duration) -> ! {
    let status = match watch(command, within) {
        Ok(Some(status)) => status,
        Ok(None) => {
            // The one way out that no command's own end looks like; see the table.
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

/// The command's end as an exit status; `None` when the deadline came first.
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
        // Top down: whose parent ends becomes a child of the keeper, and comes next.
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
    /// The command has ended, with this status.
    Command(i32),
    /// Some processes still run.
    Others,
    /// There is no child left, and so no descendant.
    Nobody,
}

/// Reaps everything that ended.
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
