//! What the driver tells the readers of its session, through a `tokio::sync::watch`.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

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
    /// The newest turn. Its `end` is published only when the disk has the transaction that holds it: whoever sees `done`
    /// finds the whole turn in the history, also after a power cut.
    pub turn: Option<Turn>,
    /// What befell the session, told to whoever listens now; the timeline has it for good.
    pub notices: Notices,
    /// Set when nothing will come any more (the session has ended), with the reason in words for the client.
    pub closed: Option<String>,
}

/// The newest causes (a process killed, a limit reached), as the data of their `lifecycle` events. Bounded: a reader that is slow
/// by more than these finds them in the timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// How many there ever were.
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

    /// Those behind the first `seen`, oldest first.
    pub fn after(&self, seen: u64) -> impl Iterator<Item = &str> {
        let wanted = usize::try_from(self.count.saturating_sub(seen)).unwrap_or(usize::MAX).min(self.newest.len());
        self.newest.iter().skip(self.newest.len() - wanted).map(AsRef::as_ref)
    }
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
