//! What the driver publishes to the readers of its session, through a `tokio::sync::watch`.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use uuid::Uuid;

use crate::store::{Store, Turn};

/// Progress of a session. The driver is the only writer; readers see the newest value only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The session's task has just begun: the other fields are not read from the database yet.
    pub loading: bool,
    /// Bytes of the stdout file that are whole lines and that the driver has read. Only grows. It
    /// may be ahead of the database, but never past the end of a turn whose `end` is not published.
    pub watermark: u64,
    /// Bytes at the file's beginning that were given back to the file system; always the start of a
    /// line. Readers report the skipped part with a `gap` event. Published before the bytes are
    /// given back.
    pub floor: u64,
    /// The newest turn. Its `end` is published only after its transaction is on the disk: after
    /// `done`, the history has the whole turn, also after a power cut.
    pub turn: Option<Turn>,
    /// Events of the session for current listeners; the timeline stores them.
    pub notices: Notices,
    /// Set when nothing more will come (the session has ended): the reason, as text for the client.
    pub closed: Option<String>,
}

/// The newest causes (a process killed, a limit reached), as data of their `lifecycle` events.
/// Bounded: a slow reader finds older ones in the timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Total number so far.
    pub count: u64,
    newest: Arc<VecDeque<Arc<str>>>,
}

impl Notices {
    const KEPT: usize = 16;

    pub fn push(&mut self, data: &str) {
        let newest = Arc::make_mut(&mut self.newest);
        if newest.len() == Self::KEPT {
            newest.pop_front();
        }
        newest.push_back(data.into());
        self.count += 1;
    }

    /// Those after the first `seen`, oldest first.
    pub fn after(&self, seen: u64) -> impl Iterator<Item = &str> {
        let wanted = usize::try_from(self.count.saturating_sub(seen)).unwrap_or(usize::MAX).min(self.newest.len());
        self.newest.iter().skip(self.newest.len() - wanted).map(AsRef::as_ref)
    }
}

/// Looks up turns that are no longer the newest.
pub trait Turns: Clone + Send + Sync + 'static {
    /// The turn with this number, or why it cannot be read now.
    fn turn(&self, session: Uuid, number: i64) -> impl Future<Output = Result<Option<Turn>, String>> + Send;
}

impl Turns for Store {
    async fn turn(&self, session: Uuid, number: i64) -> Result<Option<Turn>, String> {
        Store::turn(self, session, number).await.map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_the_newest_and_each_once() {
        let mut notices = Notices::default();
        for n in 0..40 {
            notices.push(&n.to_string());
        }
        assert_eq!(notices.after(38).collect::<Vec<_>>(), ["38", "39"]);
        assert_eq!((notices.after(40).count(), notices.after(0).count()), (0, 16));
    }
}
