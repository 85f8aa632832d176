//! Where a client continues in a session's stream.

use std::fs::File;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::event_id::{FRAME_DONE, FRAME_START};
use super::frames::END;
use super::published::{Published, Turns};
use super::read_lines::begins_line;
use super::reader::{Partial, Place, Reader, Step};
use crate::sessions::stream::{EventId, FrameStream};
use crate::store::Turn;

/// Reconnect delay of an EventSource: about the time of a restart of ashd. Not for messages, which
/// no client sends again by itself.
const RETRY: &[u8] = b"retry: 1000\n\n";

/// Last bytes of a stream when the daemon stops.
pub(in crate::sessions) const GOING: &[u8] = b": ashd is stopping; reconnect with Last-Event-ID\n\n";

/// Ends the stream between two frames when the daemon stops. The turn continues in its sandbox, so
/// `done` would be wrong and a broken connection an error; the client reconnects with the last id.
/// Within a frame (a line sent in pieces) the stream just ends: a client drops an incomplete frame.
pub fn until(stopping: &CancellationToken, frames: FrameStream) -> FrameStream {
    let (stop, stopped) = (stopping.clone().cancelled_owned(), stopping.clone());
    let between = Arc::new(AtomicBool::new(true));
    let now_between = Arc::clone(&between);
    let frames = frames.inspect(move |chunk| {
        now_between.store(chunk.as_ref().is_ok_and(|bytes| bytes.ends_with(END)), Ordering::Relaxed);
    });
    let last = stream::once(async move {
        let told = stopped.is_cancelled() && between.load(Ordering::Relaxed);
        told.then(|| Ok(Bytes::from_static(GOING)))
    });
    Box::pin(frames.take_until(stop).chain(last.filter_map(ready)))
}

/// Why a client cannot join at its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReaderError {
    /// 400: the event id is not in this session's stream.
    #[error("event id {id} is not in this session's stream: {why}")]
    NotAPlace { id: EventId, why: String },
    /// 503: the database or the file could not be read.
    #[error("the stream cannot be read now: {0}")]
    Unavailable(String),
}

/// The frames after `from` (`None`: from now on; [`EventId::BEGINNING`]: all of them), turn after
/// turn, then live, until the session is closed. Without `partial`, only the turn of `from` has
/// partial messages, if it was sent with them. Frames and ids equal those of the turns' own
/// streams; lines between turns are in none of them.
pub async fn session_stream(
    stdout: PathBuf,
    session: Uuid,
    turns: impl Turns,
    from: Option<EventId>,
    mut published: watch::Receiver<Published>,
    partial: Option<bool>,
) -> Result<FrameStream, ReaderError> {
    // Clients reconnect as soon as a restarted daemon listens.
    let loaded = published.wait_for(|p| !p.loading).await.map(drop);
    loaded.map_err(|_| ReaderError::Unavailable("the session cannot be read from the database".to_owned()))?;
    let now = published.borrow_and_update().clone();
    let mut as_sent = Partial::Never;
    let step = match from {
        None => from_now(&now),
        Some(id) if id.turn == 0 => Step::NextTurn(1),
        Some(id) => {
            let turn = turn_of(id, &now, session, &turns).await?;
            if turn.partial {
                as_sent = Partial::In(turn.number);
            }
            after(id, &turn, &now, &stdout)?
        }
    };
    let partial = partial.map_or(as_sent, Partial::from);
    let frames = Reader::new(stdout, session, turns, published, partial, step, true).into_stream();
    Ok(Box::pin(stream::once(ready(Ok(Bytes::from_static(RETRY)))).chain(frames)))
}

fn from_now(now: &Published) -> Step {
    match &now.turn {
        None => Step::NextTurn(1),
        Some(turn) if turn.end.is_some() => Step::NextTurn(turn.number + 1),
        Some(turn) => Step::Lines(Place {
            number: turn.number,
            start: turn.start,
            offset: now.watermark.max(turn.start),
            skip: 0,
        }),
    }
}

async fn turn_of(id: EventId, now: &Published, session: Uuid, turns: &impl Turns) -> Result<Turn, ReaderError> {
    let turn = match &now.turn {
        Some(turn) if turn.number == id.turn => Some(turn.clone()),
        Some(turn) if turn.number > id.turn => turns.turn(session, id.turn).await.map_err(ReaderError::Unavailable)?,
        _ => None,
    };
    turn.ok_or_else(|| ReaderError::NotAPlace { id, why: format!("there is no turn {}", id.turn) })
}

fn after(id: EventId, turn: &Turn, now: &Published, stdout: &Path) -> Result<Step, ReaderError> {
    let no = |why: String| ReaderError::NotAPlace { id, why };
    let place = Place { number: turn.number, start: turn.start, offset: id.offset, skip: id.frame };
    if id.offset < turn.start && id.frame == FRAME_START {
        // The client has the turn's `session_start`, whose id is where the turn was first recorded
        // to begin.
        return Ok(Step::Lines(Place { offset: turn.start, skip: 0, ..place }));
    }
    if id.offset < turn.start {
        return Err(no(format!("turn {} begins at {}", turn.number, turn.start)));
    }
    match turn.end {
        Some(end) if id.offset > end => return Err(no(format!("turn {} ends at {end}", turn.number))),
        Some(end) if id.offset == end && id.frame >= FRAME_DONE => return Ok(Step::NextTurn(turn.number + 1)),
        _ => {}
    }
    // A restarted daemon may not have read as far as the client; the reader then waits. The bytes
    // exist, so a position within a line is refused at once.
    if id.offset > turn.start && id.offset >= now.floor {
        let begins = File::open(stdout).and_then(|file| begins_line(&file, id.offset));
        if !begins.map_err(|e| ReaderError::Unavailable(e.to_string()))? {
            return Err(no(format!("no line begins at {}", id.offset)));
        }
    }
    // session_start is number 0 of the first line; nothing of that line itself was sent.
    debug_assert_eq!(FRAME_START, 0, "skip 0 leaves nothing of a line out");
    Ok(Step::Lines(place))
}
