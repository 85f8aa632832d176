//! A panic in a session's task ends that task only.
//!
//! ```text
//!           +----------------- ends (inbox, published state) -----------------+
//!           v                                                                 |
//!  load --> [recover, after a panic] --> drive --panic--> give up (sandbox ends, queue is written)
//!                                          |
//!                                          +--rests--> the task ends
//! ```
//!
//! The inbox outlives the panic: the next driver answers requests in it. The request in progress
//! gets the cause as its answer. The session goes to `error`: its running turn ends with the cause,
//! its sandbox is destroyed, and its output counts as read, so that the same line cannot cause a
//! second panic. It can be resumed.

use std::any::Any;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use uuid::Uuid;

use super::{Driver, Request};
use crate::sessions::context::Shared;
use crate::sessions::driver::registry::Ends;
use ash_model::SessionStatus;
use ash_observe::events::{self, event};

/// Panics without a completed recovery between them, after which the task ends. The next request
/// starts a new one.
const MAX_FAILED_RECOVERIES: usize = 3;
/// Longest time to write what the broken driver had read, and to undo a start in progress.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a panic's message that clients see. The journal has all of it.
const MESSAGE_BYTES: usize = 200;

/// What is left of a driver that panicked.
struct Broken {
    why: String,
    /// The session's state in the daemon's counters.
    status: SessionStatus,
    /// Requests that waited for a start to complete.
    waiting: Vec<Request>,
}

impl Driver {
    /// Runs until the session rests. Reads the row here, so that it is never older than the task.
    pub async fn run(shared: Arc<Shared>, id: Uuid, mut ends: Ends) {
        let mut broken: Option<Broken> = None;
        let mut failures = 0;
        loop {
            let mut driver = match Self::load(&shared, id, ends).await {
                Ok(driver) => driver,
                Err((why, ends)) => {
                    tracing::error!(ASH_SESSION = %id, "the session cannot be read: {why}");
                    return leave_unanswered(&shared, id, ends).await;
                }
            };
            let drive = async {
                if let Some(broken) = broken.take() {
                    driver.recover(broken).await;
                    failures = 0;
                }
                driver.drive().await;
            };
            let Err(panic) = AssertUnwindSafe(drive).catch_unwind().await else { return };
            failures += 1;
            let why = format!("internal error: the session's task panicked: {}", message(&*panic));
            event!(&events::PANICKED, ASH_SESSION = %id, ASH_TENANT = %driver.session.tenant, "{why}");
            let left = driver.give_up(why).await;
            ends = left.1;
            if failures >= MAX_FAILED_RECOVERIES {
                return leave_unanswered(&shared, id, ends).await;
            }
            broken = Some(left.0);
        }
    }

    /// Ends the sandbox and writes what was read, as far as the state after the panic allows.
    async fn give_up(mut self, why: String) -> (Broken, Ends) {
        let rescue = async {
            self.overtake().await;
            self.ledger.commit(self.ledger.blank()).await
        };
        let rescued = AssertUnwindSafe(tokio::time::timeout(GIVE_UP_WITHIN, rescue)).catch_unwind().await;
        if !matches!(rescued, Ok(Ok(Ok(_)))) {
            tracing::warn!(ASH_SESSION = %self.session.id, "output read before the panic may be missing in the history");
        }
        let had_sandbox = self.live.take().is_some();
        self.shared.remove_sandbox(self.session.id).await;
        if had_sandbox {
            self.shared.went_cold(self.session.status);
        }
        let broken = Broken { why, status: self.session.status, waiting: std::mem::take(&mut self.waiting) };
        let published = self.ledger.into_published();
        (broken, Ends { requests: self.requests, published, pulse: self.pulse })
    }

    /// First step of the driver that replaces a broken one.
    async fn recover(&mut self, broken: Broken) {
        let Broken { why, status, waiting } = broken;
        let length = fs::metadata(self.dir.stdout()).map_or(0, |meta| meta.len());
        self.session.stdout_offset = self.session.stdout_offset.max(length);
        match self.open_turns_of_before().await {
            Ok(open) => open.into_iter().for_each(|turn| self.goes_on(turn, false)),
            Err(e) => tracing::error!(ASH_SESSION = %self.session.id, "cannot read the open turn: {e}"),
        }
        // The counters have the broken driver's state; the row may be one change ahead or behind.
        self.session.status = status;
        let mut change = if matches!(status, SessionStatus::Ended | SessionStatus::Stopped) {
            self.ledger.blank()
        } else {
            let data = json!({ "reason": "internal", "error": why });
            self.change(SessionStatus::Error, Some(why.clone()), "error", data)
        };
        if self.turn.is_some() {
            change.events.push(("error", json!({ "error": why }).to_string().into()));
        }
        let interrupted = self.break_turn(&mut change, &why);
        change.stdout_offset = Some(self.read_to());
        self.ledger.saw(self.read_to());
        self.enter_or_note(change).await;
        self.answer_interrupted(interrupted, Err(why));
        for request in waiting {
            Box::pin(self.request(request)).await;
        }
    }
}

/// Ends the task without a driver. Dropped replies answer the requests in the inbox.
async fn leave_unanswered(shared: &Shared, id: Uuid, mut ends: Ends) {
    shared.registry.remove_if(id, || true);
    ends.requests.close();
    while ends.requests.recv().await.is_some() {}
}

/// The text of a panic, cut at a character.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    text[..text.floor_char_boundary(MESSAGE_BYTES)].to_owned()
}

/// The driver panics on this word in the output; for the tests of this module only.
#[cfg(test)]
pub(super) const POISON: &str = "poison-of-the-supervision-tests";

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
