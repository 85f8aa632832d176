//! What each request does in each state of a session. Pure.
//!
//! | from \ request | send, exec | interrupt | pause | resume | stop | end | fork |
//! |---|---|---|---|---|---|---|---|
//! | starting | 400 | 400 | 400 | waits | stopped | ended | 400 |
//! | active | turn | yes | paused | (same) | stopped | ended | yes |
//! | paused | 400 | yes | (same) | active | 400 | ended | yes |
//! | stopped, error | 400 | 400 | 400 | active | 400 | ended | yes |
//! | ended | 400 | 400 | 400 | 410 | 400 | (same) | yes |

use crate::sessions::SessionError;
use ash_model::SessionStatus;

/// A request to the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Send,
    Exec,
    Interrupt,
    Pause,
    Resume,
    Stop,
    End,
    Fork,
    Patch,
}

impl Verb {
    pub const ALL: [Self; 9] = [
        Self::Send,
        Self::Exec,
        Self::Interrupt,
        Self::Pause,
        Self::Resume,
        Self::Stop,
        Self::End,
        Self::Fork,
        Self::Patch,
    ];

    /// The word in `Cannot <verb> session with status "x"`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Send => "send to",
            Self::Exec => "exec in",
            Self::Interrupt => "interrupt",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::End => "end",
            Self::Fork => "fork",
            Self::Patch => "configure",
        }
    }
}

/// The result of an accepted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The session is in that state already.
    Same,
    /// Work that leaves the state unchanged.
    Stay,
    To(SessionStatus),
}

/// The transition table.
pub fn next(status: SessionStatus, verb: Verb) -> Result<Next, SessionError> {
    use SessionStatus as S;
    match (verb, status) {
        (Verb::Send | Verb::Exec, S::Active) => Ok(Next::Stay),
        (Verb::Send | Verb::Exec, _) => Err(SessionError::NotActive(status)),

        (Verb::Interrupt, S::Active | S::Paused) => Ok(Next::Stay),

        (Verb::Pause, S::Active) => Ok(Next::To(S::Paused)),

        (Verb::Resume, S::Active) => Ok(Next::Same),
        (Verb::Resume, S::Paused | S::Stopped | S::Error | S::Starting) => Ok(Next::To(S::Active)),
        (Verb::Resume, S::Ended) => Err(SessionError::Ended),

        (Verb::Stop, S::Active | S::Starting) => Ok(Next::To(S::Stopped)),

        (Verb::End, S::Ended) => Ok(Next::Same),
        (Verb::End, _) => Ok(Next::To(S::Ended)),

        (Verb::Fork, S::Starting) => Err(SessionError::Transition { verb: verb.word(), status }),
        (Verb::Fork, _) => Ok(Next::Stay),

        (Verb::Patch, S::Ended) => Err(SessionError::Transition { verb: verb.word(), status }),
        (Verb::Patch, _) => Ok(Next::Stay),

        (Verb::Interrupt | Verb::Pause | Verb::Stop, _) => Err(SessionError::Transition { verb: verb.word(), status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pairs: `.` same, `-` stay, a letter the new state, `N` not active, `T` transition, `G`
    /// gone.
    #[test]
    fn the_whole_table() {
        use Verb::*;
        let table: [(Verb, [&str; 6]); 9] = [
            //          starting active paused stopped ended error
            (Send, ["N", "-", "N", "N", "N", "N"]),
            (Exec, ["N", "-", "N", "N", "N", "N"]),
            (Interrupt, ["T", "-", "-", "T", "T", "T"]),
            (Pause, ["T", "paused", "T", "T", "T", "T"]),
            (Resume, ["active", ".", "active", "active", "G", "active"]),
            (Stop, ["stopped", "stopped", "T", "T", "T", "T"]),
            (End, ["ended", "ended", "ended", "ended", ".", "ended"]),
            (Fork, ["T", "-", "-", "-", "-", "-"]),
            (Patch, ["-", "-", "-", "-", "T", "-"]),
        ];
        assert_eq!(table.map(|(verb, _)| verb), Verb::ALL);
        for (verb, row) in table {
            for (status, want) in SessionStatus::ALL.into_iter().zip(row) {
                let got = match next(status, verb) {
                    Ok(Next::Same) => ".".to_owned(),
                    Ok(Next::Stay) => "-".to_owned(),
                    Ok(Next::To(to)) => to.to_string(),
                    Err(SessionError::NotActive(_)) => "N".to_owned(),
                    Err(SessionError::Transition { .. }) => "T".to_owned(),
                    Err(SessionError::Ended) => "G".to_owned(),
                    Err(other) => panic!("{other}"),
                };
                assert_eq!(got, want, "{verb:?} when {status}");
            }
        }
    }

    #[test]
    fn refusals_have_the_contracts_texts() {
        let text = |status, verb| next(status, verb).map(|_| ()).unwrap_err().to_string();
        assert_eq!(text(SessionStatus::Paused, Verb::Pause), "Cannot pause session with status \"paused\"");
        assert_eq!(text(SessionStatus::Paused, Verb::Send), "Session is paused");
        assert_eq!(text(SessionStatus::Stopped, Verb::Stop), "Cannot stop session with status \"stopped\"");
    }
}
