//! What the driver tells the readers of its session, through a `tokio::sync::watch`.

use std::future::Future;

use uuid::Uuid;

use crate::store::{Store, Turn};

/// How far a session is. The driver is the only writer; readers see the newest value and nothing in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The session's task has only just begun: what follows is not read from the database yet.
    pub loading: bool,
    /// Bytes of the stdout file that are whole lines and that the driver has seen. It only grows. It may run ahead of
    /// the database, but never past the end of a turn whose `end` is not published yet.
    pub watermark: u64,
    /// Bytes at the file's beginning that were given back to the file system; always the start of a line. Readers say
    /// with a `gap` event that they skip them. Published before the bytes are given back.
    pub floor: u64,
    /// The newest turn. Its `end` is published only after the transaction that holds it: whoever sees `done` finds
    /// the whole turn in the history.
    pub turn: Option<Turn>,
    /// Set when nothing will come any more (the session has ended), with the reason in words for the client.
    pub closed: Option<String>,
}

/// Where readers look up turns that are no longer the newest.
pub trait Turns: Clone + Send + Sync + 'static {
    /// The turn with this number, or why that cannot be told now.
    fn turn(&self, session: Uuid, number: i64) -> impl Future<Output = Result<Option<Turn>, String>> + Send;
}

impl Turns for Store {
    async fn turn(&self, session: Uuid, number: i64) -> Result<Option<Turn>, String> {
        Store::turn(self, session, number).await.map_err(|e| e.to_string())
    }
}
