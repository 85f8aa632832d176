//! Runs programs without root's privileges.
//!
//! Downloaded programs, and programs that open another user's files by path (SQLite), run with that
//! user's ids or with ids without an account, never as root. They run in their own session, so that
//! they cannot type into root's terminal (TIOCSTI), with `no_new_privs` and an environment from the
//! caller.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::tree::Owner;

/// Ids without an account and files, below the fallback ids of ashd and the gateway (systemd
/// documents 1879048192 to 2147483647 as unused).
pub const NO_ACCOUNT: Owner = Owner { uid: 1_899_999_996, gid: 1_899_999_996 };

/// A command that runs as `owner` if this process is root, otherwise as this process's user. Stdin
/// and environment are empty.
pub fn command(program: impl AsRef<OsStr>, owner: Owner) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).current_dir("/");
    if rustix::process::geteuid().is_root() {
        // `uid` also drops the supplementary groups. The kernel clears every capability with the
        // last uid of 0.
        command.gid(owner.gid).uid(owner.uid);
    }
    let renounce = || {
        rustix::process::setsid()?;
        rustix::thread::set_no_new_privs(true)?;
        // Ctrl-C reaches only this process, whose end kills the child.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    };
    // SAFETY: runs between fork and exec. All three are plain system calls, without allocation or
    // locks.
    unsafe { command.pre_exec(renounce) };
    command
}

/// The exit status of a command and the first bytes of its output.
#[derive(Debug)]
pub struct Answer {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs a command to its end, at most `within`. Keeps the first `most` bytes of each output.
/// Everything it started in its session is killed with it.
///
/// # Errors
/// The command cannot be started, or [`io::ErrorKind::TimedOut`].
pub fn answer(command: &mut Command, within: Duration, most: usize) -> io::Result<Answer> {
    let mut child = Session(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    let deadline = Instant::now() + within;
    let (mut out, mut err) = (child.0.stdout.take(), child.0.stderr.take());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while out.is_some() || err.is_some() {
        wait_for(&out, &err, deadline)?;
        drain(&mut out, &mut stdout, most)?;
        drain(&mut err, &mut stderr, most)?;
    }
    loop {
        if let Some(status) = child.0.try_wait()? {
            return Ok(Answer { status, stdout, stderr });
        }
        left(deadline)?;
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A child whose session is killed with this value.
struct Session(Child);

impl Drop for Session {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, killpg};
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // Fails if the group has already ended.
            let _ = killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "did not exit in time")) } else { Ok(left) }
}

fn wait_for(
    out: &Option<std::process::ChildStdout>,
    err: &Option<std::process::ChildStderr>,
    deadline: Instant,
) -> io::Result<()> {
    use std::os::fd::AsFd;
    let fds = [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)];
    let mut fds: Vec<PollFd<'_>> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let time = PollTimeout::try_from(left(deadline)?).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, time) {
        Err(nix::errno::Errno::EINTR) | Ok(_) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads once without blocking. `None` at the end.
fn drain<R: Read + std::os::fd::AsFd>(from: &mut Option<R>, to: &mut Vec<u8>, most: usize) -> io::Result<()> {
    let Some(reader) = from else { return Ok(()) };
    let mut ready = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::ZERO)? == 0 {
        return Ok(());
    }
    let mut piece = [0; 4096];
    match reader.read(&mut piece)? {
        0 => *from = None,
        n => to.extend_from_slice(&piece[..n.min(most.saturating_sub(to.len()))]),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(script: &str, within: Duration) -> io::Result<Answer> {
        answer(command("/bin/sh", NO_ACCOUNT).args(["-c", script]).env("PATH", "/usr/bin:/bin"), within, 64)
    }

    #[test]
    fn it_has_none_of_roots_privileges() {
        let script =
            "id -u; id -G; grep -E '^(CapEff|NoNewPrivs):' /proc/self/status | tr '\\n' ' '; env | grep -c HOME";
        let answer = said(script, Duration::from_secs(20)).unwrap();
        let text = String::from_utf8(answer.stdout).unwrap();
        if rustix::process::geteuid().is_root() {
            assert!(text.starts_with("1899999996\n1899999996\n"), "{text}");
        }
        assert!(text.contains("0000000000000000") && text.contains("NoNewPrivs:\t1"), "{text}");
        // The first field after name and state: parent, group, session.
        let script = "s=$(sed 's/.*) //' /proc/$$/stat); set -- $s; [ $4 = $$ ] && echo own";
        assert_eq!(said(script, Duration::from_secs(20)).unwrap().stdout, b"own\n");
    }

    #[test]
    fn time_and_bytes_are_bounded() {
        let error = said("sleep 60 & sleep 60", Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let answer = said("head -c 1000000 /dev/zero; echo x >&2; exit 3", Duration::from_secs(20)).unwrap();
        assert_eq!((answer.stdout.len(), &answer.stderr[..], answer.status.code()), (64, &b"x\n"[..], Some(3)));
    }
}
