//! The text form of an [`EventId`]: `<turn>:<offset>:<frame>`, plain decimal numbers without sign
//! or padding.
//!
//! ```text
//! 3:0:0        session_start of turn 3, whose answer begins at byte 0 of the stdout file
//! 3:0:1        first frame made of the line at byte 0
//! 3:512:2      second frame made of the line at byte 512
//! 3:900:1      the turn's error, 900 being one past its last byte
//! 3:900:2      the turn's done
//! ```
//!
//! Ids of one session only grow, so `Last-Event-ID` is a position, and ashd stores nothing about a
//! client. `0:0:0` precedes everything.

use std::fmt;
use std::str::FromStr;

/// Position in a session's stream, the `id:` of each frame: `<turn>:<offset of the line>:<frame of
/// the line>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    pub turn: i64,
    pub offset: u64,
    pub frame: u32,
}

/// Frame number of `session_start`, at the turn's first byte.
pub const FRAME_START: u32 = 0;
/// First frame number of a line.
pub const FRAME_FIRST: u32 = 1;
/// Frame number of the turn's `error`, at the turn's end.
pub const FRAME_ERROR: u32 = 1;
/// Frame number of `done`, at the turn's end.
pub const FRAME_DONE: u32 = 2;

impl EventId {
    /// Replays a session from its first turn.
    pub const BEGINNING: Self = Self { turn: 0, offset: 0, frame: 0 };
}

/// The text is not an event id of this daemon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an event id (<turn>:<offset>:<frame>, as in the `id:` lines of the stream)")]
pub struct BadEventId(pub String);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.turn, self.offset, self.frame)
    }
}

impl FromStr for EventId {
    type Err = BadEventId;
    fn from_str(text: &str) -> Result<Self, BadEventId> {
        let bad = || BadEventId(text.chars().take(80).collect());
        let mut parts = text.split(':').map(|part| {
            // `parse` also accepts "+1" and "007"; each position has one spelling.
            let plain = part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            part.parse::<u64>().ok().filter(|_| plain)
        });
        let (Some(Some(turn)), Some(Some(offset)), Some(Some(frame)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        Ok(Self {
            turn: i64::try_from(turn).map_err(|_| bad())?,
            offset,
            frame: u32::try_from(frame).map_err(|_| bad())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for id in [
            EventId::BEGINNING,
            EventId { turn: 12, offset: 123_456_789, frame: 3 },
            EventId { turn: i64::MAX, offset: u64::MAX, frame: u32::MAX },
        ] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "1", "1:2", "1:2:3:4", "-1:2:3", "+1:2:3", "01:2:3", "1: 2:3", "a:b:c", "1:2:4294967296", "::"]
        {
            assert_eq!(bad.parse::<EventId>(), Err(BadEventId(bad.to_owned())), "{bad}");
        }
        let long = "9".repeat(1000);
        assert_eq!(long.parse::<EventId>().map_err(|e| e.0.len()), Err(80));
    }
}
