//! The queue of prompts: several at once, bounded, and none lost or run twice by a restart.
//!
//! ```text
//!   insert --wake--> loop: claim --> session (given or new) --> bound --> sent --> turn ended?
//!                      ^                                          |                  |
//!                      |  busy, or no sandbox: not counted <------+                  +-> completed
//!                      +- temporary failure: counted, growing delay <----------------+-> failed
//! ```
//!
//! The id of a prompt's turn is recorded before it is sent. A new daemon looks for that turn: if it
//! exists, it waits for it; otherwise the prompt was never sent.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use crate::sessions::api::new_message::NewMessage;
use crate::sessions::api::owned_session::Own;
use crate::sessions::driver::Request;
use crate::sessions::quota::history_cap::cut;
use crate::sessions::{CreateSession, SessionError, Sessions};
use crate::store::{QueueChange, QueueItem, QueueStatus, Turn};
use ash_model::{RawJson, SessionStatus, TenantId, now_ms, raw};
use ash_observe::events::OncePerMinute;
use ash_observe::tasks;

/// Items processed concurrently. The tenant with the fewest goes first.
pub const AT_ONCE: usize = 64;
pub const AT_ONCE_OF_ONE: u32 = 8;
/// Bytes of a result that are kept, from its beginning.
const MAX_RESULT: usize = 1 << 20;
/// Longest delay before a retry.
const MAX_DELAY_MS: i64 = crate::store::LATEST_MS;
/// Delay before a retry of an item whose session was busy or found no sandbox.
const BUSY_MS: i64 = 1_000;
/// The queue is checked after this time even without a wake-up.
const LOOK: Duration = Duration::from_secs(60);
/// A full disk causes many errors a second.
static UNREADABLE: OncePerMinute = OncePerMinute::new();

/// Wakes the loop, and bounds it.
#[derive(Debug)]
pub struct Jobs {
    wake: Notify,
    places: Arc<Semaphore>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { wake: Notify::new(), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// A checked prompt for the queue.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub agent_name: String,
    pub prompt: String,
    pub session: Option<Uuid>,
    pub priority: i64,
    pub max_retries: u64,
}

/// How one attempt ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done(String),
    /// A retry would fail as well.
    Hopeless(String),
    /// A retry may succeed.
    Failed(String),
    /// Not counted: the session is busy, or no sandbox is available.
    NotNow,
    /// The daemon is stopping; the next one continues.
    Left,
}

impl Sessions {
    /// # Errors
    /// `AgentNotFound`, `NotFound` (the session), `Invalid` when too many wait.
    pub async fn enqueue(&self, tenant: &TenantId, new: NewJob) -> Result<QueueItem, SessionError> {
        let store = &self.shared.store;
        if let Some(session) = new.session {
            self.get(tenant, session).await?;
        }
        if store.agent(tenant, &new.agent_name).await?.is_none() {
            return Err(SessionError::AgentNotFound(new.agent_name));
        }
        let item = QueueItem {
            id: Uuid::new_v4(),
            tenant: tenant.clone(),
            agent_name: new.agent_name,
            prompt: new.prompt,
            priority: new.priority,
            status: QueueStatus::Pending,
            retry_count: 0,
            max_retries: new.max_retries,
            wanted: new.session,
            session: None,
            turn: None,
            result: None,
            error: None,
            due_at: now_ms(),
            created_at: now_ms(),
            started_at: None,
            completed_at: None,
        };
        store.queue_insert(item.clone()).await?;
        self.shared.jobs.wake.notify_one();
        Ok(item)
    }

    /// Continues what the previous daemon began, then takes new items.
    pub(in crate::sessions) fn work(&self) {
        let sessions = self.clone();
        let mut begun_before = true;
        tasks::spawn_restarting("prompt-queue", move || {
            let sessions = sessions.clone();
            // Only at the daemon's start: later, each started item has its own task.
            let resume = std::mem::take(&mut begun_before);
            async move {
                if resume {
                    sessions.resume_begun().await;
                }
                sessions.work_on().await;
            }
        });
    }

    /// Continues the items that the previous daemon began.
    async fn resume_begun(&self) {
        let sessions = self;
        match sessions.shared.store.queue_processing().await {
            Ok(begun) => {
                for item in begun {
                    let sessions = sessions.clone();
                    let Ok(visit) = sessions.enter(&item.tenant) else { continue };
                    tokio::spawn(async move {
                        let outcome = unpanicked(sessions.go_on(&item)).await;
                        sessions.conclude(&item, outcome).await;
                        drop(visit);
                    });
                }
            }
            Err(e) => tracing::error!("cannot read the started items of the queue: {e}"),
        }
    }

    async fn work_on(&self) {
        let jobs = &self.shared.jobs;
        loop {
            let Ok(place) = Arc::clone(&jobs.places).acquire_owned().await else { return };
            if self.shared.check_accepting().is_err() {
                return;
            }
            match self.shared.store.queue_claim(AT_ONCE_OF_ONE).await {
                Ok(Some(item)) => {
                    let sessions = self.clone();
                    // Its row is removed with its tenant.
                    let Ok(visit) = self.enter(&item.tenant) else { continue };
                    tokio::spawn(async move {
                        let outcome = unpanicked(sessions.process(&item)).await;
                        // A result that the disk refuses keeps no place from others.
                        drop(place);
                        sessions.conclude(&item, outcome).await;
                        drop(visit);
                    });
                    continue;
                }
                Ok(None) => {}
                Err(e) if UNREADABLE.now() => tracing::error!("cannot read the queue (retried): {e}"),
                Err(_) => {}
            }
            drop(place);
            let due = self.shared.store.queue_next_due(AT_ONCE_OF_ONE).await.ok().flatten();
            let wait = due.map_or(LOOK, |due| Duration::from_millis(u64::try_from(due - now_ms()).unwrap_or(0)));
            // A minimum, so that a failing database is not polled in a loop.
            let wait = wait.clamp(Duration::from_millis(50), LOOK);
            let _ = tokio::time::timeout(wait, jobs.wake.notified()).await;
        }
    }

    /// One attempt, from a claimed item.
    async fn process(&self, item: &QueueItem) -> Outcome {
        match self.begin(item).await {
            Ok((session, turn)) => self.await_turn(&item.tenant, session, turn).await,
            Err(error) => judge(error),
        }
    }

    /// The rest of an attempt that another daemon began.
    async fn go_on(&self, item: &QueueItem) -> Outcome {
        match (item.session, item.turn) {
            (Some(session), Some(turn)) => match self.shared.store.turn_of_id(session, turn).await {
                Ok(Some(_)) => self.await_turn(&item.tenant, session, turn).await,
                // Bound and never sent.
                Ok(None) => Outcome::NotNow,
                Err(error) => Outcome::Failed(error.to_string()),
            },
            _ => Outcome::NotNow,
        }
    }

    /// Finds or creates the session, and sends the prompt. Returns the session and the turn.
    async fn begin(&self, item: &QueueItem) -> Result<(Uuid, Uuid), SessionError> {
        let tenant = &item.tenant;
        let session = match item.wanted {
            Some(id) => {
                let session = self.get(tenant, id).await?;
                if session.status == SessionStatus::Active { session } else { self.resume(&session.into()).await? }
            }
            None => {
                let body = CreateSession { agent: item.agent_name.clone(), ..CreateSession::default() };
                self.create(tenant, body).await?
            }
        };
        let (id, own) = (session.id, Own::from(session));
        let sent = async {
            let turn = Uuid::new_v4();
            self.shared.store.queue_change(item.id, QueueChange::Bound { session: id, turn }).await?;
            self.check_new_turn(&own).await?;
            let message = Box::new(NewMessage::of_text(&item.prompt)?);
            self.ask(&own, |reply| Request::Send { id: turn, message, reply }).await?;
            Ok((id, turn))
        };
        let sent: Result<_, SessionError> = sent.await;
        if sent.is_err() && item.wanted.is_none() {
            self.put_away(tenant, id, true).await;
        }
        sent
    }

    async fn await_turn(&self, tenant: &TenantId, session: Uuid, id: Uuid) -> Outcome {
        loop {
            if self.shared.check_accepting().is_err() {
                return Outcome::Left;
            }
            let number = match self.shared.store.turn_of_id(session, id).await {
                Ok(Some(turn)) if turn.end.is_some() => return self.outcome(tenant, session, &turn).await,
                Ok(Some(turn)) => turn.number,
                Ok(None) => return Outcome::Failed("its turn is missing".to_owned()),
                Err(error) => return Outcome::Failed(error.to_string()),
            };
            let mut published = self.shared.handle(tenant.clone(), session).published;
            let over = published.wait_for(|now| {
                let newest = now.turn.as_ref();
                now.closed.is_some()
                    || newest.is_some_and(|t| t.number > number || (t.number == number && t.end.is_some()))
            });
            // With a timeout: a task that rests does not publish an end, and a stop must be
            // noticed.
            let _ = tokio::time::timeout(Duration::from_secs(1), over).await;
        }
    }

    async fn outcome(&self, tenant: &TenantId, session: Uuid, turn: &Turn) -> Outcome {
        if let Some(error) = &turn.error {
            return Outcome::Failed(error.clone());
        }
        match self.shared.store.result_of(tenant, session, turn).await {
            Ok(data) => match data.as_deref().map(answer_in) {
                Some(Ok(result)) => Outcome::Done(cut(&result, MAX_RESULT)),
                Some(Err(why)) => Outcome::Hopeless(why),
                None => Outcome::Hopeless("the turn ended without a recorded answer; see GET .../messages".to_owned()),
            },
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    async fn conclude(&self, item: &QueueItem, outcome: Outcome) {
        tracing::info!(ASH_EVENT = "queue", ASH_TENANT = %item.tenant, item = %item.id, outcome = name(&outcome), "queue item");
        // Its session, if one was created.
        let now = self.shared.store.queue_item(&item.tenant, item.id).await.ok().flatten();
        let session = now.and_then(|now| now.session).filter(|_| item.wanted.is_none());
        let change = match outcome {
            Outcome::Left => return,
            Outcome::Done(result) => QueueChange::Completed { result },
            Outcome::Hopeless(error) => QueueChange::Failed { error },
            Outcome::Failed(error) if item.retry_count >= item.max_retries => QueueChange::Failed { error },
            Outcome::Failed(error) => {
                QueueChange::PutBack { due_at: now_ms() + delay(item.retry_count), error: Some(error), counted: true }
            }
            Outcome::NotNow => {
                QueueChange::PutBack { due_at: now_ms() + BUSY_MS, error: item.error.clone(), counted: false }
            }
        };
        let again = matches!(change, QueueChange::PutBack { .. });
        let store = &self.shared.store;
        self.shared.until_stored("the end of a queue item", || store.queue_change(item.id, change.clone())).await;
        if let Some(session) = session {
            self.put_away(&item.tenant, session, again).await;
        }
        self.shared.jobs.wake.notify_one();
    }

    /// Stops the session that the queue created, because its processes are no longer needed. After
    /// a failure the session ends; otherwise it can be resumed with its conversation.
    async fn put_away(&self, tenant: &TenantId, session: Uuid, end: bool) {
        let done = async {
            let own = self.own(tenant, session).await?;
            if end { self.end(&own).await } else { self.stop(&own).await }
        };
        match done.await {
            Ok(_) | Err(SessionError::Transition { .. } | SessionError::NotFound) => {}
            Err(e) => tracing::warn!(ASH_SESSION = %session, "cannot stop a session of the queue: {e}"),
        }
    }
}

/// The answer's text in the data of a `turn_complete` event; empty when the answer is no text (a
/// command that claude executes itself, for example).
fn answer_in(data: &str) -> Result<String, String> {
    let unreadable = || "cannot read the recorded answer; see GET .../messages".to_owned();
    let data = RawJson::parse(data).map_err(|_| unreadable())?;
    match data.member("result") {
        None => Ok(String::new()),
        Some(result) if result.get() == "null" => Ok(String::new()),
        Some(result) => raw::text(result).map(std::borrow::Cow::into_owned).ok_or_else(unreadable),
    }
}

/// A panic is a failed attempt: the item must not stay in `processing`.
async fn unpanicked(attempt: impl Future<Output = Outcome>) -> Outcome {
    let outcome = AssertUnwindSafe(attempt).catch_unwind().await;
    outcome.unwrap_or_else(|_| Outcome::Failed("internal error: the task that worked on this item panicked".to_owned()))
}

/// Outcome of a refusal.
fn judge(error: SessionError) -> Outcome {
    use SessionError as E;
    let text = error.to_string();
    match error {
        E::TurnRunning | E::Capacity { .. } | E::Owed { .. } | E::TenantCapacity { .. } | E::Unavailable(_) => {
            Outcome::NotNow
        }
        E::NotFound
        | E::AgentNotFound(_)
        | E::AgentDirectoryGone { .. }
        | E::AgentDirectoryRefused { .. }
        | E::Ended
        | E::Invalid(_)
        | E::TooLarge(_) => Outcome::Hopeless(text),
        E::Install { .. } | E::NotActive(_) | E::Transition { .. } | E::Full(_) | E::Failed(_) | E::Store(_) => {
            Outcome::Failed(text)
        }
    }
}

/// Milliseconds before the next attempt: 1 s, doubled each time, up to [`MAX_DELAY_MS`].
fn delay(retries: u64) -> i64 {
    1_000_i64.checked_shl(u32::try_from(retries).unwrap_or(u32::MAX).min(16)).unwrap_or(MAX_DELAY_MS).min(MAX_DELAY_MS)
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(_) => "completed",
        Outcome::Hopeless(_) => "failed",
        Outcome::Failed(_) => "try failed",
        Outcome::NotNow => "put back",
        Outcome::Left => "left to the next daemon",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound() {
        let delays: Vec<_> = [0, 1, 2, 5, 6, 7, 63, 64, u64::MAX].map(delay).into();
        assert_eq!(delays, [1_000, 2_000, 4_000, 32_000, 60_000, 60_000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        use SessionError as E;
        for (error, want) in [
            (E::TurnRunning, "put back"),
            (E::Capacity { max: 1, retry_after_s: 1 }, "put back"),
            (E::Unavailable("x".into()), "put back"),
            (E::NotFound, "failed"),
            (E::AgentNotFound("a".into()), "failed"),
            (E::Ended, "failed"),
            (E::Invalid("x".into()), "failed"),
            (E::Failed("x".into()), "try failed"),
            (E::NotActive(SessionStatus::Error), "try failed"),
        ] {
            let text = error.to_string();
            assert_eq!(name(&judge(error)), want, "{text}");
        }
    }
}
