//! A small process between ashd and a companion (launcher or gateway), when there is no systemd: it gives the companion
//! a session of its own, so that neither a closed terminal nor the end of ashd ends it, and starts it again after a crash.
//!
//! ```text
//!   keeper: setsid -> start -> wait --exit 0 or 2..--> end
//!                       ^        |
//!                       +--------+ a signal, or a panic's 101: after 200 ms, at most 10 times a minute
//! ```
//!
//! The gateway's keeper is root and has the model key in its environment, to hand it to the next gateway. It reads nothing and
//! talks to nobody; root could read the key anyway.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// First argument of the keeper. Not for people, so not in the help.
pub const KEEP: &str = "keep";
/// First argument of the stage without privileges.
pub const UNPRIVILEGED: &str = "serve-unprivileged";

/// Pause before a companion is started again.
const PAUSE: Duration = Duration::from_millis(200);
/// More crashes than this within [`WINDOW`] are not mended by another start.
const CRASHES: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// Runs `command` (a program and its arguments) until it ends by itself. Meanwhile `file` is locked and holds the keeper's pid.
///
/// # Errors
/// What the program failed with, or why it cannot be kept.
pub fn keep(file: &Path, command: &[std::ffi::OsString]) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Err("keep: no program is named".to_owned()) };
    crate::observe::logging::start("ash-keeper", None)?;
    nix::sys::prctl::set_name(c"ash-keeper").map_err(|errno| format!("keep: {errno}"))?;
    nix::unistd::setsid().map_err(|errno| format!("keep: no session of its own: {errno}"))?;
    let _lock = hold(file).map_err(|why| format!("keep: {}: {why}", file.display()))?;
    let mut crashes = Vec::new();
    loop {
        let mut child =
            Command::new(program).args(arguments).spawn().map_err(|why| format!("{}: {why}", program.display()))?;
        let status = child.wait().map_err(|why| format!("{}: {why}", program.display()))?;
        if !crashed(status) {
            return if status.success() { Ok(()) } else { Err(format!("{}: {status}", program.display())) };
        }
        crashes.retain(|at: &Instant| at.elapsed() < WINDOW);
        crashes.push(Instant::now());
        if crashes.len() > CRASHES {
            return Err(format!("{}: {status}; crashed {CRASHES} times within {WINDOW:?}", program.display()));
        }
        tracing::error!(program = %program.display(), %status, "crashed; it is started again");
        std::thread::sleep(PAUSE);
    }
}

fn hold(file: &Path) -> std::io::Result<Flock<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(file)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    lock.set_len(0)?;
    lock.write_all(format!("{}\n", std::process::id()).as_bytes())?;
    Ok(lock)
}

/// The pid in the file of a keeper that lives; `None` when none does, whatever the file says.
pub(super) fn holder(file: &Path) -> std::io::Result<Option<String>> {
    let open = match File::open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match Flock::lock(open, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((_, Errno::EWOULDBLOCK)) => std::fs::read_to_string(file).map(|pid| Some(pid.trim().to_owned())),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// 101 is what a panic exits with. SIGTERM and SIGINT are somebody's wish.
fn crashed(status: ExitStatus) -> bool {
    use nix::libc::{SIGINT, SIGTERM};
    status.code() == Some(101) || status.signal().is_some_and(|signal| signal != SIGTERM && signal != SIGINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_held_as_long_as_its_keeper_lives() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.keeper");
        assert_eq!(holder(&file).unwrap(), None);
        let held = hold(&file).unwrap();
        assert_eq!(holder(&file).unwrap(), Some(std::process::id().to_string()));
        assert!(hold(&file).is_err());
        drop(held);
        assert_eq!(holder(&file).unwrap(), None);
    }

    #[test]
    fn a_crash_is_not_an_end() {
        // Wait statuses as wait(2) gives them: exit code in the second byte, signal in the first.
        for (raw, expected) in
            [(0, false), (1 << 8, false), (101 << 8, true), (9, true), (11, true), (15, false), (2, false)]
        {
            assert_eq!(crashed(ExitStatus::from_raw(raw)), expected, "{raw}");
        }
    }
}
