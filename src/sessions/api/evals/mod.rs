//! Runs of an agent's eval cases: several cases at once, bounded, and none lost by a restart.
//!
//! ```text
//!   start --wake--> loop: claim --> session --> question (turn 1) --> ended? -> scored -> removed
//!                     ^                |            |
//!                     |  no sandbox:   |            |  ashd ended: the turn is found again,
//!                     |  retried later |            |  or the case is asked again, once
//!                     +----------------+------------+
//! ```
//!
//! The session is recorded before it is created, and the turn before it is sent. So a new daemon
//! knows how far a case came, and removes sessions without a case.

mod ask;
pub mod score;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use crate::sessions::quota::admission::Admissions;
use crate::sessions::{SessionError, Sessions};
use crate::store::{EvalChange, EvalResult, EvalRun, NewRun, RunRefused, Scored};
use ash_model::{TenantId, now_ms};
use ash_observe::tasks;
use ask::Outcome;

/// Concurrent cases of all tenants. Of one tenant: `[evals] cases_at_once`.
const AT_ONCE: usize = 64;
/// Delay before a run's cases are retried after one found no sandbox.
const NO_ROOM_MS: i64 = 1_000;
/// Attempts of a case that an end of ashd may interrupt.
const TRIES: u64 = 2;
/// Runs are checked after this time even without a wake-up.
const LOOK: Duration = Duration::from_secs(60);

/// Wakes the loop, and bounds it.
#[derive(Debug)]
pub struct Evals {
    wake: Notify,
    places: Arc<Semaphore>,
    scoring: Admissions<TenantId>,
}

impl Default for Evals {
    fn default() -> Self {
        Self { wake: Notify::new(), places: Arc::new(Semaphore::new(AT_ONCE)), scoring: Admissions::new(1) }
    }
}

impl Sessions {
    /// Begins a run.
    ///
    /// # Errors
    /// `Unavailable` while the daemon stops; `Store`.
    pub async fn start_evals(
        &self,
        tenant: &TenantId,
        agent: &str,
        new: NewRun,
    ) -> Result<Result<EvalRun, RunRefused>, SessionError> {
        self.shared.check_accepting()?;
        let made = self.shared.store.eval_run_insert(tenant, agent, new).await?;
        self.shared.evals.wake.notify_one();
        Ok(made)
    }

    /// Scores the answers of a run again, with the current topics. Returns their number; answers of
    /// deleted cases keep their scores.
    ///
    /// # Errors
    /// `Store`.
    pub async fn score_evals(&self, run: &EvalRun) -> Result<usize, SessionError> {
        let store = &self.shared.store;
        let mut scores = Vec::new();
        // One at a time: an answer may be long.
        for (result, case) in store.eval_answered(run).await? {
            let Some(case) = store.eval_case_of(run, case).await? else { continue };
            let Some(answer) = store.eval_result(&run.tenant, result).await?.and_then(|found| found.response) else {
                continue;
            };
            let (of, _) = self.scored(case, answer).await.map_err(SessionError::Failed)?;
            scores.push(Scored { result, topic_score: of.topic, safety_score: of.safety });
        }
        let scored = scores.len();
        store.eval_score(run, scores).await?;
        Ok(scored)
    }

    /// Continues what the previous daemon began, then takes new cases.
    pub(super) fn work_evals(&self) {
        let sessions = self.clone();
        let mut begun_before = true;
        tasks::spawn_restarting("evals", move || {
            let sessions = sessions.clone();
            // Only at the daemon's start: later, each started case has its own task.
            let resume = std::mem::take(&mut begun_before);
            async move {
                if resume && let Err(e) = sessions.resume_evals().await {
                    tracing::error!("cannot read the started eval cases: {e}");
                }
                sessions.work_on_evals().await;
            }
        });
    }

    async fn resume_evals(&self) -> Result<(), SessionError> {
        let begun = self.shared.store.eval_running().await?;
        for (tenant, session) in self.shared.store.eval_sessions().await? {
            if !begun.iter().any(|result| result.session == Some(session)) {
                self.remove_eval_session(&tenant, session).await;
            }
        }
        for result in begun {
            self.spawn_case(result, true, None);
        }
        Ok(())
    }

    async fn work_on_evals(&self) {
        let evals = &self.shared.evals;
        loop {
            let Ok(place) = Arc::clone(&evals.places).acquire_owned().await else { return };
            if self.shared.check_accepting().is_err() {
                return;
            }
            let of_one = self.shared.config.now().evals.cases_at_once;
            match self.shared.store.eval_claim(of_one).await {
                Ok(Some(result)) => {
                    self.spawn_case(result, false, Some(place));
                    continue;
                }
                Ok(None) => {}
                Err(e) => tracing::error!("cannot read the eval runs: {e}"),
            }
            drop(place);
            let due = self.shared.store.eval_next_due(of_one).await.ok().flatten();
            let wait = due.map_or(LOOK, |due| Duration::from_millis(u64::try_from(due - now_ms()).unwrap_or(0)));
            // A minimum, so that a failing database is not polled in a loop.
            let wait = wait.clamp(Duration::from_millis(50), LOOK);
            let _ = tokio::time::timeout(wait, evals.wake.notified()).await;
        }
    }

    /// `begun`: by the previous daemon.
    fn spawn_case(&self, result: EvalResult, begun: bool, place: Option<tokio::sync::OwnedSemaphorePermit>) {
        // Its row is removed with its tenant.
        let Ok(visit) = self.enter(&result.tenant) else { return };
        let sessions = self.clone();
        tokio::spawn(async move {
            let (session, outcome) = sessions.work_case(&result, begun).await;
            // A result that the disk refuses keeps no place from others.
            drop(place);
            sessions.conclude_case(&result, session, outcome).await;
            drop(visit);
        });
    }

    async fn conclude_case(&self, result: &EvalResult, session: Option<uuid::Uuid>, outcome: Outcome) {
        tracing::info!(ASH_EVENT = "eval", ASH_TENANT = %result.tenant, run = %result.run, case = %result.case,
            outcome = outcome.name(), "a case of an eval run");
        if matches!(outcome, Outcome::Left) {
            return;
        }
        if let Some(change) = change(result, outcome) {
            let store = &self.shared.store;
            self.shared.until_stored("the end of an eval case", || store.eval_change(result, change.clone())).await;
        }
        if let Some(session) = session {
            self.remove_eval_session(&result.tenant, session).await;
        }
        self.shared.evals.wake.notify_one();
    }
}

/// The change of a case; `None`: it no longer exists.
fn change(result: &EvalResult, outcome: Outcome) -> Option<EvalChange> {
    Some(match outcome {
        Outcome::Gone | Outcome::Left => return None,
        Outcome::Answered { answer, scores, latency_ms } => EvalChange::Completed {
            response: answer,
            topic_score: scores.topic,
            safety_score: scores.safety,
            latency_ms,
        },
        Outcome::Failed { error, latency_ms } => EvalChange::Failed { error, latency_ms },
        Outcome::NoRoom => EvalChange::PutBack { due_at: now_ms() + NO_ROOM_MS, cut_short: false },
        Outcome::CutShort(why) if result.cut_short + 1 >= TRIES => EvalChange::Failed {
            error: format!("ashd ended during each of {TRIES} attempts of this case; the last: {why}"),
            latency_ms: None,
        },
        Outcome::CutShort(_) => EvalChange::PutBack { due_at: now_ms(), cut_short: true },
    })
}
