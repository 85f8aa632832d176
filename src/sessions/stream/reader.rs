//! Readers of a session's stream: from the stdout file to SSE bytes.
//!
//! ```text
//!             +------------------------------------------------------------+
//!             v                                                            |
//!         NextTurn --a turn exists--> Greet --session_start--> Lines --> End (error?, done)
//!             |                                                |  ^        |
//!             | closed                    watermark not moved: v  |        | stream of one turn
//!             +--------> Finished            wait, ": ping" every 15 s     +--------> Finished
//! ```
//!
//! A line that is too long to hold has its own step between two of Lines: Long, one piece at a
//! time.
//!
//! A reader's state is a position (turn, offset, frames of that line to skip). When polled, it
//! reads the file up to the driver's watermark: at most [`super::read_lines::PIECE_BYTES`] or one
//! longer line at a time. A client that does not read is not polled, and costs nothing. All frames
//! of a piece are sent as one chunk.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use super::event_id::{FRAME_DONE, FRAME_ERROR, FRAME_START};
use super::frames::{frames, own_frame};
pub use super::published::{Published, Turns};
use super::read_lines::{Piece, whole_lines};
use super::resume_point::GOING;
pub use super::resume_point::{ReaderError, session_stream, until};
use super::tail::lines;
use crate::sessions::stream::{EventId, FrameStream};
use crate::store::Turn;

/// Silence after which a comment is sent, so that proxies and clients keep the connection.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

/// The frames of one turn, from its start until `done`, live.
pub fn turn_stream(
    stdout: PathBuf,
    session: Uuid,
    turns: impl Turns,
    turn: Turn,
    published: watch::Receiver<Published>,
    partial: bool,
) -> FrameStream {
    let place = Place { number: turn.number, start: turn.start, offset: turn.start, skip: 0 };
    Reader::new(stdout, session, turns, published, Partial::from(partial), Step::Greet(place), false).into_stream()
}

/// Turns in which a reader gets partial messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sessions) enum Partial {
    Always,
    Never,
    /// The turn with this number, whose own stream had them.
    In(i64),
}

impl Partial {
    pub fn in_turn(self, number: i64) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::In(turn) => turn == number,
        }
    }
}

impl From<bool> for Partial {
    fn from(always: bool) -> Self {
        if always { Self::Always } else { Self::Never }
    }
}

/// A reader's position in a turn.
#[derive(Clone, Copy, Debug)]
pub(in crate::sessions) struct Place {
    pub number: i64,
    pub start: u64,
    /// Start of the next line.
    pub offset: u64,
    /// Frames at that offset that the client has.
    pub skip: u32,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::sessions) enum Step {
    Greet(Place),
    Lines(Place),
    /// In the `message` frame of the line at this position, see [`long`].
    Long(LongLine),
    /// Waits for the turn with this number.
    NextTurn(i64),
    Finished,
}

pub(in crate::sessions) struct Reader<T> {
    stdout: PathBuf,
    file: Option<File>,
    session: Uuid,
    turns: T,
    published: watch::Receiver<Published>,
    partial: Partial,
    heartbeat: Duration,
    step: Step,
    /// Whether other turns follow.
    follow: bool,
    /// A gap over whole turns that is not reported yet: its start, and the end of its last turn.
    gap: Option<(EventId, u64)>,
    /// Notices that existed when the reader came, or that it has sent.
    noticed: u64,
}

/// How far the reader's turn can be read now.
enum Bound {
    /// The turn runs; whole lines exist up to this offset.
    Running(u64),
    Ended {
        end: u64,
        error: Option<String>,
    },
    /// Readable up to this offset and no further, for this reason.
    Broken {
        end: u64,
        why: String,
    },
}

impl<T: Turns> Reader<T> {
    pub(in crate::sessions) fn new(
        stdout: PathBuf,
        session: Uuid,
        turns: T,
        published: watch::Receiver<Published>,
        partial: Partial,
        step: Step,
        follow: bool,
    ) -> Self {
        let noticed = published.borrow().notices.count;
        let heartbeat = HEARTBEAT;
        Self { stdout, file: None, session, turns, published, partial, heartbeat, step, follow, gap: None, noticed }
    }

    pub(in crate::sessions) fn into_stream(self) -> FrameStream {
        Box::pin(futures_util::stream::unfold(self, |mut reader| async move {
            let bytes = reader.next().await?;
            Some((Ok(bytes), reader))
        }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.is_empty() {
            self.notices(&mut out);
            match self.step {
                Step::Greet(place) => {
                    let id = EventId { turn: place.number, offset: place.start, frame: FRAME_START };
                    let data = json!({ "sessionId": self.session, "version": env!("CARGO_PKG_VERSION") });
                    own_frame(id, "session_start", &data, &mut out);
                    self.step = Step::Lines(place);
                }
                Step::Lines(place) => self.lines(place, &mut out).await,
                Step::Long(line) => self.piece_of_long(line, &mut out),
                Step::NextTurn(number) => self.next_turn(number, &mut out).await,
                Step::Finished => return None,
            }
            // A turn of a million lines that this client did not ask for must not hold the thread.
            tokio::task::coop::consume_budget().await;
        }
        Some(out.freeze())
    }

    /// One piece of the turn's lines, or its end, or a wait.
    async fn lines(&mut self, mut place: Place, out: &mut BytesMut) {
        let now = self.published.borrow_and_update().clone();
        let (bound, start) = self.bound(&now, place).await;
        if start > place.offset {
            // The turn begins later than first recorded: after a turn of claude's own.
            place = Place { start, offset: start, skip: 0, ..place };
        }
        let (Bound::Running(end) | Bound::Ended { end, .. } | Bound::Broken { end, .. }) = bound;
        if place.offset < now.floor && place.offset < end {
            let from = EventId { turn: place.number, offset: place.offset, frame: place.skip };
            place = Place { offset: now.floor.min(end), skip: 0, ..place };
            self.say_gap(from, place, out);
            self.step = Step::Lines(place);
            return;
        }
        if place.offset < end {
            match self.piece(place.offset, end) {
                // The floor is published before bytes are given back, so what was read may be
                // zeros.
                _ if self.published.borrow().floor > place.offset => {}
                Ok(Piece::Long) => {
                    if let Err(e) = self.begin_long(place, end, out).await {
                        self.end(place, Some(e.to_string()), false, out);
                    }
                }
                Ok(Piece::Lines(piece)) => {
                    out.reserve(piece.len() + piece.len() / 4);
                    for (offset, line) in lines(place.offset, &piece) {
                        let skip = if offset == place.offset { place.skip } else { 0 };
                        frames(line, place.number, offset, skip, self.partial.in_turn(place.number), out);
                    }
                    place = Place { offset: place.offset + piece.len() as u64, skip: 0, ..place };
                    self.step = Step::Lines(place);
                }
                Err(e) => self.end(place, Some(e.to_string()), false, out),
            }
            return;
        }
        match bound {
            Bound::Ended { end, error } => self.end(Place { offset: end, ..place }, error, self.follow, out),
            Bound::Broken { why, .. } => self.end(place, Some(why), false, out),
            Bound::Running(_) => self.wait(out).await,
        }
    }

    async fn bound(&self, now: &Published, place: Place) -> (Bound, u64) {
        let Some(newest) = now.turn.as_ref().filter(|turn| turn.number >= place.number) else {
            // The reader came before the driver published the turn.
            let bound = match &now.closed {
                Some(why) => Bound::Broken { end: place.offset, why: why.clone() },
                None => Bound::Running(place.offset),
            };
            return (bound, place.start);
        };
        if newest.number == place.number {
            let bound = match (newest.end, &now.closed) {
                (Some(end), _) => Bound::Ended { end, error: newest.error.clone() },
                (None, Some(why)) => Bound::Broken { end: now.watermark, why: why.clone() },
                (None, None) => Bound::Running(now.watermark),
            };
            return (bound, newest.start);
        }
        let broken = |why| (Bound::Broken { end: place.offset, why }, place.start);
        match self.turns.turn(self.session, place.number).await {
            Ok(Some(Turn { end: Some(end), error, start, .. })) => (Bound::Ended { end, error }, start),
            Ok(_) => broken(format!("the end of turn {} is not recorded", place.number)),
            Err(why) => broken(why),
        }
    }

    fn piece(&mut self, from: u64, to: u64) -> std::io::Result<Piece> {
        whole_lines(self.file()?, from, to)
    }

    fn file(&mut self) -> std::io::Result<&File> {
        match &mut self.file {
            Some(file) => Ok(file),
            none => Ok(none.insert(File::open(&self.stdout)?)),
        }
    }

    fn end(&mut self, place: Place, error: Option<String>, follow: bool, out: &mut BytesMut) {
        let id = |frame| EventId { turn: place.number, offset: place.offset, frame };
        if let Some(error) = error.filter(|_| place.skip < FRAME_ERROR) {
            own_frame(id(FRAME_ERROR), "error", &json!({ "error": error }), out);
        }
        if place.skip < FRAME_DONE {
            own_frame(id(FRAME_DONE), "done", &json!({ "sessionId": self.session }), out);
        }
        self.step = if follow { Step::NextTurn(place.number + 1) } else { Step::Finished };
    }

    async fn next_turn(&mut self, number: i64, out: &mut BytesMut) {
        let now = self.published.borrow_and_update().clone();
        let newest = now.turn.filter(|turn| turn.number >= number);
        let turn = match newest {
            Some(turn) if turn.number == number => Ok(Some(turn)),
            Some(_) => match self.turns.turn(self.session, number).await {
                Ok(None) => Err(format!("turn {number} is not recorded")),
                found => found,
            },
            None => Ok(None),
        };
        match turn {
            Ok(Some(turn)) => {
                let place = Place { number, start: turn.start, offset: turn.start, skip: 0 };
                if let Some(end) = turn.end.filter(|end| *end <= now.floor && *end > turn.start) {
                    // One gap frame for all missing turns, before the next turn that exists.
                    let from = EventId { turn: number, offset: turn.start, frame: FRAME_START };
                    self.gap = Some((self.gap.map_or(from, |(from, _)| from), end));
                    self.step = Step::NextTurn(number + 1);
                    return;
                }
                if let Some((from, _)) = self.gap.take() {
                    self.say_gap(from, place, out);
                }
                self.step = Step::Greet(place);
            }
            Ok(None) => {
                if let Some((from, end)) = self.gap.take() {
                    let to = Place { number: number - 1, start: end, offset: end, skip: FRAME_DONE };
                    self.say_gap(from, to, out);
                } else if now.closed.is_some() {
                    self.step = Step::Finished;
                } else {
                    self.wait(out).await;
                }
            }
            Err(why) => {
                let id = EventId { turn: number - 1, offset: now.watermark, frame: FRAME_DONE };
                own_frame(id, "error", &json!({ "error": why }), out);
                self.step = Step::Finished;
            }
        }
    }

    /// Sends new notices where the stream is in step with the session. Their id is the position
    /// reached, so that a reconnect misses no output.
    fn notices(&mut self, out: &mut BytesMut) {
        let now = self.published.borrow();
        if !self.follow || now.notices.count == self.noticed {
            return;
        }
        let id = match (self.step, &now.turn) {
            (Step::Lines(place), _) => EventId { turn: place.number, offset: place.offset, frame: place.skip },
            (Step::NextTurn(1), None) => EventId::BEGINNING,
            (Step::NextTurn(number), Some(Turn { number: last, end: Some(end), .. })) if number == last + 1 => {
                EventId { turn: *last, offset: *end, frame: FRAME_DONE }
            }
            _ => return,
        };
        for data in now.notices.after(self.noticed) {
            if let Ok(data) = serde_json::from_str(data) {
                own_frame(id, "lifecycle", &data, out);
            }
        }
        self.noticed = now.notices.count;
    }

    /// Reports missing output. The frame's id is where the stream continues.
    fn say_gap(&self, from: EventId, to: Place, out: &mut BytesMut) {
        let id = EventId { turn: to.number, offset: to.offset, frame: to.skip };
        let data = json!({
            "sessionId": self.session,
            "from": from.to_string(),
            "to": id.to_string(),
            "reason": "this part of the stream is no longer kept; the messages are in GET /api/sessions/:id/messages",
        });
        own_frame(id, "gap", &data, out);
    }

    /// Waits for a change of the published state, or until a heartbeat is due.
    async fn wait(&mut self, out: &mut BytesMut) {
        // A notice that came during the other checks causes no second wake-up.
        self.notices(out);
        if !out.is_empty() {
            return;
        }
        match tokio::time::timeout(self.heartbeat, self.published.changed()).await {
            Ok(Ok(())) => {}
            // The daemon stops while the turn continues in its sandbox. `done` would be wrong: the
            // body ends, and the client reconnects with the last id.
            Ok(Err(_)) => {
                out.extend_from_slice(GOING);
                self.step = Step::Finished;
            }
            Err(_) => out.extend_from_slice(b": ping\n\n"),
        }
    }
}

#[path = "reader_long.rs"]
mod long;
use long::LongLine;

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
