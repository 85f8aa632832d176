//! `POST /api/sessions/:id/exec`: a command beside claude, in the same sandbox, with the same
//! confinement and environment.
//!
//! ```text
//!   driver: active? thaw --> Place --> init: keeper -> bash -c command
//!                                        |       stdout, stderr: pipes
//!             ExecResult <-- end ........+       |
//!                  ^------------------ drain <---+   keeps 1 MiB, reads 64 MiB, then closes
//!                                                    (SIGPIPE)
//! ```
//!
//! The keeper in the sandbox enforces the deadline, independent of ashd and the client. Background
//! jobs keep running after the answer: init gets the reading ends of their pipes, and discards
//! their output.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::fs::{Mode, fchmod};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::time::timeout;

use crate::gateway::windows::Hold;
use crate::sandbox::{LauncherError, Sandbox, Watched};
use crate::sessions::api::owned_session::Own;
use crate::sessions::claude::MAX_ARG_BYTES;
use crate::sessions::claude::process_record::FIRST_EXEC_CHILD;
use crate::sessions::driver::Request;
use crate::sessions::launch::bounded_output::Drain;
use crate::sessions::launch::launcher_error;
use crate::sessions::monitor::exit_cause::OomCount;
use crate::sessions::quota::shares::{Bounds, Over, Shares};
use crate::sessions::{SessionError, Sessions};
use ash_model::{SessionStatus, TenantId};
use ash_protocol::init::{Exit, SpawnSpec};

/// Concurrent commands of one tenant (above it 429) and of all sessions (503). Each may hold 2 MiB
/// of output.
pub const RUNNING: Bounds = Bounds { each: 64, all: 256 };
/// Default deadline in milliseconds.
pub const DEFAULT_TIMEOUT_MS: u64 = 30_000;
pub const MAX_TIMEOUT_MS: u64 = 300_000;
/// Wait for the end after the deadline: the keeper stops killing after 10 s. Only a frozen sandbox
/// is later.
pub(in crate::sessions) const GRACE: Duration = Duration::from_secs(11);
/// Wait for init's answer when it gets the pipes of background jobs.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Exit code of a command that exceeded its deadline, as in timeout(1).
const TIMED_OUT: i32 = 124;

/// Result of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecResult {
    /// 0 to 255; 128 + n for a death by signal n; 124 for an exceeded deadline.
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
    pub timed_out: bool,
    /// Whether stdout or stderr is incomplete; a note in the text says so.
    pub truncated: bool,
}

impl ExecResult {
    /// Appends a note of ashd to stderr.
    fn say(&mut self, what: &str) {
        if !self.stderr.is_empty() && !self.stderr.ends_with('\n') {
            self.stderr.push('\n');
        }
        self.stderr += &format!("[ashd: {what}]\n");
    }
}

/// Counts and numbers running commands.
#[derive(Debug)]
pub struct Execs {
    running: Shares<TenantId>,
    next: AtomicU32,
}

impl Execs {
    /// init's number for a new command.
    pub fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Default for Execs {
    /// Numbers begin at a random place in their lower half: init must not see one twice in the life
    /// of a sandbox, which may outlive this daemon.
    fn default() -> Self {
        let mut random = [0; 4];
        getrandom::fill(&mut random).expect("getrandom works once the kernel has booted");
        let next = FIRST_EXEC_CHILD + u32::from_le_bytes(random) / 2;
        Self { running: Shares::default(), next: AtomicU32::new(next) }
    }
}

/// Where a command may run now.
#[derive(Debug)]
pub struct Place {
    pub sandbox: Sandbox,
    pub env: Vec<(String, String)>,
    /// While it lives, the session is not idle.
    pub guest: Arc<()>,
    /// While it lives, the model may be asked.
    pub window: Hold,
}

impl Sessions {
    /// Runs `command` with the sandbox's shell in /workspace; returns when it has ended.
    ///
    /// # Errors
    /// `NotActive`, also when the session is stopped meanwhile; `Invalid` for an invalid command;
    /// `Unavailable` when too many run; `Failed` when it cannot be started.
    pub async fn exec(&self, own: &Own, command: &str, timeout_ms: u64) -> Result<ExecResult, SessionError> {
        check(command)?;
        let execs = &self.shared.execs;
        let tenant = own.tenant();
        let _running = execs.running.take(tenant, 1, RUNNING).map_err(|over| match over {
            Over::Own => SessionError::Unavailable(format!(
                "tenant {tenant} runs {} commands already, the maximum of one tenant; try again",
                RUNNING.each
            )),
            Over::All => SessionError::Unavailable(format!(
                "too many commands run on this host (limit {}), tenant {tenant} may start no more now; try again",
                RUNNING.all
            )),
        })?;
        let place = self.ask(own, |reply| Request::Exec { reply }).await?;
        let kills = OomCount::read(&place.sandbox.info.cgroup);
        match run(&place, || execs.number(), command, Duration::from_millis(timeout_ms)).await {
            Err(ExecError::Gone) => Err(self.lost(own).await?),
            Err(ExecError::Session(error)) => Err(error),
            Ok(mut result) => {
                let more = OomCount::read(&place.sandbox.info.cgroup).since(kills);
                if more.number > 0 {
                    // They may have changed while the command ran.
                    let limits = self.get(own.tenant(), own.id()).await?.limits;
                    let oom = self.shared.oom(own.id(), &limits, more).await;
                    result.say(&format!("memory: while the command ran, {}", oom.words()));
                }
                Ok(result)
            }
        }
    }

    /// The reason why a command's sandbox is gone, which the session's task learns at the same
    /// time.
    async fn lost(&self, own: &Own) -> Result<SessionError, SessionError> {
        const TRIES: u32 = 20;
        for _ in 0..TRIES {
            let now = self.get(own.tenant(), own.id()).await?;
            match (now.status, now.error) {
                (SessionStatus::Active, _) => tokio::time::sleep(Duration::from_millis(50)).await,
                (SessionStatus::Error, Some(why)) => {
                    return Ok(SessionError::Failed(format!("the command ended with its session: {why}")));
                }
                (status, _) => return Ok(SessionError::NotActive(status)),
            }
        }
        Ok(SessionError::Failed("the command ended, because its sandbox was replaced by a new one".to_owned()))
    }
}

fn check(command: &str) -> Result<(), SessionError> {
    if command.trim().is_empty() {
        return Err(SessionError::Invalid("command is required: a line for /bin/bash".to_owned()));
    }
    if command.contains('\0') {
        return Err(SessionError::Invalid("command must not contain a NUL character".to_owned()));
    }
    if command.len() > MAX_ARG_BYTES {
        return Err(SessionError::Invalid(format!(
            "command is too long, maximum {MAX_ARG_BYTES} bytes: write it to a file of the workspace and run that"
        )));
    }
    Ok(())
}

enum ExecError {
    /// The sandbox is gone.
    Gone,
    Session(SessionError),
}

impl From<LauncherError> for ExecError {
    fn from(error: LauncherError) -> Self {
        match &error {
            LauncherError::Gone => Self::Gone,
            // Before the process exists, only init's own bound refuses it.
            LauncherError::Failed(failure) if failure.step == "spawn" => Self::Session(SessionError::Unavailable(
                format!("the session cannot run another command: {}; try again", failure.message),
            )),
            LauncherError::Failed(failure) => {
                Self::Session(SessionError::Failed(format!("the command could not be started ({failure})")))
            }
            _ => Self::Session(launcher_error(&error)),
        }
    }
}

async fn run(place: &Place, child: impl Fn() -> u32, command: &str, within: Duration) -> Result<ExecResult, ExecError> {
    let (mut watched, mut out, mut err) = match start(place, child(), "/bin/bash", command, within).await {
        // An agent's own rootfs may have no bash.
        Err(LauncherError::Failed(failure)) if failure.step == "execve" && failure.message.contains("ENOENT") => {
            start(place, child(), "/bin/sh", command, within).await?
        }
        started => started?,
    };
    let end = tokio::select! {
        end = timeout(within + GRACE, watched.ended()) => end,
        () = async { tokio::join!(out.all(), err.all()); std::future::pending().await } => Ok(None),
    };
    out.rest();
    err.rest();
    let unread = leave(&place.sandbox, [&mut out, &mut err]).await;
    let (exit_code, timed_out) = match end {
        Ok(Some(Exit::Signal(signal))) if signal == Signal::SIGALRM as i32 => (TIMED_OUT, true),
        Ok(Some(Exit::Signal(signal))) => (128 + signal, false),
        Ok(Some(Exit::Code(code))) => (code, false),
        Ok(None) => return Err(ExecError::Gone),
        Err(_) => (TIMED_OUT, true),
    };
    let truncated = out.truncated() || err.truncated();
    let mut result =
        ExecResult { exit_code, stdout: out.text("stdout"), stderr: err.text("stderr"), timed_out, truncated };
    if timed_out {
        let how = match end {
            Ok(_) => "was killed with all processes that it started",
            Err(_) => "could not be killed yet, because the session is paused; it ends when the session continues",
        };
        result.say(&format!("timeout after {} ms: the command {how}", within.as_millis()));
    }
    if let Err(why) = unread {
        result.say(&format!(
            "background: the output of background jobs of the command is lost, and they end when they print: {why}; end jobs \
             that are not needed, or redirect their output to a file"
        ));
    }
    Ok(result)
}

/// Hands the pipes that background jobs still write to over to init.
pub async fn leave<const N: usize>(sandbox: &Sandbox, drains: [&mut Drain; N]) -> Result<(), LauncherError> {
    let pipes: Vec<OwnedFd> = drains.into_iter().filter_map(Drain::left).collect();
    if pipes.is_empty() {
        return Ok(());
    }
    // A frozen init answers later; it has the pipes once they are sent.
    match timeout(HAND_OVER, sandbox.discard(&pipes)).await {
        // Without the sandbox there are no jobs.
        Err(_) | Ok(Err(LauncherError::Gone)) => Ok(()),
        Ok(done) => done,
    }
}

async fn start(
    place: &Place,
    child: u32,
    shell: &str,
    command: &str,
    within: Duration,
) -> Result<(Watched, Drain, Drain), LauncherError> {
    let spec = SpawnSpec {
        argv: vec![shell.to_owned(), "-c".to_owned(), command.to_owned()],
        env: place.env.clone(),
        cwd: "/workspace".to_owned(),
        stdin: false,
        within_ms: Some(u64::try_from(within.as_millis()).unwrap_or(MAX_TIMEOUT_MS)),
        leaves_share: true,
    };
    let failed = |error: std::io::Error| LauncherError::Protocol(format!("pipe: {error}"));
    let (out, stdout) = pipe().map_err(failed)?;
    let (err, stderr) = pipe().map_err(failed)?;
    let (out, err) = (Drain::new(out).map_err(failed)?, Drain::new(err).map_err(failed)?);
    let watched = place.sandbox.spawn_watched(child, &spec, stdout, stderr).await?;
    Ok((watched, out, err))
}

/// For a command's output: the reading end, non-blocking, and the writing end.
pub fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Mode 666: otherwise `echo > /dev/stderr` of another user fails, because a pipe belongs to its
    // creator.
    fchmod(&write, Mode::from_raw_mode(0o666))?;
    rustix::io::ioctl_fionbio(read.as_fd(), true)?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_no_shell_can_be_given_are_refused() {
        for (command, part) in [
            (String::new(), "command is required"),
            (" \n".to_owned(), "command is required"),
            ("a\0b".to_owned(), "NUL"),
            ("x".repeat(MAX_ARG_BYTES + 1), "too long, maximum 131071 bytes"),
        ] {
            let error = check(&command).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(check(&"x".repeat(MAX_ARG_BYTES)).is_ok());
    }

    #[test]
    fn numbers_have_room_to_grow() {
        for _ in 0..100 {
            let first = Execs::default().next.into_inner();
            assert!((FIRST_EXEC_CHILD..u32::MAX / 2 + FIRST_EXEC_CHILD + 1).contains(&first), "{first}");
        }
    }
}
