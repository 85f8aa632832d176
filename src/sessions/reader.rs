//! Readers of a session's stream.

use std::path::PathBuf;

use tokio::sync::watch;
use uuid::Uuid;

use super::api::{EventId, FrameStream};
pub use super::published::{Published, Turns};
use crate::store::Turn;

/// The event id is no place in this session's stream. The client is told with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReaderError {
    #[error("event id {id}: {why}")]
    NotAPlace { id: EventId, why: String },
    /// The database could not be asked. 503.
    #[error("{0}")]
    Unavailable(String),
}

/// The frames of one turn, from its start until `done`, live.
pub fn turn_stream(
    _stdout: PathBuf,
    _session: Uuid,
    _turns: impl Turns,
    _turn: Turn,
    _published: watch::Receiver<Published>,
    _partial: bool,
) -> FrameStream {
    unimplemented!()
}

/// The frames after `from` (`None`: from now on), turn after turn, then live, until the session is closed.
pub async fn session_stream(
    _stdout: PathBuf,
    _session: Uuid,
    _turns: impl Turns,
    _from: Option<EventId>,
    _published: watch::Receiver<Published>,
    _partial: bool,
) -> Result<FrameStream, ReaderError> {
    unimplemented!()
}
