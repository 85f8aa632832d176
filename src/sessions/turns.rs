//! Where turns begin and end in what claude prints. Pure.
//!
//! ```text
//!                 message sent                      result (of this message)
//!      Idle ----------------------> Asked -----------------------------------> Idle
//!       |                                                                       ^
//!       +--- system/init nobody asked for ---> Unasked ---- result -------------+
//! ```
//!
//! The traps (measured, facts of 2.1.330): `system/init` comes at the start of every turn. A background task that ends
//! wakes claude to a turn nobody asked for, and its `result` may come when a message is on its way already. So once a
//! process was seen to report on its messages (`command_lifecycle` with their uuid), a result only ends a turn whose
//! message was reported as started.

use uuid::Uuid;

use crate::sessions::classify::{Kind, TurnResult};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Asked { message: String, started: bool },
    Unasked,
}

/// What a line means for the turns of the session.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The line is the first of a turn that nobody asked for.
    Began,
    /// The line is the last of the turn that runs.
    Ended(TurnResult),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    phase: Phase,
    /// Whether this process reports on its messages.
    reports: bool,
}

impl Turns {
    /// For a new process.
    pub fn idle() -> Self {
        Self { phase: Phase::Idle, reports: false }
    }

    /// A message is about to be sent. `message` is the uuid in its line.
    pub fn asked(&mut self, message: Uuid) {
        self.phase = Phase::Asked { message: message.to_string(), started: false };
    }

    /// Goes on with a turn that another ashd began; which messages were reported is not known any more.
    pub fn adopted(unasked: bool) -> Self {
        let phase = if unasked { Phase::Unasked } else { Phase::Asked { message: String::new(), started: true } };
        Self { phase, reports: false }
    }

    /// The turn is over without a result (the process died).
    pub fn broke(&mut self) {
        self.phase = Phase::Idle;
    }

    /// Takes one line, in order.
    pub fn line(&mut self, kind: &Kind) -> Option<Change> {
        match (kind, &mut self.phase) {
            (Kind::SystemInit { .. }, Phase::Idle) => {
                self.phase = Phase::Unasked;
                Some(Change::Began)
            }
            (Kind::CommandLifecycle { command, state }, phase) => {
                self.reports = true;
                if let Phase::Asked { message, started } = phase
                    && message == command
                    && matches!(state.as_str(), "started" | "completed" | "cancelled")
                {
                    *started = true;
                }
                None
            }
            (Kind::Result(_), Phase::Asked { started: false, .. }) if self.reports => None,
            (Kind::Result(result), Phase::Asked { .. } | Phase::Unasked) => {
                self.phase = Phase::Idle;
                Some(Change::Ended(result.clone()))
            }
            _ => None,
        }
    }
}

/// The error of a turn as its readers are told; `None` for one that ended as it was asked to.
///
/// A turn that reached the limit the client set for it did what was asked; an interrupted one too.
pub fn error_of(result: &TurnResult, interrupted: bool) -> Option<String> {
    let asked_for = interrupted || matches!(result.subtype.as_str(), "error_max_turns" | "error_max_budget_usd");
    if asked_for { None } else { result.failure() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: Kind = Kind::SystemInit { model: None };

    fn result() -> Kind {
        Kind::Result(TurnResult::default())
    }

    fn report(command: Uuid, state: &str) -> Kind {
        Kind::CommandLifecycle { command: command.to_string(), state: state.to_owned() }
    }

    /// `b` began, `e` ended, `.` nothing.
    fn run(turns: &mut Turns, lines: &[Kind]) -> String {
        lines
            .iter()
            .map(|kind| match turns.line(kind) {
                Some(Change::Began) => 'b',
                Some(Change::Ended(_)) => 'e',
                None => '.',
            })
            .collect()
    }

    #[test]
    fn a_message_and_its_result() {
        let (mut turns, uuid) = (Turns::idle(), Uuid::new_v4());
        turns.asked(uuid);
        assert_eq!(run(&mut turns, &[INIT, Kind::StreamEvent, result()]), "..e");
        // With reports.
        turns.asked(uuid);
        let lines = [report(uuid, "queued"), report(uuid, "started"), INIT, result(), report(uuid, "completed")];
        assert_eq!(run(&mut turns, &lines), "...e.");
    }

    #[test]
    fn a_turn_nobody_asked_for() {
        let mut turns = Turns::idle();
        let task = Kind::System { subtype: "task_notification".into() };
        assert_eq!(run(&mut turns, &[task, INIT, Kind::Other, result(), result()]), ".b.e.");
    }

    #[test]
    fn the_result_of_another_turn_does_not_end_ours() {
        let (mut turns, first, second) = (Turns::idle(), Uuid::new_v4(), Uuid::new_v4());
        turns.asked(first);
        assert_eq!(run(&mut turns, &[report(first, "started"), result()]), ".e");
        // A background task woke claude just when the next message was sent.
        turns.asked(second);
        let lines = [INIT, result(), report(second, "queued"), report(second, "started"), INIT, result()];
        assert_eq!(run(&mut turns, &lines), ".....e");
    }

    #[test]
    fn adopted_turns_end_with_the_next_result() {
        assert_eq!(run(&mut Turns::adopted(false), &[Kind::StreamEvent, result()]), ".e");
        assert_eq!(run(&mut Turns::adopted(true), &[INIT, result()]), ".e");
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
