//! `install.sh` and `startup.sh` of an agent. They run in the sandbox as its user, in /workspace,
//! before claude.
//!
//! | script | runs | within | a failure |
//! |---|---|---|---|
//! | `install.sh` | once, when the session is created; not in a fork | 10 min | fails the create |
//! | `startup.sh` | for each new sandbox: create, resume | 60 s | is an event of the timeline |
//!
//! The error and the event have the last lines of its output. Background processes of a script keep
//! running; their output is discarded. The session can be ended or deleted while a script runs.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::steps::{StepError, Steps};
use super::{Plan, cancelled};
use crate::sandbox::LauncherError;
use crate::sandbox::usage::CpuUsage;
use crate::sessions::SessionError;
use crate::sessions::api::exec::{GRACE, leave, pipe};
use crate::sessions::claude::{self, Whose};
use crate::sessions::launch::bounded_output::Drain;
use crate::sessions::launch::running::Live;
use crate::sessions::monitor::resource_monitor::bound;
use ash_protocol::init::{Exit, SpawnSpec};

/// The step in which `install.sh` runs.
pub const INSTALL: &str = "install.sh";
const STARTUP: &str = "startup.sh";
const INSTALL_WITHIN: Duration = Duration::from_secs(600);
const STARTUP_WITHIN: Duration = Duration::from_secs(60);
/// Interval of disk checks. Nothing else watches the disk before the session has started.
const LOOK: Duration = Duration::from_secs(1);
/// Processor time after which a script may have written something.
const BUSY_US: u64 = 20_000;

/// How a script failed: completes a sentence that begins with its name.
type Failed = String;

impl Plan {
    /// Runs both, where the agent has them.
    pub(super) async fn scripts(&self, live: &mut Live, steps: &mut Steps) -> Result<(), StepError> {
        let failed = |error| StepError { step: INSTALL, error };
        if self.dir.install_is_due() {
            let ended = self.script(live, INSTALL, INSTALL_WITHIN).await.map_err(failed)?;
            ended.map_err(|why| failed(SessionError::Install { agent: self.session.agent_name.clone(), why }))?;
            let done = self.dir.installed();
            done.map_err(|e| failed(SessionError::Failed(format!("the session's directory: {e}"))))?;
            steps.done(INSTALL);
        }
        if self.dir.has_script(STARTUP) {
            let failed = |error| StepError { step: STARTUP, error };
            live.startup_failed = self.script(live, STARTUP, STARTUP_WITHIN).await.map_err(failed)?.err();
            steps.done(STARTUP);
        }
        Ok(())
    }

    /// Runs one script to its end. `Err`: the sandbox or ashd failed, or the start was cancelled.
    async fn script(
        &self,
        live: &Live,
        name: &'static str,
        within: Duration,
    ) -> Result<Result<(), Failed>, SessionError> {
        let trouble = |e: std::io::Error| SessionError::Failed(format!("{name} could not be started: pipe: {e}"));
        let (read, stdout) = pipe().map_err(trouble)?;
        let mut out = Drain::of_the_end(read).map_err(trouble)?;
        let stderr = stdout.try_clone().map_err(trouble)?;
        let spec = SpawnSpec {
            argv: vec!["/bin/bash".to_owned(), format!("/workspace/{name}")],
            env: claude::environment(&self.options.env, &Whose::of(&self.session), &live.record.token).vars,
            cwd: "/workspace".to_owned(),
            stdin: false,
            within_ms: u64::try_from(within.as_millis()).ok(),
            leaves_share: true,
        };
        let child = self.shared.execs.number();
        let mut watched = match live.sandbox.spawn_watched(child, &spec, stdout, stderr).await {
            Ok(watched) => watched,
            Err(LauncherError::Failed(failure)) => return Ok(Err(format!("could not be started ({failure})"))),
            Err(e) => return Err(super::launcher_error(&e)),
        };
        let end = tokio::select! {
            end = timeout(within + GRACE, watched.ended()) => Ok(end),
            why = self.over_its_disk(live) => Err(why),
            () = async { out.all().await; std::future::pending().await } => Ok(Ok(None)),
            () = self.cancel.cancelled() => return Err(cancelled()),
        };
        if end.is_err() {
            // Kills the script and its process group; on a failed install the sandbox is destroyed
            // as well.
            live.sandbox.signal(child, Signal::SIGKILL as i32, true).await.ok();
        }
        out.rest();
        leave(&live.sandbox, [&mut out]).await.ok();
        let why = match end {
            Ok(Ok(Some(Exit::Code(0)))) => return Ok(Ok(())),
            Ok(Ok(Some(Exit::Code(code)))) if code > 128 => format!("was killed by signal {}", code - 128),
            Ok(Ok(Some(Exit::Code(code)))) => format!("failed with exit code {code}"),
            Ok(Ok(Some(Exit::Signal(signal)))) if signal != Signal::SIGALRM as i32 => {
                format!("was killed by signal {signal}")
            }
            Ok(Ok(Some(Exit::Signal(_))) | Err(_)) => {
                format!("did not finish within {} s and was killed", within.as_secs())
            }
            Ok(Ok(None)) => "ended with its sandbox; the memory limit may have been reached".to_owned(),
            Err(why) => why,
        };
        let said = out.last_lines();
        Ok(Err(if said.is_empty() { why } else { format!("{why}. Its last lines:\n{said}") }))
    }

    /// Resolves when the session's files exceed the limit.
    async fn over_its_disk(&self, live: &Live) -> Failed {
        let (limits, cgroup) = (&self.session.limits, &live.sandbox.info.cgroup);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = 0;
        loop {
            looks.tick().await;
            let used = CpuUsage::read(cgroup).usage_us.unwrap_or(u64::MAX);
            if used.saturating_sub(seen) < BUSY_US {
                continue;
            }
            seen = used;
            let began = Instant::now();
            let Ok(found) = self.shared.warden.measure(&self.session.tenant, self.dir.root(), bound(limits)).await
            else {
                continue;
            };
            if found.is_over(bound(limits)) {
                return format!(
                    "exceeded the session's disk limit (diskBytes {}, diskFiles {})",
                    limits.disk_bytes, limits.disk_files
                );
            }
            // Walks take at most a tenth of the time.
            tokio::time::sleep(began.elapsed() * 9).await;
        }
    }
}
