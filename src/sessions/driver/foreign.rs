//! An unasked turn that claude begins when a message is already on its way (a background task
//! ended, a timer fired). Its number is after the message's turn, its output before it.
//!
//! ```text
//!   stdout   ...| queued |  init ... result  | started, init ... result |
//!               ^        ^                   ^
//!               |        turn N+1, unasked   turn N begins here, now that this is known
//!               turn N began here when the message was sent
//! ```
//!
//! Readers of turn N wait at the beginning of N+1 (as does the watermark), and continue at the new
//! beginning of N. N+1 is published when N is over.

use super::{Driver, Running};
use crate::sessions::claude;
use crate::sessions::claude::classify::TurnResult;
use crate::sessions::claude::turn_tracker::{Turns, error_of};
use crate::store::{Commit, Turn};
use ash_model::now_ms;

/// Turns that a restarted ashd finds without an end.
#[derive(Debug)]
pub(super) struct OpenTurns {
    /// The running turn.
    pub turn: Turn,
    /// The unasked turn that the message waits for.
    foreign: Option<Turn>,
}

impl Driver {
    /// How far readers of the running turn may read.
    pub(super) fn readable(&self, read: u64) -> u64 {
        self.foreign.as_ref().map_or(read, |foreign| foreign.turn.start.min(read))
    }

    pub(super) fn foreign_began(&mut self, note: &mut Commit, offset: u64) {
        let turn = self.unasked_turn(offset);
        tracing::info!(ASH_EVENT = "turn-begin", ASH_SESSION = %self.session.id, ASH_TURN = turn.number,
            "an unasked turn begins before the turn of the message");
        // The message keeps the turn's window open.
        self.foreign = Some(self.running(turn.clone()));
        note.stdout_offset = Some(offset);
        self.flush(note);
        note.turn = Some(turn);
    }

    /// `end` is one past its last byte. Without a result, the rest of it is the message's own turn.
    pub(super) fn foreign_ended(&mut self, note: &mut Commit, end: u64, result: Option<&TurnResult>) {
        let Some(foreign) = self.foreign.take() else { return };
        self.close_foreign(foreign, note, end, result.and_then(|result| error_of(result, false)));
        self.flush(note);
        self.cap.reset();
        if let Some(running) = &mut self.turn {
            running.turn.start = end;
            note.turn = Some(running.turn.clone());
            self.ledger.publish(running.turn.clone());
        }
        self.flush(note);
    }

    /// The result names the message, although claude never reported its start: the supposed unasked
    /// turn was the message's.
    pub(super) fn foreign_was_ours(&mut self, note: &mut Commit) {
        let Some(foreign) = self.foreign.take() else { return };
        let start = foreign.turn.start;
        let mut empty = self.ledger.blank();
        self.close_foreign(foreign, &mut empty, start, None);
        empty.stdout_offset = None;
        self.ledger.note(empty);
        if let Some(running) = &mut self.turn {
            running.turn.start = start;
            note.of_turn = Some(running.turn.number);
        }
    }

    fn close_foreign(&self, foreign: Running, note: &mut Commit, end: u64, error: Option<String>) {
        let Running { mut turn, since, .. } = foreign;
        turn.end = Some(end.max(turn.start));
        turn.ended_at = Some(now_ms());
        turn.error = error;
        tracing::info!(ASH_EVENT = "turn-end", ASH_SESSION = %self.session.id, ASH_TURN = turn.number,
            ms = since.elapsed().as_millis(), error = turn.error, "the unasked turn is over");
        note.of_turn = Some(turn.number);
        note.stdout_offset = turn.end;
        note.turn = Some(turn);
        note.touch = true;
    }

    /// The unasked turn is aborted together with the message's turn, which then has no output.
    pub(super) fn break_foreign(&mut self, asked: &mut Turn, why: &str) {
        let Some(foreign) = self.foreign.take() else { return };
        let end = self.read_to();
        let mut note = self.ledger.blank();
        self.close_foreign(foreign, &mut note, end, Some(why.to_owned()));
        self.ledger.note(note);
        asked.start = asked.start.max(end);
    }

    /// An interrupt that ended an unasked turn is repeated when claude begins the intended one.
    pub(super) fn interrupt_behind_foreign(&mut self) -> Option<Vec<u8>> {
        if self.foreign.is_some() {
            return None;
        }
        let running = self.turn.as_mut()?;
        let number = running.turn.number;
        let interrupted = running.interrupted.as_mut()?;
        std::mem::take(&mut interrupted.hit_foreign)
            .then(|| claude::interrupt_line(&format!("interrupt-{number}-again")))
    }

    /// The turns that another ashd left open.
    pub(super) async fn open_turns_of_before(&mut self) -> Result<Option<OpenTurns>, String> {
        let store = &self.shared.store;
        let mut open = store.open_turns(self.session.id).await.map_err(|e| e.to_string())?.into_iter();
        let Some(turn) = open.next() else { return Ok(None) };
        Ok(Some(OpenTurns { turn, foreign: open.next().filter(|turn| turn.unasked) }))
    }

    /// Continues the turns that another ashd began. `reports`: whether the process reports on its
    /// messages.
    pub(super) fn goes_on(&mut self, open: OpenTurns, reports: bool) {
        let OpenTurns { turn, foreign } = open;
        self.turns = match &foreign {
            Some(_) => Turns::adopted_foreign(turn.id),
            None => Turns::adopted(turn.id, turn.unasked, reports),
        };
        self.ledger.publish(turn.clone());
        self.turn = Some(self.running(turn));
        self.foreign = foreign.map(|foreign| self.running(foreign));
    }
}
