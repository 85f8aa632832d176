//! Without systemd, a small process between ashd and a companion (launcher or gateway). It runs the
//! companion in its own session, so that neither a closed terminal nor the end of ashd ends it, and
//! restarts it after a crash.
//!
//! ```text
//!   keeper: setsid -> start -> wait --exit 0, SIGTERM, SIGINT--> end
//!                       ^        |
//!                       +--------+ a signal, exit code 101 (panic), any failure after it served,
//!                                  a missing program (during an upgrade): restart after 200 ms,
//!                                  doubled up to 5 s, without limit
//! ```
//!
//! A first start that fails by itself (a wrong flag, a used port) is not repeated: ashd shows the
//! error and ends.
//!
//! The gateway's keeper is root and has the model key in its environment, to pass it to the next
//! gateway. It reads nothing and communicates with no process; root could read the key anyway.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use ash_kernel::sanitize;

/// First argument of the keeper. Internal, so not in the help.
pub const KEEP: &str = "keep";
/// First argument of the unprivileged stage.
pub const UNPRIVILEGED: &str = "serve-unprivileged";

/// Pause before a restart; doubled at each consecutive failure.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A companion that ran this long has served: its next failure counts as the first.
const SERVED: Duration = Duration::from_secs(10);

/// Runs `command` (a program and its arguments) until it ends by itself. Meanwhile `file` is locked
/// and contains the keeper's pid.
///
/// # Errors
/// The program's failure, or why it cannot be kept.
pub fn keep(file: &Path, command: &[std::ffi::OsString]) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Err("keep: the program is missing".to_owned()) };
    ash_observe::logging::start("ash-keeper", None)?;
    nix::sys::prctl::set_name(c"ash-keeper").map_err(|errno| format!("keep: {errno}"))?;
    nix::unistd::setsid().map_err(|errno| format!("keep: cannot create a session: {errno}"))?;
    sanitize::close_inherited(0).map_err(|why| format!("keep: cannot close inherited descriptors: {why}"))?;
    let _lock = hold(file).map_err(|why| format!("keep: {}: {why}", file.display()))?;
    let (mut past, mut failures) = (Past::New, 0);
    loop {
        let began = Instant::now();
        match Command::new(program).args(arguments).spawn() {
            Ok(mut child) => {
                let status = child.wait().map_err(|why| format!("{}: {why}", program.display()))?;
                if began.elapsed() >= SERVED {
                    (past, failures) = (Past::Served, 0);
                }
                match judge(status, past) {
                    Next::Done => return Ok(()),
                    Next::Failed => return Err(format!("{}: {status}", program.display())),
                    Next::Again => {
                        tracing::error!(program = %program.display(), %status, "ended unexpectedly; restarting it")
                    }
                }
                past = past.max(Past::Crashed);
            }
            Err(why) if past != Past::New => {
                tracing::error!(program = %program.display(), %why, "cannot be started; retrying");
            }
            Err(why) => return Err(format!("{}: {why}", program.display())),
        }
        std::thread::sleep(pause(failures));
        failures += 1;
    }
}

/// The companion's earlier processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Past {
    New,
    /// It started and crashed.
    Crashed,
    Served,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Done,
    Failed,
    Again,
}

/// 101 is the exit code of a panic. SIGTERM and SIGINT are requests to end. A failure by itself is
/// final if the companion never served.
fn judge(status: ExitStatus, past: Past) -> Next {
    use nix::libc::{SIGINT, SIGTERM};
    let crashed = status.code() == Some(101) || status.signal().is_some();
    match (status.success(), status.signal()) {
        (true, _) => Next::Done,
        (_, Some(SIGTERM | SIGINT)) => Next::Failed,
        _ if crashed || past != Past::New => Next::Again,
        _ => Next::Failed,
    }
}

fn pause(failures: u32) -> Duration {
    PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE)
}

/// Only root may open the file: any process that can open it can lock it, which would look like a
/// running keeper.
fn hold(file: &Path) -> std::io::Result<Flock<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file)?;
    // An earlier version may have left one.
    file.set_permissions(Permissions::from_mode(0o600))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    lock.set_len(0)?;
    lock.write_all(format!("{}\n", std::process::id()).as_bytes())?;
    Ok(lock)
}

/// The pid in the file of a running keeper; `None` when none runs, whatever the file contains.
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
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "others could lock it");
        drop(held);
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        drop(hold(&file).unwrap());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(holder(&file).unwrap(), None);
    }

    #[test]
    fn a_crash_is_not_an_end_and_a_failure_is_one_only_at_first() {
        use Next::{Again, Done, Failed};
        // Wait statuses (wait(2)): exit code in the second byte, signal in the first.
        for (raw, at_first, later) in [
            (0, Done, Done),
            (1 << 8, Failed, Again),
            (101 << 8, Again, Again),
            (9, Again, Again),
            (11, Again, Again),
            (15, Failed, Failed),
            (2, Failed, Failed),
        ] {
            let status = ExitStatus::from_raw(raw);
            let judged = [Past::New, Past::Crashed, Past::Served].map(|past| judge(status, past));
            assert_eq!(judged, [at_first, later, later], "{raw}");
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses = [0, 1, 4, 5, 40, u32::MAX].map(|n| pause(n).as_millis());
        assert_eq!(pauses, [200, 400, 3200, 5000, 5000, 5000]);
    }
}
