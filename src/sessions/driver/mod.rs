//! One task per session: the only writer of its state.
//! ```text
//!    requests --\                                   /--> sandbox (freeze, deliver, signal)
//!    started ----\                                 /---> ledger  (database, then readers)
//!    sandbox -----+--> select --> one at a time --+
//!    lines -------/                                \---> answers to the requests
//!    alarms -----/
//! ```

pub mod adopt;
mod copy;
mod flood;
mod foreign;
pub mod heartbeat;
mod history;
mod ingest;
mod journal;
mod lifecycle;
mod limits;
mod load;
pub mod registry;
mod requests;
mod starts;
mod supervise;
mod turn;

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use self::flood::Allowances;
use crate::gateway::windows::Hold;
use crate::sandbox::SandboxEvent;
use crate::sessions::api::exec::Place;
use crate::sessions::api::new_message::NewMessage;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::claude::turn_tracker::Turns;
use crate::sessions::context::Shared;
use crate::sessions::driver::heartbeat::SharedPulse;
use crate::sessions::launch::running::Live;
use crate::sessions::policy::acceptance::{self, Accept, Standing};
use crate::sessions::policy::timers::{self, Alarm, Clocks};
use crate::sessions::policy::transitions::Verb;
use crate::sessions::quota::history_cap::HistoryCap;
use crate::sessions::stream::tail::{Batch, TailError};
use crate::sessions::workspace::layout::SessionDir;
use crate::sessions::{PatchConfig, SessionError};
use crate::store::{Commit, Session, Turn};
use ash_model::{SessionStatus, Skipped, now_ms};

use journal::Ledger;
use starts::Start;

pub use crate::sessions::timeline::lifecycle;
pub use limits::Looked;

pub type Reply<T> = oneshot::Sender<Result<T, SessionError>>;

/// Requests to a session.
#[derive(Debug)]
pub enum Request {
    /// The first start, of a session that was just inserted.
    Create {
        room: crate::sessions::launch::Room,
        reply: Reply<Session>,
    },
    /// The same for a session that took over a warm sandbox: its claude is ready.
    Claim {
        live: Box<Live>,
        reply: Reply<Session>,
    },
    /// A sandbox of this session was found alive at the start of the daemon.
    Adopt {
        slot: crate::pool::Slot,
    },
    /// At the start of the daemon, this session's row says that it lives, but it does not.
    FoundCold,
    Send {
        /// Id of the turn that it becomes, and of its message.
        id: Uuid,
        message: Box<NewMessage>,
        reply: Reply<Turn>,
    },
    /// A place for a command beside claude, in a running sandbox.
    Exec {
        reply: Reply<Place>,
    },
    Interrupt {
        reply: Reply<Session>,
    },
    Pause {
        reply: Reply<Session>,
    },
    Resume {
        reply: Reply<Session>,
    },
    Stop {
        reply: Reply<Session>,
    },
    End {
        reply: Reply<Session>,
    },
    Patch {
        body: Box<PatchConfig>,
        reply: Reply<Session>,
    },
    /// Copies workspace, home and conversation to another session's directory.
    Fork {
        to: Uuid,
        reply: Reply<(Session, Skipped)>,
    },
    /// The pool needs this paused session's slot.
    Park {
        reply: oneshot::Sender<()>,
    },
    /// New limits of this session; the answer has the effective ones.
    Limits {
        change: crate::sessions::policy::limit_levels::Change,
        admin: bool,
        reply: Reply<Session>,
    },
    /// The limits of a level above were changed.
    LimitsMoved {
        reply: Reply<Session>,
    },
    /// A finding of the warden.
    Found(crate::sessions::monitor::resource_monitor::Finding),
    /// Files were deleted: a session paused by its disk limit may continue.
    FilesChanged,
    /// Reads its condition; wakes nothing.
    Look {
        reply: oneshot::Sender<limits::Looked>,
    },
    /// The gateway's process was replaced and knows no session.
    RegisterAgain,
    /// Ends the session, if it has not ended, and this task: its files are about to be removed.
    Retire {
        reply: Reply<()>,
    },
}

#[derive(Debug)]
pub struct Driver {
    shared: Arc<Shared>,
    dir: SessionDir,
    session: Session,
    options: LaunchOptions,
    /// Why no process can be started: the stored launch options cannot be read. Stop, end and
    /// deletion still work.
    unusable: Option<String>,
    requests: mpsc::Receiver<Request>,
    pulse: SharedPulse,
    ledger: Ledger,
    live: Option<Live>,
    start: Option<Start>,
    waiting: Vec<Request>,
    turns: Turns,
    /// The running turn.
    turn: Option<Running>,
    /// An unasked turn that claude began before the running one.
    foreign: Option<Running>,
    /// What the turn may add to the history.
    cap: HistoryCap,
    /// Number of the newest turn.
    newest: i64,
    paused_since: Option<Instant>,
    last_asked: Instant,
    /// Bounds of its processes' unsolicited work.
    allowances: Allowances,
    /// Retired: no further request comes for this session.
    retired: bool,
}

/// The running turn.
#[derive(Debug)]
struct Running {
    turn: Turn,
    since: Instant,
    interrupted: Option<Interrupted>,
    /// The model may be asked while the turn runs.
    _window: Hold,
}

#[derive(Debug)]
struct Interrupted {
    at: Instant,
    /// Reason for the turn's readers; `None` when the client asked for it.
    why: Option<String>,
    replies: Vec<Reply<Session>>,
    /// claude was in an unasked turn when it was interrupted.
    hit_foreign: bool,
}

enum Wake {
    Request(Option<Request>),
    Started(Box<Result<Live, SessionError>>),
    Sandbox(Option<SandboxEvent>),
    Lines(Result<Batch, TailError>),
    Landed,
    Alarm(Alarm),
}

impl Driver {
    /// Returns when the session rests: this task has left the registry.
    async fn drive(&mut self) {
        loop {
            self.pulse.end();
            let wake = self.wait().await;
            self.pulse.begin();
            match wake {
                Wake::Request(Some(request)) => {
                    self.last_asked = Instant::now();
                    self.request(request).await;
                    if self.retired {
                        return self.refuse_rest();
                    }
                }
                // All handles are gone with the registry, and so is the daemon.
                Wake::Request(None) => return,
                Wake::Started(result) => self.started(*result).await,
                Wake::Sandbox(event) => self.sandbox_event(event).await,
                Wake::Lines(Ok(batch)) => self.ingest(&batch).await,
                Wake::Lines(Err(e)) => self.unreadable(&e).await,
                Wake::Landed => {}
                Wake::Alarm(Alarm::Rest) => {
                    if self.rested() {
                        return self.leave().await;
                    }
                    self.last_asked = Instant::now();
                }
                Wake::Alarm(alarm) => self.alarm(alarm).await,
            }
            self.end_flood().await;
            self.after_start().await;
        }
    }

    async fn wait(&mut self) -> Wake {
        let alarm = timers::next(&self.clocks());
        let room = self.ledger.has_room();
        let Self { requests, start, live, ledger, .. } = self;
        let (events, tail) = match live.as_mut() {
            Some(live) => (Some(&mut live.events), live.tail.as_mut().filter(|_| room)),
            None => (None, None),
        };
        tokio::select! {
            request = requests.recv() => Wake::Request(request),
            result = starts::done(start) => Wake::Started(Box::new(result)),
            event = async { match events { Some(e) => e.recv().await, None => pending().await } } => Wake::Sandbox(event),
            batch = async { match tail { Some(t) => t.next_batch().await, None => pending().await } } => Wake::Lines(batch),
            () = ledger.landed() => Wake::Landed,
            alarm = async {
                match alarm {
                    Some((at, alarm)) => { tokio::time::sleep_until(at.into()).await; alarm }
                    None => pending().await,
                }
            } => Wake::Alarm(alarm),
        }
    }

    fn clocks(&self) -> Clocks {
        let config = self.shared.config.now();
        let pause = &config.pause;
        Clocks {
            status: self.session.status,
            starting: self.start.is_some(),
            live_idle_since: self.live.as_ref().map(|live| live.idle_since),
            unsaved_since: self.live.as_ref().and_then(|live| live.unsaved_since),
            saved: self.live.as_ref().is_some_and(|live| live.saved),
            frozen: self.live.as_ref().is_some_and(|live| live.frozen),
            reclaimed: self.live.as_ref().is_some_and(|live| live.reclaimed),
            turn_since: self.turn.as_ref().map(|turn| turn.since),
            turn_limit: Duration::from_millis(self.session.limits.turn_ms),
            paused_since: self.paused_since,
            interrupted_at: self.turn.as_ref().and_then(|turn| turn.interrupted.as_ref()).map(|i| i.at),
            last_asked: self.last_asked,
            freeze_after: (pause.freeze_after_ms > 0).then(|| Duration::from_millis(pause.freeze_after_ms)),
            park_after: Duration::from_millis(config.pool.idle_timeout_ms),
            reclaim_after: Duration::from_millis(pause.reclaim_after_ms),
            reclaim_idle_after: (pause.reclaim_idle_after_ms > 0)
                .then(|| Duration::from_millis(pause.reclaim_idle_after_ms)),
            max_in_turn: Duration::from_millis(pause.max_in_turn_ms),
        }
    }

    /// Whether the task may end: no process, nothing to write, and (checked under the registry's
    /// lock) no waiting request.
    fn rested(&self) -> bool {
        self.live.is_none()
            && self.start.is_none()
            && self.ledger.is_settled()
            && !self.ledger.has_readers()
            && self.shared.registry.remove_if(self.session.id, || self.requests.is_empty())
    }

    /// Passes a request that arrived while the task left to its successor.
    async fn leave(&mut self) {
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            self.shared.pass_on(self.session.tenant.clone(), self.session.id, request).await;
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            status: self.session.status,
            starting: self.start.is_some(),
            turn: self.turn.is_some(),
            waiting: self.waiting.len(),
        }
    }

    fn accept(&self, verb: Verb) -> Accept {
        acceptance::accept(&self.standing(), verb)
    }

    /// A change of state: one transaction, one lifecycle event.
    fn change(&self, to: SessionStatus, error: Option<String>, action: &'static str, more: Value) -> Commit {
        let mut change = self.ledger.blank();
        change.status = Some((to, error));
        change.events.push(("lifecycle", lifecycle(action, more).into()));
        change
    }

    /// Makes a change of state durable, then effective.
    async fn enter(&mut self, change: Commit) -> Result<(), SessionError> {
        let status = change.status.clone();
        let touched = change.touch;
        let action = change.events.first().map(|(_, data)| data.clone()).unwrap_or_default();
        self.ledger.commit(change).await?;
        if let Some((to, error)) = status {
            tracing::info!(ASH_SESSION = %self.session.id, ASH_TENANT = %self.session.tenant, ASH_AGENT = %self.session.agent_name,
                ASH_EVENT = "state", from = %self.session.status, %to, "{action}");
            self.shared.moved(Some(self.session.status), to, self.live.is_some());
            self.session.status = to;
            self.session.error = error;
            self.paused_since = (to == SessionStatus::Paused).then(Instant::now);
        }
        if touched {
            self.session.last_active_at = now_ms();
        }
        self.place();
        Ok(())
    }

    /// Updates the pool on the sandbox's state.
    fn place(&self) {
        if let Some(live) = &self.live {
            live.place(self.turn.is_some(), self.session.status == SessionStatus::Paused);
        }
    }
}
