//! From a directory to a claude that answered `initialize`.
//!
//! ```text
//!   cold:   prepare -> sandbox -> probe -> gateway --+-> install.sh, startup.sh --+
//!   parked: limits -> prepare, gateway --------------+                            |
//!   again:  end the previous process ---------------------------------------------+
//!                                                                                 |
//!                                                  spawn -> initialize -> Live <--+
//! ```
//!
//! Each step is timed and named in its error. A failed or cancelled start destroys the whole
//! sandbox and leaves only a directory.

pub mod agent_directory;
pub mod bounded_output;
mod connections;
mod prepare;
pub mod running;
mod scripts;
mod spare;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::pool::Slot;
use crate::sessions::SessionError;
use crate::sessions::claude::background::Background;
use crate::sessions::claude::classify::{Classifier, Kind, classify};
use crate::sessions::claude::process_record::{MessageNumbers, ProcessRecord};
use crate::sessions::claude::transcript;
use crate::sessions::claude::{self, Conversation, LaunchOptions, ProcessFlags, Whose};
use crate::sessions::context::Shared;
use crate::sessions::launch::running::{Applied, Live};
use crate::sessions::monitor::exit_cause::{self, Oom, OomCount};
use crate::sessions::stream::tail::Tail;
use crate::sessions::workspace::layout::SessionDir;
use crate::store::Session;
use ash_observe::events::{self, event};
use ash_protocol::init::SpawnSpec;
use ash_protocol::launcher::Create;

pub use connections::{cancelled, launcher_error};
pub use spare::{Basis, Parked, Program, Room};
use steps::{StepError, Steps, failed};

/// The step in which claude runs.
const INITIALIZE: &str = "initialize";
/// Sandboxes of one tenant that are created at the same time. The launcher creates one after the
/// other, and those of other tenants wait behind these.
pub const STARTS_AT_ONCE: usize = 8;
/// Path of the binary in every sandbox.
const CLAUDE: &str = "/opt/claude/claude";
/// Time from claude's start to its answer to `initialize`.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Time after SIGTERM for a process that is replaced.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// What a start needs. Owned, because it runs beside the session's task.
#[derive(Debug)]
pub struct Plan {
    pub shared: Arc<Shared>,
    pub session: Session,
    pub dir: SessionDir,
    pub options: LaunchOptions,
    pub flags: ProcessFlags,
    /// The session's newest turn, for the numbers of messages.
    pub turn: i64,
    /// Where the unread part of stdout begins.
    pub offset: u64,
    pub cancel: CancellationToken,
}

impl Plan {
    /// Starts a sandbox and claude in it. If claude cannot start in a parked sandbox, the start
    /// continues cold.
    pub async fn cold(self, room: Room) -> Result<Live, SessionError> {
        let (mut slot, mut live, mut steps) = (None, None, Steps::default());
        let result = match room {
            Room::Empty(free) => {
                slot = Some(free);
                self.cold_steps(&mut slot, &mut live, &mut steps).await
            }
            Room::Parked(parked) => match self.parked_steps(*parked, &mut slot, &mut live, &mut steps).await {
                Err(failure)
                    if ![INITIALIZE, scripts::INSTALL].contains(&failure.step) && !self.cancel.is_cancelled() =>
                {
                    tracing::warn!(ASH_SESSION = %self.session.id, ASH_EVENT = "parked-failed", %steps,
                        "the parked sandbox is discarded, and the session starts cold: {failure}");
                    self.undo().await;
                    slot = live.take().map(Live::into_slot).or(slot);
                    steps.done("discard");
                    self.cold_steps(&mut slot, &mut live, &mut steps).await
                }
                other => other,
            },
        };
        self.conclude(result, live, &steps).await
    }

    /// Ends the running claude and starts another one in the same sandbox, with the same
    /// conversation.
    pub async fn again(self, live: Live) -> Result<Live, SessionError> {
        let (mut live, mut steps) = (live, Steps::default());
        let result = self.again_steps(&mut live, &mut steps).await;
        self.conclude(result, Some(live), &steps).await
    }

    /// Undoes a failed start. The pool's slot is in `live`; it is given back when the sandbox is
    /// gone.
    async fn conclude(
        &self,
        result: Result<(), StepError>,
        live: Option<Live>,
        steps: &Steps,
    ) -> Result<Live, SessionError> {
        let failure = match (result, live) {
            (Ok(()), Some(live)) => {
                tracing::info!(ASH_SESSION = %self.session.id, ASH_EVENT = "started", %steps, "claude is ready");
                return Ok(live);
            }
            (Err(failure), _) => failure,
            (Ok(()), None) => failed("sandbox")("no sandbox".to_owned()),
        };
        self.undo().await;
        if self.cancel.is_cancelled() {
            tracing::info!(ASH_SESSION = %self.session.id, ASH_EVENT = "start-cancelled", %steps, "{failure}");
            return Err(failure.error);
        }
        let lost = failure.step == "conversation" && matches!(failure.error, SessionError::Failed(_));
        event!(if lost { &events::CONVERSATION_LOST } else { &events::START_FAILED }, ASH_SESSION = %self.session.id, ASH_TENANT = %self.session.tenant, %steps, "{failure}");
        Err(failure.error)
    }

    async fn undo(&self) {
        self.shared.remove_sandbox(self.session.id).await;
    }

    async fn cold_steps(
        &self,
        slot: &mut Option<Slot>,
        live: &mut Option<Live>,
        steps: &mut Steps,
    ) -> Result<(), StepError> {
        self.prepare(false).await?;
        steps.done("prepare");
        let admission = tokio::select! {
            admission = self.shared.starts.wait(&self.session.tenant) => admission,
            () = self.cancel.cancelled() => return Err(StepError { step: "prepare", error: cancelled() }),
        };
        self.check_cancelled("prepare")?;

        let create = Create {
            id: self.session.id,
            tenant: self.session.tenant.clone(),
            limits: self.session.limits,
            claude: self.shared.program().binary,
        };
        let sandbox = self
            .shared
            .launcher
            .create(create)
            .await
            .map_err(|e| StepError { step: "sandbox", error: launcher_error(&e) })?;
        let mut events = sandbox.take_events().expect("a new sandbox has its events");
        steps.done("sandbox");
        self.check_cancelled("sandbox")?;
        let mut record = match ProcessRecord::read(&self.dir) {
            Ok(Some(record)) => record,
            Ok(None) => ProcessRecord { token: ProcessRecord::new_token(), ..ProcessRecord::default() },
            // A power cut may leave it empty. Only an ashd that adopts a running process needs its
            // content.
            Err(e) => {
                tracing::warn!(ASH_SESSION = %self.session.id, "process.json is unreadable and is recreated: {e}");
                ProcessRecord { token: ProcessRecord::new_token(), ..ProcessRecord::default() }
            }
        };
        record.child = 0;
        // Concurrent: neither needs the other, and claude needs both. Both run to their end, so
        // that an undo finds nothing in progress.
        let (proof, gateway) = tokio::join!(
            self.shared.prove_confined(self.session.id, &sandbox, &mut events),
            self.shared.open_gateway(&self.session, &sandbox, &record.token, &self.options)
        );
        proof.map_err(|error| StepError { step: "probe", error })?;
        let listener = gateway.map_err(|error| StepError { step: "gateway", error })?;
        drop(admission);
        steps.done("probe and gateway");

        let slot = slot.take().ok_or_else(|| failed("sandbox")("no slot".to_owned()))?;
        let live = live.insert(Live::new(sandbox, events, slot, listener, record));
        self.scripts(live, steps).await?;
        self.start_claude(live, steps).await
    }

    async fn again_steps(&self, live: &mut Live, steps: &mut Steps) -> Result<(), StepError> {
        let step = "end the previous process";
        live.thaw().await.map_err(|e| failed(step)(e.to_string()))?;
        let child = live.record.child;
        let ended = async {
            live.sandbox.signal(child, Signal::SIGTERM as i32, false).await?;
            if tokio::time::timeout(LEAVE_WITHIN, live.ended()).await.is_err() {
                live.sandbox.signal(child, Signal::SIGKILL as i32, true).await?;
                let _ = tokio::time::timeout(LEAVE_WITHIN, live.ended()).await;
            }
            Ok::<_, crate::sandbox::LauncherError>(())
        };
        ended.await.map_err(|e| failed(step)(e.to_string()))?;
        steps.done("leave");
        self.start_claude(live, steps).await
    }

    fn check_cancelled(&self, step: &'static str) -> Result<(), StepError> {
        if self.cancel.is_cancelled() { Err(StepError { step, error: cancelled() }) } else { Ok(()) }
    }

    async fn start_claude(&self, live: &mut Live, steps: &mut Steps) -> Result<(), StepError> {
        let fail = failed("spawn");
        let conversation = self.conversation().await?;
        live.record.child += 1;
        live.record.flags = self.flags.clone();
        live.record.background = false;
        live.record.reports = false;
        live.record.write(&self.dir).map_err(|e| fail(format!("process.json: {e}")))?;
        let stdout = self.dir.open_stdout(self.offset).map_err(|e| fail(format!("stdout: {e}")))?;
        let (stderr, stderr_from) = self.dir.open_stderr().map_err(|e| fail(format!("stderr: {e}")))?;
        let spec = SpawnSpec {
            argv: claude::argv(CLAUDE, &self.options, conversation, &self.flags),
            env: claude::environment_of_claude(&self.options, &Whose::of(&self.session), &live.record.token).vars,
            cwd: "/workspace".to_owned(),
            stdin: true,
            within_ms: None,
            leaves_share: false,
        };
        live.stderr_from = stderr_from;
        live.classifier = Classifier::default();
        live.stale = false;
        live.background = Background::default();
        live.applied = Applied { model: self.options.model.clone(), ..Applied::default() };
        live.numbers = MessageNumbers::after(self.turn, None);
        let mut tail =
            Tail::open(self.dir.root(), self.offset, &self.shared.hub).map_err(|e| fail(format!("stdout: {e}")))?;
        live.sandbox
            .spawn(live.record.child, &spec, stdout.into(), stderr.into())
            .await
            .map_err(|e| fail(format!("{e}; is the claude binary whole? see `ashctl claude list`")))?;
        steps.done("spawn");

        let request = format!("init-{}", live.record.child);
        let line = claude::initialize_line(&request, &self.options);
        if let Err(e) = live.deliver_line(&line).await {
            // Its stdin is closed, so claude has ended; the exit status says more than this error.
            let why = tokio::time::timeout(LEAVE_WITHIN, how_it_ended(live)).await.unwrap_or_else(|_| e.to_string());
            return Err(failed(INITIALIZE)(self.with_stderr(why, stderr_from)));
        }
        let answer = tokio::select! {
            answer = tokio::time::timeout(READY_WITHIN, ready(live, &mut tail, &request)) => answer,
            () = self.cancel.cancelled() => return Err(StepError { step: INITIALIZE, error: cancelled() }),
        };
        let offset = match answer {
            Ok(Ok(offset)) => offset,
            Ok(Err(why)) => return Err(failed(INITIALIZE)(self.with_stderr(why, stderr_from))),
            Err(_) => {
                let why = format!("claude did not answer within {} s", READY_WITHIN.as_secs());
                return Err(failed(INITIALIZE)(self.with_stderr(why, stderr_from)));
            }
        };
        steps.done(INITIALIZE);
        live.read_to = offset;
        live.tail = Some(tail);
        Ok(())
    }

    fn with_stderr(&self, why: String, from: u64) -> String {
        match self.dir.stderr_tail(from) {
            said if said.is_empty() => why,
            said => format!("{why}: {said}"),
        }
    }

    /// A conversation is never lost silently: a session that had one gets it back, or an error.
    async fn conversation(&self) -> Result<Conversation, StepError> {
        let (home, id) = (self.dir.home(), self.session.conversation);
        let recorded = tokio::task::spawn_blocking(move || transcript::exists(&home, id)).await.unwrap_or(false);
        let since = self.session.conversation_turn;
        let had = if recorded { true } else { had_a_turn(&self.shared, self.session.id, since, self.turn).await? };
        choose(recorded, had, id).map_err(|why| StepError { step: "conversation", error: SessionError::Failed(why) })
    }
}

/// The conversation of a new process.
fn choose(recorded: bool, had_a_turn: bool, id: Uuid) -> Result<Conversation, String> {
    match (recorded, had_a_turn) {
        (true, _) => Ok(Conversation::Resumed(id)),
        (false, false) => Ok(Conversation::New(id)),
        (false, true) => Err(format!(
            "the conversation of this session is lost: home/.claude/projects/-workspace/{id}.jsonl is missing in the \
             session's directory. The messages are still in GET .../messages; create a new session to continue"
        )),
    }
}

/// Whether a turn succeeded since the conversation began, so that claude must have written a
/// record.
async fn had_a_turn(shared: &Shared, id: Uuid, since: i64, newest: i64) -> Result<bool, StepError> {
    for number in since + 1..=newest {
        let turn =
            shared.store.turn(id, number).await.map_err(|e| StepError { step: "conversation", error: e.into() })?;
        if turn.is_some_and(|turn| turn.end.is_some() && turn.error.is_none()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits for the answer to `request` and returns the offset after it.
async fn ready(live: &mut Live, tail: &mut Tail, request: &str) -> Result<u64, String> {
    loop {
        tokio::select! {
            biased;
            batch = tail.next_batch() => {
                let batch = batch.map_err(|e| e.to_string())?;
                for (_, _, line) in batch.lines() {
                    if let Kind::ControlResponse { request_id, ok, error } = classify(line).kind
                        && request_id == request
                    {
                        let refused = || format!("claude refused: {}", error.unwrap_or_default());
                        return if ok { Ok(batch.end()) } else { Err(refused()) };
                    }
                }
            }
            why = how_it_ended(live) => return Err(why),
        }
    }
}

/// Waits for the end of claude, and returns its cause.
async fn how_it_ended(live: &mut Live) -> String {
    let status = live.ended().await;
    let memory = live.sandbox.info.limits.memory_bytes;
    let kills = OomCount::read(&live.sandbox.info.cgroup).since(live.oom);
    // Only claude ran so far, so no victim needs a name.
    let oom = (kills.number > 0).then(|| Oom::new(memory, kills, Vec::new()));
    match status {
        Some(status) => exit_cause::exited(status, oom.as_ref(), ""),
        None => exit_cause::sandbox_died(oom.as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_resumed_begun_or_missed_loudly() {
        let id = Uuid::nil();
        assert_eq!(choose(false, false, id), Ok(Conversation::New(id)));
        assert_eq!(choose(true, false, id), Ok(Conversation::Resumed(id)));
        assert_eq!(choose(true, true, id), Ok(Conversation::Resumed(id)));
        let lost = choose(false, true, id).unwrap_err();
        assert!(lost.contains(".jsonl is missing"), "{lost}");
    }
}
