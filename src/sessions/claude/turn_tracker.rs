//! Where turns begin and end in claude's output. Pure.
//!
//! ```text
//!                 message sent            "started"               result (of this message)
//!      Idle ----------------------> Asked ---------> Asked, started ------------------> Idle
//!       |                            |   ^                                               ^
//!       |        a turn of claude's  v   | its result, or "started"                      |
//!       |                           Foreign                                              |
//!       +--- system/init of its own ------> Unasked ---- result -------------------------+
//! ```
//!
//! Every turn starts with `system/init`. A background task that ends, or a timer, makes claude
//! begin a turn of its own, possibly while a message is on its way. The lines of that turn are not
//! those of the message. So once a process reports on its messages (`command_lifecycle` with their
//! uuid), all lines before "started" of our message belong to another turn. A result that names the
//! messages it answers (`user_message_uuids`) ends no turn of another message.

use uuid::Uuid;

use crate::sessions::claude::classify::{Kind, TurnResult};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// `foreign`: claude is in a turn of its own before it begins with the message.
    Asked {
        message: String,
        started: bool,
        foreign: bool,
    },
    Unasked,
}

/// What a line means for the turns of the session.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// First line of an unasked turn.
    Began,
    /// Last line of the running turn.
    Ended(TurnResult),
    /// First line of a turn of claude's own, before that of the waiting message.
    ForeignBegan,
    /// Last line of that turn (and the first, where it was not begun).
    ForeignEnded(TurnResult),
    /// claude finished the message without a turn: it cannot read it.
    NotBegun,
    /// claude took the message into its own turn: from the next line on, it is the message's.
    ForeignBecameOurs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    phase: Phase,
    /// Whether this process reports on its messages.
    reports: bool,
}

impl Turns {
    /// For a process between turns.
    pub fn idle(reports: bool) -> Self {
        Self { phase: Phase::Idle, reports }
    }

    /// A message is about to be sent. `message` is the uuid in its line.
    pub fn asked(&mut self, message: Uuid) {
        self.phase = Phase::Asked { message: message.to_string(), started: false, foreign: false };
    }

    /// Continues a turn that another ashd began.
    pub fn adopted(id: Uuid, unasked: bool, reports: bool) -> Self {
        let phase = match unasked {
            true => Phase::Unasked,
            false => Phase::Asked { message: id.to_string(), started: true, foreign: false },
        };
        Self { phase, reports }
    }

    /// Continues a turn of claude's own; this message waits for its end.
    pub fn adopted_foreign(message: Uuid) -> Self {
        let phase = Phase::Asked { message: message.to_string(), started: false, foreign: true };
        Self { phase, reports: true }
    }

    /// The turn is over without a result (the process died).
    pub fn broke(&mut self) {
        self.phase = Phase::Idle;
    }

    pub fn reports(&self) -> bool {
        self.reports
    }

    /// Takes one line, in order.
    pub fn line(&mut self, kind: &Kind) -> Option<Change> {
        if let Kind::CommandLifecycle { command, state } = kind {
            return self.report(command, state);
        }
        match (kind, &mut self.phase) {
            (Kind::SystemInit { .. }, Phase::Idle) => {
                self.phase = Phase::Unasked;
                Some(Change::Began)
            }
            (Kind::Result(result), Phase::Asked { started: false, foreign, message })
                if self.reports && result.user_messages.iter().all(|answered| answered != message) =>
            {
                *foreign = false;
                Some(Change::ForeignEnded(result.clone()))
            }
            (Kind::SystemInit { .. }, Phase::Asked { started: false, foreign: foreign @ false, .. })
                if self.reports =>
            {
                *foreign = true;
                Some(Change::ForeignBegan)
            }
            // It answers other messages only: the late end of a turn that ashd broke off (by a
            // limit, for example).
            (Kind::Result(result), Phase::Asked { message, .. }) if result.is_of_others(message) => None,
            (Kind::Result(result), Phase::Asked { .. } | Phase::Unasked) => {
                self.phase = Phase::Idle;
                Some(Change::Ended(result.clone()))
            }
            _ => None,
        }
    }

    fn report(&mut self, command: &str, state: &str) -> Option<Change> {
        self.reports = true;
        let Phase::Asked { message, started, foreign } = &mut self.phase else { return None };
        if message != command || !matches!(state, "started" | "completed" | "cancelled") {
            return None;
        }
        if !*started && !*foreign && state != "started" {
            self.phase = Phase::Idle;
            return Some(Change::NotBegun);
        }
        *started = true;
        std::mem::take(foreign).then_some(Change::ForeignBecameOurs)
    }
}

/// The error of a turn for its readers; `None` for one that ended as requested.
///
/// A turn that reached a limit of its message, or was interrupted, ended as requested.
pub fn error_of(result: &TurnResult, interrupted: bool) -> Option<String> {
    let asked_for = interrupted || matches!(result.subtype.as_str(), "error_max_turns" | "error_max_budget_usd");
    if asked_for { None } else { result.failure() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: Kind = Kind::SystemInit { model: None, conversation: None };

    fn result() -> Kind {
        Kind::Result(TurnResult::default())
    }

    fn report(command: Uuid, state: &str) -> Kind {
        Kind::CommandLifecycle { command: command.to_string(), state: state.to_owned() }
    }

    /// `b` began, `e` ended, `(` and `)` a turn of claude's own before ours, `>` it became ours,
    /// `.` nothing.
    fn run(turns: &mut Turns, lines: &[Kind]) -> String {
        lines
            .iter()
            .map(|kind| match turns.line(kind) {
                Some(Change::Began) => 'b',
                Some(Change::Ended(_)) => 'e',
                Some(Change::ForeignBegan) => '(',
                Some(Change::ForeignEnded(_)) => ')',
                Some(Change::ForeignBecameOurs) => '>',
                Some(Change::NotBegun) => 'n',
                None => '.',
            })
            .collect()
    }

    #[test]
    fn a_message_and_its_result() {
        let (mut turns, uuid) = (Turns::idle(false), Uuid::new_v4());
        turns.asked(uuid);
        assert_eq!(run(&mut turns, &[INIT, Kind::StreamEvent, result()]), "..e");
        // With reports.
        turns.asked(uuid);
        let lines = [report(uuid, "queued"), report(uuid, "started"), INIT, result(), report(uuid, "completed")];
        assert_eq!(run(&mut turns, &lines), "...e.");
    }

    #[test]
    fn a_turn_nobody_asked_for() {
        let mut turns = Turns::idle(false);
        let task = Kind::System { subtype: "task_notification".into() };
        assert_eq!(run(&mut turns, &[task, INIT, Kind::Other, result(), result()]), ".b.e.");
    }

    #[test]
    fn the_result_of_another_turn_does_not_end_ours() {
        let (mut turns, first, second) = (Turns::idle(false), Uuid::new_v4(), Uuid::new_v4());
        turns.asked(first);
        assert_eq!(run(&mut turns, &[report(first, "started"), result()]), ".e");
        // A background task starts a turn just when the next message is sent.
        turns.asked(second);
        let lines = [INIT, result(), report(second, "queued"), report(second, "started"), INIT, result()];
        assert_eq!(run(&mut turns, &lines), "()...e");
        // claude reads the message during that turn, and begins with it afterwards.
        turns.asked(second);
        let lines = [INIT, report(second, "queued"), Kind::Other, result(), report(second, "started"), INIT, result()];
        assert_eq!(run(&mut turns, &lines), "(..)..e");
        // Two such turns; only the end of one is seen.
        turns.asked(second);
        let lines = [INIT, result(), INIT, result(), result(), report(second, "started"), INIT, result()];
        assert_eq!(run(&mut turns, &lines), "()())..e");
    }

    #[test]
    fn a_message_that_claude_takes_into_its_own_turn_has_the_rest_of_it() {
        let (mut turns, message) = (Turns::idle(true), Uuid::new_v4());
        turns.asked(message);
        let lines = [INIT, report(message, "queued"), Kind::Other, report(message, "started"), Kind::Other, result()];
        assert_eq!(run(&mut turns, &lines), "(..>.e");
        let mut adopted = Turns::adopted_foreign(message);
        assert_eq!(run(&mut adopted, &[Kind::Other, result(), report(message, "started"), INIT, result()]), ".)..e");
    }

    #[test]
    fn the_end_of_a_turn_that_was_broken_off_is_no_answer_to_the_next_message() {
        let (mut turns, first, second) = (Turns::idle(false), Uuid::new_v4(), Uuid::new_v4());
        let result_of = |messages: &[Uuid]| {
            Kind::Result(TurnResult {
                user_messages: messages.iter().map(Uuid::to_string).collect(),
                ..TurnResult::default()
            })
        };
        turns.asked(first);
        turns.broke();
        turns.asked(second);
        // No report was seen of this process, for example because it was adopted.
        assert_eq!(run(&mut turns, &[result_of(&[first]), INIT, result_of(&[second])]), "..e");
        turns.asked(second);
        assert_eq!(run(&mut turns, &[result_of(&[first, second])]), "e", "one turn may answer several messages");
        // The same for a turn that another ashd began.
        let mut adopted = Turns::adopted(second, false, false);
        assert_eq!(run(&mut adopted, &[result_of(&[first]), result_of(&[second])]), ".e");
    }

    #[test]
    fn a_message_that_claude_does_not_begin_with_ends_at_once() {
        let (mut turns, message) = (Turns::idle(false), Uuid::new_v4());
        // Reports of 2.1.330 on a text block without a text.
        turns.asked(message);
        assert_eq!(run(&mut turns, &[report(Uuid::new_v4(), "completed"), report(message, "completed")]), ".n");
        turns.asked(message);
        assert_eq!(run(&mut turns, &[report(message, "queued"), report(message, "cancelled")]), ".n");
    }

    #[test]
    fn adopted_turns_end_with_the_next_result() {
        assert_eq!(run(&mut Turns::adopted(Uuid::new_v4(), false, false), &[Kind::StreamEvent, result()]), ".e");
        assert_eq!(run(&mut Turns::adopted(Uuid::new_v4(), true, false), &[INIT, result()]), ".e");
    }

    #[test]
    fn what_was_asked_for_is_no_error() {
        let failed = |subtype: &str| {
            let mut result = TurnResult::default();
            (result.subtype, result.is_error) = (subtype.to_owned(), true);
            result
        };
        assert_eq!(error_of(&failed("error_max_turns"), false), None);
        assert_eq!(error_of(&failed("error_during_execution"), true), None);
        assert!(error_of(&failed("error_during_execution"), false).is_some());
        assert!(error_of(&failed("success"), false).is_some());
        assert_eq!(error_of(&TurnResult::default(), false), None);
    }
}
