//! One case: a session, the question, the answer.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::score::{Scores, score, topics};
use crate::sessions::api::new_message::NewMessage;
use crate::sessions::driver::Request;
use crate::sessions::quota::history_cap::cut;
use crate::sessions::{SessionError, Sessions};
use crate::store::{EvalCase, EvalChange, EvalResult, EvalTask, Turn};
use ash_model::{RawJson, raw};

/// Bytes of an answer that are kept and scored, from its beginning.
const MAX_ANSWER: usize = 256 << 10;
/// Interval of checks for a deleted agent or run.
const LOOK: Duration = Duration::from_secs(1);

/// How one attempt of a case ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered {
        answer: String,
        scores: Scores,
        latency_ms: i64,
    },
    Failed {
        error: String,
        latency_ms: Option<i64>,
    },
    /// Not counted: no sandbox is available.
    NoRoom,
    /// The previous daemon ended meanwhile, and the turn is lost.
    CutShort(String),
    /// The run was deleted, with its agent or its tenant.
    Gone,
    /// The daemon is stopping; the next one continues.
    Left,
}

impl Outcome {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Answered { .. } => "answered",
            Self::Failed { .. } => "failed",
            Self::NoRoom => "put back",
            Self::CutShort(_) => "cut short",
            Self::Gone => "deleted",
            Self::Left => "left to the next daemon",
        }
    }

    fn failed(error: impl Into<String>) -> Self {
        Self::Failed { error: error.into(), latency_ms: None }
    }
}

/// # Errors
/// The stored topics cannot be read.
fn scores(case: &EvalCase, answer: &str) -> Result<Scores, String> {
    let (expected, forbidden) = (topics(case.expected_topics.as_ref())?, topics(case.expected_not_topics.as_ref())?);
    Ok(score(answer, &expected, &forbidden))
}

impl Sessions {
    /// Scores an answer on a thread of its own, one of a tenant at a time: 200 topics in an answer of
    /// 256 KiB take tens of milliseconds.
    ///
    /// # Errors
    /// The stored topics cannot be read.
    pub(super) async fn scored(&self, case: EvalCase, answer: String) -> Result<(Scores, String), String> {
        let turn = self.shared.evals.scoring.wait(&case.tenant).await;
        let work = move || {
            let _turn = turn;
            scores(&case, &answer).map(|scores| (scores, answer))
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|gone| Err(format!("the answer cannot be scored: {gone}")))
    }

    /// One attempt. Also returns its session, if one was created.
    pub(super) async fn work_case(&self, result: &EvalResult, begun: bool) -> (Option<Uuid>, Outcome) {
        let mut session = result.session.filter(|_| begun);
        // A panic is a failed attempt: the result must not stay in `running`.
        let outcome = AssertUnwindSafe(self.try_case(result, begun, &mut session)).catch_unwind().await;
        let outcome =
            outcome.unwrap_or_else(|_| Outcome::failed("internal error: the task that asked this case panicked"));
        (session, outcome)
    }

    async fn try_case(&self, result: &EvalResult, begun: bool, session: &mut Option<Uuid>) -> Outcome {
        let task = match self.shared.store.eval_task(result).await {
            Ok(Some(task)) => task,
            Ok(None) => return Outcome::Gone,
            Err(e) => return Outcome::failed(e.to_string()),
        };
        let Some(case) = &task.case else { return Outcome::failed("the case was deleted before it was asked") };
        if begun {
            return self.take_up(result, case).await;
        }
        match self.begin_case(result, &task, case, session).await {
            Ok(turn) => self.await_answer(result, case, session.unwrap_or_default(), turn).await,
            // Refusals and failures because ashd stops do not count.
            Err(_) if self.shared.check_accepting().is_err() => Outcome::Left,
            Err(error) => judge(&error),
        }
    }

    /// Continues a case that the previous daemon began. Its turn runs in its sandbox, independent
    /// of ashd.
    async fn take_up(&self, result: &EvalResult, case: &EvalCase) -> Outcome {
        let (Some(session), Some(turn)) = (result.session, result.turn) else {
            return Outcome::CutShort("it was not asked yet".to_owned());
        };
        match self.shared.store.turn(session, turn).await {
            Ok(Some(_)) => match self.await_answer(result, case, session, turn).await {
                // The host may have been restarted as well.
                Outcome::Failed { error, .. } => Outcome::CutShort(error),
                other => other,
            },
            Ok(None) => Outcome::CutShort("its turn was not begun yet".to_owned()),
            Err(e) => Outcome::failed(e.to_string()),
        }
    }

    async fn begin_case(
        &self,
        result: &EvalResult,
        task: &EvalTask,
        case: &EvalCase,
        session: &mut Option<Uuid>,
    ) -> Result<i64, SessionError> {
        let id = Uuid::new_v4();
        let store = &self.shared.store;
        if !store.eval_change(result, EvalChange::Asked { session: id }).await? {
            return Err(SessionError::NotFound);
        }
        *session = Some(id);
        let own = self.create_eval_session(task, case, id).await?;
        store.eval_change(result, EvalChange::Sent { turn: 1 }).await?;
        self.check_new_turn(&own).await?;
        let (id, message) = (Uuid::new_v4(), Box::new(NewMessage::of_text(&case.question)?));
        let turn = self.ask(&own, |reply| Request::Send { id, message, reply }).await?;
        if turn.number != 1 {
            // A client sent a message to this session.
            store.eval_change(result, EvalChange::Sent { turn: turn.number }).await?;
        }
        Ok(turn.number)
    }

    async fn await_answer(&self, result: &EvalResult, case: &EvalCase, session: Uuid, number: i64) -> Outcome {
        let longest = Duration::from_millis(self.shared.config.now().evals.case_ms);
        let until = Instant::now() + longest;
        loop {
            if self.shared.check_accepting().is_err() {
                return Outcome::Left;
            }
            match self.shared.store.turn(session, number).await {
                Ok(Some(turn)) if turn.end.is_some() => return self.answer(result, case, &turn).await,
                Ok(Some(_)) => {}
                Ok(None) => return Outcome::failed("the session of the case was removed before it answered"),
                Err(e) => return Outcome::failed(e.to_string()),
            }
            match self.shared.store.eval_is_running(result.id).await {
                Ok(true) => {}
                Ok(false) => return Outcome::Gone,
                Err(e) => return Outcome::failed(e.to_string()),
            }
            if Instant::now() >= until {
                let ms = i64::try_from(longest.as_millis()).unwrap_or(i64::MAX);
                let error = format!("no answer within {} s (evals.case_ms)", longest.as_secs_f64());
                return Outcome::Failed { error, latency_ms: Some(ms) };
            }
            let mut published = self.shared.handle(result.tenant.clone(), session).published;
            let over = published.wait_for(|now| {
                let newest = now.turn.as_ref();
                now.closed.is_some()
                    || newest.is_some_and(|t| t.number > number || (t.number == number && t.end.is_some()))
            });
            // With a timeout: a task that rests does not publish an end, and deletions and stops
            // must be noticed.
            let _ = tokio::time::timeout(LOOK.min(until.saturating_duration_since(Instant::now())), over).await;
        }
    }

    async fn answer(&self, result: &EvalResult, case: &EvalCase, turn: &Turn) -> Outcome {
        let latency_ms = turn.ended_at.map_or(0, |end| (end - turn.started_at).max(0));
        if let Some(error) = &turn.error {
            return Outcome::Failed { error: error.clone(), latency_ms: Some(latency_ms) };
        }
        let data = match self.shared.store.result_of(&result.tenant, turn.session, turn).await {
            Ok(data) => data.and_then(|data| RawJson::parse(data).ok()),
            Err(e) => return Outcome::failed(e.to_string()),
        };
        let Some(text) = data.as_ref().and_then(|data| data.member("result")).and_then(raw::text) else {
            return Outcome::Failed {
                error: "the turn ended without an answer".to_owned(),
                latency_ms: Some(latency_ms),
            };
        };
        let answer = cut(&text, MAX_ANSWER);
        match self.scored(case.clone(), answer).await {
            Ok((scores, answer)) => Outcome::Answered { answer, scores, latency_ms },
            Err(error) => Outcome::failed(error),
        }
    }
}

/// Outcome of a refusal.
fn judge(error: &SessionError) -> Outcome {
    use SessionError as E;
    match error {
        E::Capacity { .. } | E::Owed { .. } | E::TenantCapacity { .. } | E::Unavailable(_) => Outcome::NoRoom,
        other => Outcome::failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_waited_out_and_the_rest_is_told() {
        use SessionError as E;
        for (error, want) in [
            (E::Capacity { max: 1, retry_after_s: 1 }, "put back"),
            (E::Owed { max: 1, retry_after_s: 1 }, "put back"),
            (E::TenantCapacity { max: 1, retry_after_s: 1 }, "put back"),
            (E::Unavailable("x".into()), "put back"),
            (E::AgentNotFound("a".into()), "failed"),
            (E::Full("x".into()), "failed"),
            (E::Failed("x".into()), "failed"),
        ] {
            assert_eq!(judge(&error).name(), want, "{error}");
        }
    }
}
