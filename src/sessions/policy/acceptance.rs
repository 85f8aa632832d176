//! Whether a session takes a request now, queues it, lets it overtake, or refuses it: a pure
//! function of the session's activity and queue.
//!
//! Most requests take a millisecond and run in order. A *start* (create, cold resume, a new process
//! for one turn's options) takes up to a minute; requests that arrive meanwhile are decided here.

use crate::sessions::SessionError;
use crate::sessions::policy::transitions::{self, Verb};
use ash_model::SessionStatus;

/// Requests that may wait for a start. Further ones get 503.
pub const MAX_WAITING: usize = 64;

/// What the session is doing.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub status: SessionStatus,
    /// A process is being started.
    pub starting: bool,
    /// A turn runs.
    pub turn: bool,
    /// Requests that wait for the start to finish.
    pub waiting: usize,
}

#[derive(Debug)]
pub enum Accept {
    Now,
    /// Decide again after the start.
    Wait,
    /// Abandon the start first.
    Overtake,
    Refuse(SessionError),
}

/// Decides on one request.
pub fn accept(standing: &Standing, verb: Verb) -> Accept {
    if standing.starting {
        return while_starting(standing, verb);
    }
    match transitions::next(standing.status, verb) {
        Err(refusal) => Accept::Refuse(refusal),
        // A fork during a turn would copy a partial conversation.
        Ok(_) if standing.turn && matches!(verb, Verb::Send | Verb::Fork) => Accept::Refuse(SessionError::TurnRunning),
        Ok(_) => Accept::Now,
    }
}

fn while_starting(standing: &Standing, verb: Verb) -> Accept {
    let refused = match transitions::next(standing.status, verb) {
        Err(refusal) => return Accept::Refuse(refusal),
        Ok(_) if standing.turn && matches!(verb, Verb::Send | Verb::Fork) => Some(SessionError::TurnRunning),
        Ok(_) => None,
    };
    match (refused, verb) {
        (Some(refusal), _) => Accept::Refuse(refusal),
        (None, Verb::End | Verb::Stop) => Accept::Overtake,
        (None, _) if standing.waiting >= MAX_WAITING => Accept::Refuse(SessionError::Unavailable(format!(
            "{MAX_WAITING} requests are already waiting for this session to start; try again"
        ))),
        (None, _) => Accept::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(status: SessionStatus, starting: bool, turn: bool, verb: Verb) -> &'static str {
        match accept(&Standing { status, starting, turn, waiting: 0 }, verb) {
            Accept::Now => "now",
            Accept::Wait => "wait",
            Accept::Overtake => "overtake",
            Accept::Refuse(SessionError::TurnRunning) => "409",
            Accept::Refuse(SessionError::Ended) => "410",
            Accept::Refuse(_) => "400",
        }
    }

    #[test]
    fn table() {
        use SessionStatus::{Active, Ended, Error, Paused, Starting, Stopped};
        let cases = [
            // one turn at a time
            (Active, false, false, Verb::Send, "now"),
            (Active, false, true, Verb::Send, "409"),
            (Active, false, true, Verb::Exec, "now"),
            (Active, false, true, Verb::Pause, "now"),
            (Active, false, true, Verb::Interrupt, "now"),
            (Active, false, true, Verb::Fork, "409"),
            (Active, false, true, Verb::End, "now"),
            (Paused, false, true, Verb::Resume, "now"),
            // create in progress
            (Starting, true, false, Verb::Send, "400"),
            (Starting, true, false, Verb::Pause, "400"),
            (Starting, true, false, Verb::Resume, "wait"),
            (Starting, true, false, Verb::Stop, "overtake"),
            (Starting, true, false, Verb::End, "overtake"),
            // cold resume in progress: the status is still the old one
            (Paused, true, false, Verb::Send, "400"),
            (Paused, true, false, Verb::Resume, "wait"),
            (Paused, true, false, Verb::Stop, "400"),
            (Paused, true, false, Verb::End, "overtake"),
            (Stopped, true, false, Verb::Resume, "wait"),
            (Error, true, false, Verb::End, "overtake"),
            // a new process for the options of the running turn
            (Active, true, true, Verb::Send, "409"),
            (Active, true, true, Verb::Pause, "wait"),
            (Active, true, true, Verb::Interrupt, "wait"),
            (Active, true, true, Verb::Stop, "overtake"),
            (Ended, false, false, Verb::Resume, "410"),
            (Ended, false, false, Verb::End, "now"),
        ];
        for (status, starting, turn, verb, want) in cases {
            assert_eq!(decide(status, starting, turn, verb), want, "{verb:?} when {status}, {starting}, {turn}");
        }
    }

    #[test]
    fn what_waits_is_bounded_and_an_end_still_gets_through() {
        let full = Standing { status: SessionStatus::Starting, starting: true, turn: false, waiting: MAX_WAITING };
        assert!(matches!(accept(&full, Verb::Resume), Accept::Refuse(SessionError::Unavailable(_))));
        assert!(matches!(accept(&full, Verb::End), Accept::Overtake));
    }
}

#[cfg(test)]
#[path = "acceptance_tests.rs"]
mod properties;
