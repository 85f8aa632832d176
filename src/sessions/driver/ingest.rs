//! Processes claude's lines for the turns, the history and the readers.

use std::time::{Duration, Instant};

use super::flood::logged;
use super::journal::sum;
use super::{Driver, Interrupted};
use crate::sessions::claude;
use crate::sessions::claude::classify::{Classified, Classifier, Kind, TurnResult};
use crate::sessions::claude::turn_tracker::{Change, error_of};
use crate::sessions::stream::tail::Batch;
use crate::store::{Commit, Turn};
use ash_model::now_ms;

/// Lines after which other tasks may run.
const YIELD: usize = 64;
/// Bytes of lines without a message after which the offset is written anyway.
const UNWRITTEN: u64 = 1 << 20;

impl Driver {
    /// Readers see the lines at once; the database follows.
    pub(super) async fn ingest(&mut self, batch: &Batch) {
        let mut note = self.note_of_turn();
        let mut answers = Vec::new();
        let in_turn = self.turn.is_some();
        let mut history = self.history();
        // For the rest of a process that is gone.
        let mut spare = Classifier::default();
        let mut read = batch.end();
        for (n, (offset, end, line)) in batch.lines().enumerate() {
            if self.allowances.is_over() {
                read = offset;
                break;
            }
            if n % YIELD == YIELD - 1 {
                // Woken tasks of other sessions must not wait for the whole batch.
                tokio::task::yield_now().await;
            }
            #[cfg(test)]
            assert!(!String::from_utf8_lossy(line).contains(super::supervise::POISON), "poison");
            let classifier = match &mut self.live {
                Some(live) => {
                    live.read_to = end;
                    &mut live.classifier
                }
                None => {
                    self.session.stdout_offset = end;
                    &mut spare
                }
            };
            let mut classified =
                if batch.abridged { classifier.classify_abridged(line) } else { classifier.classify(line) };
            let change = self.turns.line(&classified.kind);
            match &change {
                Some(Change::Began) => self.turn_began(&mut note, offset),
                Some(Change::ForeignBegan) => self.foreign_began(&mut note, offset),
                Some(Change::ForeignEnded(_)) if self.foreign.is_none() => self.foreign_began(&mut note, offset),
                _ => {}
            }
            history.bound(&mut self.cap, &mut classified, offset);
            self.follow_conversation(&classified.kind, &mut note);
            add(&mut note, &mut classified);
            match &classified.kind {
                Kind::ControlRequest { request_id, raw, .. } => {
                    self.allowances.question();
                    answers.push(claude::answer_permission(self.options.permission_mode, request_id, raw));
                }
                Kind::Background { agents } => self.in_background(*agents > 0),
                Kind::ControlResponse { request_id, ok: false, error } if self.allowances.refusal() => {
                    tracing::warn!(ASH_SESSION = %self.session.id, request = logged(request_id),
                        "claude refused a request: {}", logged(error.as_deref().unwrap_or("no reason given")));
                }
                Kind::CommandLifecycle { .. } => self.note_reports(),
                Kind::SystemInit { .. } => answers.extend(self.interrupt_behind_foreign()),
                _ => {}
            }
            match change {
                Some(Change::Ended(result)) => {
                    self.foreign_was_ours(&mut note);
                    self.turn_ended(&mut note, end, &result).await;
                }
                Some(Change::NotBegun) => self.not_begun(&mut note, end).await,
                Some(Change::ForeignEnded(result)) => self.foreign_ended(&mut note, end, Some(&result)),
                Some(Change::ForeignBecameOurs) => self.foreign_ended(&mut note, end, None),
                Some(Change::Began | Change::ForeignBegan) | None => {}
            }
            if super::journal::is_large(&note) {
                note.stdout_offset = Some(end);
                self.flush(&mut note);
            }
        }
        // Lines of its start are no conversation.
        if let Some(live) = self.live.as_mut().filter(|_| in_turn || self.turn.is_some()) {
            live.unsaved_since.get_or_insert_with(Instant::now);
        }
        self.history_over(&history).await;
        self.ledger.saw(self.readable(read));
        self.ledger.trim(&self.dir.stdout());
        // Deltas alone are not worth a transaction: after a restart they are read again.
        let behind = read.saturating_sub(self.session.stdout_offset);
        let worth = !note.messages.is_empty() || !note.events.is_empty() || note.usage.is_some() || note.turn.is_some();
        if worth || behind > UNWRITTEN || note.conversation.is_some() {
            note.stdout_offset = Some(read);
            self.session.stdout_offset = read;
            self.ledger.note(note);
        }
        if !self.allowances.is_over() {
            self.answer_questions(answers).await;
        }
    }

    /// A change whose rows belong to claude's current turn.
    fn note_of_turn(&self) -> Commit {
        let mut note = self.ledger.blank();
        note.of_turn = self.foreign.as_ref().or(self.turn.as_ref()).map(|running| running.turn.number);
        note
    }

    /// Writes what was collected. What follows belongs to claude's current turn.
    pub(super) fn flush(&mut self, note: &mut Commit) {
        let next = self.note_of_turn();
        self.ledger.note(std::mem::replace(note, next));
    }

    /// The row of an unasked turn that begins here.
    pub(super) fn unasked_turn(&mut self, offset: u64) -> Turn {
        self.allowances.turn();
        self.cap.reset();
        self.newest += 1;
        Turn {
            session: self.session.id,
            id: uuid::Uuid::new_v4(),
            number: self.newest,
            start: offset,
            end: None,
            error: None,
            delivered: true,
            unasked: true,
            partial: false,
            started_at: now_ms(),
            ended_at: None,
        }
    }

    fn turn_began(&mut self, note: &mut Commit, offset: u64) {
        let turn = self.unasked_turn(offset);
        self.turn = Some(self.running(turn.clone()));
        // Earlier rows belong to no turn; a commit holds one turn.
        note.stdout_offset = Some(offset);
        self.flush(note);
        note.turn = Some(turn);
        self.place();
    }

    async fn turn_ended(&mut self, note: &mut Commit, end: u64, result: &TurnResult) {
        let interrupted = self.turn_closed(note, end, error_of(result, false));
        if let Some(limit) = result.spent() {
            self.spent(limit, result);
        }
        self.turn_over(interrupted).await;
    }

    /// claude reports at once that it did not begin with the message; the turn has no other output.
    async fn not_begun(&mut self, note: &mut Commit, end: u64) {
        let why =
            "claude did not begin this turn: it cannot read the message. Check its content blocks and send it again";
        note.events.push(("error", serde_json::json!({ "error": why }).to_string().into()));
        let interrupted = self.turn_closed(note, end, Some(why.to_owned()));
        self.turn_over(interrupted).await;
    }

    fn turn_closed(&mut self, note: &mut Commit, end: u64, error: Option<String>) -> Option<Interrupted> {
        let mut running = self.turn.take()?;
        let interrupted = running.interrupted.take();
        running.turn.end = Some(end);
        running.turn.ended_at = Some(now_ms());
        running.turn.error = match &interrupted {
            Some(interrupted) => interrupted.why.clone(),
            None => error,
        };
        tracing::info!(ASH_EVENT = "turn-end", ASH_SESSION = %self.session.id,
            ASH_TURN = running.turn.number, ms = running.since.elapsed().as_millis(),
            error = running.turn.error, "the turn is over");
        note.turn = Some(running.turn);
        note.touch = true;
        note.stdout_offset = Some(end);
        self.flush(note);
        interrupted
    }

    /// The turn is over: answers its interrupters, and restores a pause that was lifted for it.
    async fn turn_over(&mut self, interrupted: Option<Interrupted>) {
        if let Some(live) = &mut self.live {
            live.idle_since = Instant::now();
            if self.session.status == ash_model::SessionStatus::Paused
                && let Err(e) = live.freeze().await
            {
                tracing::error!(ASH_SESSION = %self.session.id, "cannot freeze the paused session again: {e}");
            }
        }
        self.place();
        for reply in interrupted.into_iter().flat_map(|i| i.replies) {
            let _ = reply.send(Ok(self.session.clone()));
        }
    }

    /// claude names its conversation: a new one after `/clear`. The next process, fork and sync use
    /// that one.
    fn follow_conversation(&mut self, kind: &Kind, note: &mut Commit) {
        let said = match kind {
            Kind::SystemInit { conversation, .. } => *conversation,
            Kind::Result(result) => result.conversation,
            _ => None,
        };
        if let Some(id) = said.filter(|id| *id != self.session.conversation) {
            (self.session.conversation, self.session.conversation_turn) = (id, self.newest);
            note.conversation = Some((id, self.newest));
            if let Some(live) = &mut self.live {
                // Its record is a file that was never synced.
                live.saved = false;
            }
        }
    }

    /// claude reports whether its agents work in the background. Recorded for a restarted ashd.
    fn in_background(&mut self, works: bool) {
        let Some(live) = self.live.as_mut().filter(|live| live.background.said() != works) else { return };
        let (shared, id) = (&self.shared, self.session.id);
        live.background.set(works, longest(&self.session), || shared.gateway.hold_open(id));
        live.idle_since = Instant::now();
        live.record.background = works;
        if let Err(e) = live.record.write(&self.dir) {
            tracing::warn!(ASH_SESSION = %self.session.id, "process.json: {e}");
        }
    }

    /// The process reports on its messages. Recorded for a restarted ashd.
    fn note_reports(&mut self) {
        let Some(live) = self.live.as_mut().filter(|live| !live.record.reports) else { return };
        live.record.reports = true;
        if let Err(e) = live.record.write(&self.dir) {
            tracing::warn!(ASH_SESSION = %self.session.id, "process.json: {e}");
        }
    }
}

/// What a line adds to the database.
fn add(note: &mut Commit, classified: &mut Classified) {
    note.messages.extend(classified.messages.take());
    note.events.append(&mut classified.events);
    if let Some(usage) = classified.usage.take() {
        note.usage = Some(note.usage.as_ref().map_or(usage.clone(), |before| sum(before, &usage)));
    }
}

/// How long agents may work beside turns.
pub(super) fn longest(session: &crate::store::Session) -> Duration {
    Duration::from_millis(session.limits.turn_ms)
}
