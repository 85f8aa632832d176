//! Starts of a process. They run beside the task, so that an end can overtake them.

use std::fmt;
use std::future::{Future, pending, ready};
use std::pin::Pin;
use std::time::Instant;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Driver, Reply};
use crate::sessions::SessionError;
use crate::sessions::claude::ProcessFlags;
use crate::sessions::launch::running::Live;
use crate::sessions::launch::{Plan, Room, cancelled};
use crate::store::Session;
use ash_model::SessionStatus;
use ash_observe::events::{self, event};

type Starting = Pin<Box<dyn Future<Output = Result<Live, SessionError>> + Send>>;

/// A running start.
pub struct Start {
    future: Starting,
    cancel: CancellationToken,
    purpose: Purpose,
}

/// Who waits for it.
#[derive(Debug)]
pub enum Purpose {
    Create(Reply<Session>),
    Resume(Reply<Session>),
    /// The running turn needs options that only a new process can have.
    Turn(super::turn::Outgoing),
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

/// Resolves when the start is over. Cancel safe.
pub async fn done(start: &mut Option<Start>) -> Result<Live, SessionError> {
    match start {
        Some(start) => start.future.as_mut().await,
        None => pending().await,
    }
}

impl Driver {
    fn plan(&self, flags: ProcessFlags, cancel: CancellationToken) -> Plan {
        Plan {
            shared: self.shared.clone(),
            session: self.session.clone(),
            dir: self.dir.clone(),
            options: self.options.clone(),
            flags,
            // During a turn, its message is still to be sent.
            turn: self.newest - i64::from(self.turn.is_some()),
            offset: self.read_to(),
            cancel,
        }
    }

    /// A new process, in a new or a parked sandbox.
    pub(super) fn start_cold(&mut self, room: Room, purpose: Purpose) {
        self.shared.went_live(self.session.status);
        let cancel = CancellationToken::new();
        let future: Starting = match self.unusable.clone() {
            Some(why) => Box::pin(ready(Err(SessionError::Failed(why)))),
            None => Box::pin(self.plan(ProcessFlags::default(), cancel.clone()).cold(room)),
        };
        self.start = Some(Start { future, cancel, purpose });
    }

    /// A new process in the existing sandbox.
    pub(super) fn start_again(&mut self, live: Live, flags: ProcessFlags, outgoing: super::turn::Outgoing) {
        let cancel = CancellationToken::new();
        let plan = self.plan(flags, cancel.clone());
        self.session.stdout_offset = live.read_to;
        self.start = Some(Start { future: Box::pin(plan.again(live)), cancel, purpose: Purpose::Turn(outgoing) });
    }

    /// A start is over.
    pub(super) async fn started(&mut self, result: Result<Live, SessionError>) {
        let Some(start) = self.start.take() else { return };
        match (result, start.purpose) {
            (Ok(live), Purpose::Create(reply)) => {
                let mut data = json!({ "agent": self.session.agent_name });
                if live.parked {
                    data["path"] = json!("parked");
                }
                self.shared.pool.created(live.parked);
                self.begin(live, "created", data, reply).await;
            }
            (Ok(live), Purpose::Resume(reply)) => {
                self.shared.pool.resumed(false);
                self.begin(live, "resumed", json!({ "path": "cold", "source": "local" }), reply).await;
            }
            (Ok(live), Purpose::Turn(outgoing)) => {
                self.came_up(live);
                self.dispatch(outgoing).await;
            }
            (Err(e), Purpose::Create(reply)) => {
                self.shared.remove_directory(self.session.id).await;
                let why = e.to_string();
                let change = self.change(
                    SessionStatus::Error,
                    Some(why.clone()),
                    "error",
                    json!({ "reason": "start", "error": why }),
                );
                if let Err(e) = self.enter(change).await {
                    tracing::error!(ASH_SESSION = %self.session.id, "cannot record a failed start: {e}");
                }
                let _ = reply.send(Err(e));
            }
            (Err(e), Purpose::Resume(reply)) => {
                // The state stays as it was: the session can be resumed again after any failure.
                let mut change = self.ledger.blank();
                let data = super::lifecycle("resume-failed", json!({ "error": e.to_string() }));
                change.events.push(("lifecycle", data.into()));
                self.ledger.note(change);
                event!(&events::RESUME_FAILED, ASH_SESSION = %self.session.id, ASH_TENANT = %self.session.tenant, "{e}");
                self.shared.went_cold(self.session.status);
                let _ = reply.send(Err(e));
            }
            (Err(e), Purpose::Turn(_)) => self.fell(e.to_string(), "start").await,
        }
    }

    /// After a start is over or abandoned: decides again on waiting requests.
    pub(super) async fn after_start(&mut self) {
        if self.start.is_none() {
            for request in std::mem::take(&mut self.waiting) {
                self.request(request).await;
            }
        }
    }

    /// The new session took over a warm sandbox, which stays frozen until needed.
    pub(super) async fn claimed(&mut self, mut live: Live, reply: Reply<Session>) {
        live.idle_since = Instant::now();
        let data = json!({ "agent": self.session.agent_name, "path": "prewarm" });
        self.shared.pool.pre_warmed();
        self.begin(live, "created", data, reply).await;
    }

    /// The session is active from here on, in this sandbox.
    async fn begin(&mut self, mut live: Live, action: &'static str, data: Value, reply: Reply<Session>) {
        let startup = live.startup_failed.take();
        self.came_up(live);
        let mut change = self.change(SessionStatus::Active, None, action, data);
        if let Some(why) = startup {
            tracing::warn!(ASH_SESSION = %self.session.id, ASH_EVENT = "startup-failed", "startup.sh {why}");
            let data = super::lifecycle("startup-failed", json!({ "error": format!("startup.sh {why}") }));
            change.events.push(("lifecycle", data.into()));
        }
        self.answer_start(change, reply).await;
    }

    fn came_up(&mut self, mut live: Live) {
        self.watch(&mut live);
        self.ledger.saw(live.read_to);
        let mut change = self.ledger.blank();
        change.stdout_offset = Some(live.read_to);
        self.ledger.note(change);
        self.session.stdout_offset = live.read_to;
        if self.turn.is_none() {
            self.turns = crate::sessions::claude::turn_tracker::Turns::idle(live.record.reports);
        }
        self.live = Some(live);
    }

    async fn answer_start(&mut self, change: crate::store::Commit, reply: Reply<Session>) {
        let entered = self.enter(change).await;
        if entered.is_err() {
            // Otherwise a sandbox without a row would live unseen.
            self.tear_down().await;
        }
        let _ = reply.send(entered.map(|()| self.session.clone()));
    }

    /// Abandons the running start, and undoes it.
    pub(super) async fn overtake(&mut self) {
        let Some(start) = self.start.take() else { return };
        start.cancel.cancel();
        match start.future.await {
            Ok(live) => {
                self.live = Some(live);
                self.tear_down().await;
            }
            Err(_) => self.shared.went_cold(self.session.status),
        }
        match start.purpose {
            Purpose::Create(reply) | Purpose::Resume(reply) => drop(reply.send(Err(cancelled()))),
            // The overtaking request closes its turn.
            Purpose::Turn(_) => {}
        }
    }

    /// Where the unread part of stdout begins.
    pub(super) fn read_to(&self) -> u64 {
        self.live.as_ref().map_or(self.session.stdout_offset, |live| live.read_to)
    }
}
