//! The session's ledger: writes what was read to the database, in order and beside the reading.
//! Only those wait who must.
//!
//! ```text
//!   note()   --> [ queue of commits ] --landed()--> database --> disk --> published turn
//!                                                                         (its end, only now)
//!   commit() --  waits for the queue, then for its own -----> disk --> answer to the client
//! ```
//!
//! claude's output during a turn is passed on before it is on the disk. The end of a turn (`done`)
//! and a change of state wait for the disk, which then has everything before them too.
//!
//! [`Ledger::has_room`] bounds the queue: while the database is slow or the disk full, the task
//! stops reading stdout, and the file is the buffer.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, pending};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::sessions::stream::published::Published;
use crate::sessions::stream::trim;
use crate::store::{Commit, Committed, OnDisk, Session, Store, StoreError, Turn, Usage};
use ash_observe::events::{self, event};

/// Bytes in memory of messages and events that wait for the database. Above it nothing more is
/// read.
const ROOM: usize = 8 << 20;
/// Rows after which a commit takes no more changes: the writer serves all sessions in turn.
const ROWS: usize = 1024;
/// Time to wait for more output before a commit. The last words and the `result` come within a few
/// milliseconds: one commit for both is faster than two.
const LINGER: Duration = Duration::from_millis(10);
/// Delay before a failed commit is retried (full disk, lock).
const RETRY: Duration = Duration::from_millis(500);

/// Longest time a request waits for earlier changes to be on the disk.
const PATIENCE: Duration = Duration::from_secs(15);

type Landing = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

pub struct Ledger {
    store: Store,
    blank: Commit,
    published: watch::Sender<Published>,
    /// Bytes of stdout that were processed.
    seen: u64,
    /// The front one is in flight when `landing` is set.
    queue: VecDeque<Commit>,
    bytes: usize,
    /// When the oldest of the queue was noted.
    noted: Instant,
    landing: Option<Landing>,
    failing: bool,
    /// Turns that are published when the running one is over.
    behind: Vec<Turn>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("queued", &self.queue.len()).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Ledger {
    pub fn new(store: Store, session: &Session, published: watch::Sender<Published>) -> Self {
        Self {
            store,
            blank: Commit::of(session),
            published,
            seen: 0,
            queue: VecDeque::new(),
            bytes: 0,
            noted: Instant::now(),
            landing: None,
            failing: false,
            behind: Vec::new(),
        }
    }

    /// Gives the published state to a successor. Drops what is still queued.
    pub fn into_published(self) -> watch::Sender<Published> {
        self.published
    }

    /// An empty change of this session.
    pub fn blank(&self) -> Commit {
        self.blank.clone()
    }

    pub fn has_room(&self) -> bool {
        self.bytes < ROOM
    }

    pub fn is_settled(&self) -> bool {
        self.queue.is_empty()
    }

    /// Readers may go as far as this byte, but not past the end of a turn that is not published
    /// yet.
    pub fn saw(&mut self, watermark: u64) {
        self.seen = self.seen.max(watermark);
        let end = self.queue.iter().find_map(|change| change.turn.as_ref()?.end);
        let to = end.map_or(self.seen, |end| end.min(self.seen));
        self.published.send_if_modified(|p| {
            let grows = p.watermark < to;
            p.watermark = p.watermark.max(to);
            grows
        });
    }

    /// Sends an event of the session to current listeners.
    pub fn tell(&self, data: &str) {
        self.published.send_modify(|p| p.notices.push(data));
    }

    /// Readers find nothing below this byte any more.
    pub fn floor(&self, floor: u64) {
        self.published.send_modify(|p| p.floor = p.floor.max(floor));
    }

    /// Gives back what was read long ago.
    pub fn trim(&self, stdout: &Path) {
        if let Err(e) = trim::trim(stdout, &self.published, trim::WINDOW_BYTES) {
            tracing::warn!(ASH_SESSION = %self.blank.session, "cannot give old output back to the disk: {e}");
        }
    }

    /// Whether the session's stream has readers (one receiver is the registry's).
    pub fn has_readers(&self) -> bool {
        self.published.receiver_count() > 1
    }

    /// Publishes a turn whose row is in the database.
    ///
    /// An unasked turn that precedes the running one in the output waits until that is over: the
    /// newest turn is published when all before it are over.
    pub fn publish(&mut self, turn: Turn) {
        let now = self.published.borrow().turn.clone();
        if now.is_some_and(|runs| runs.end.is_none() && runs.number < turn.number) {
            self.behind.retain(|other| other.number != turn.number);
            return self.behind.push(turn);
        }
        let over = turn.end.is_some();
        self.show(turn);
        if over {
            std::mem::take(&mut self.behind).into_iter().for_each(|turn| self.show(turn));
        }
    }

    fn show(&self, turn: Turn) {
        self.published.send_modify(|p| {
            // An older turn never hides a newer one.
            if p.turn.as_ref().is_none_or(|newest| newest.number <= turn.number) {
                p.turn = Some(turn);
            }
        });
    }

    /// The published state is complete from now on.
    pub fn loaded(&self) {
        self.published.send_modify(|p| p.loading = false);
    }

    /// Nothing comes any more; `None` reverts it.
    pub fn close(&self, why: Option<String>) {
        self.published.send_modify(|p| p.closed = why);
    }

    /// Queues a change, in order.
    pub fn note(&mut self, change: Commit) {
        self.bytes += weight(&change);
        if self.queue.is_empty() {
            self.noted = Instant::now();
        }
        let flying = usize::from(self.landing.is_some());
        let free = self.queue.len() > flying;
        match self.queue.back_mut() {
            Some(last) if free && fits(last, &change) => merge(last, change),
            _ => self.queue.push_back(change),
        }
    }

    /// Resolves when one more commit succeeded or failed; pends while there is nothing to write.
    /// Cancel safe.
    pub async fn landed(&mut self) {
        if self.landing.is_none() && !self.queue.iter().any(is_awaited) {
            tokio::time::sleep_until(self.noted + LINGER).await;
        }
        let result = match self.flight() {
            Some(landing) => landing.as_mut().await,
            None => return pending().await,
        };
        self.landing = None;
        match result {
            Ok(()) => self.front_is_durable(),
            Err(e) => {
                self.complain(&e);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Writes everything queued, then this; returns when it is on the disk. On an error this change
    /// is not made.
    pub async fn commit(&mut self, change: Commit) -> Result<Committed, StoreError> {
        self.settle().await?;
        let turn = change.turn.clone();
        let committed = self.store.commit(change).await?;
        if let Some(turn) = turn {
            self.publish(turn);
        }
        Ok(committed)
    }

    /// The same, but returns when the change survives the end of ashd; the disk has it a little
    /// later.
    pub async fn commit_early(&mut self, change: Commit) -> Result<OnDisk, StoreError> {
        self.settle().await?;
        let turn = change.turn.clone();
        let (_, on_disk) = self.store.commit_early(change, true).await?;
        if let Some(turn) = turn {
            self.publish(turn);
        }
        Ok(on_disk)
    }

    /// Drops queued changes: a full disk must not keep a session from its end. The output itself
    /// stays.
    pub fn give_up(&mut self) {
        self.landing = None;
        self.bytes = 0;
        for turn in std::mem::take(&mut self.queue).into_iter().filter_map(|change| change.turn) {
            self.publish(turn);
        }
    }

    /// Writes everything queued. While the disk does not confirm it, no new change is accepted.
    async fn settle(&mut self) -> Result<(), StoreError> {
        while let Some(landing) = self.flight() {
            let Ok(result) = tokio::time::timeout(PATIENCE, landing.as_mut()).await else {
                let why = format!("it did not confirm earlier changes within {} s", PATIENCE.as_secs());
                return Err(StoreError::NotOnDisk(why));
            };
            self.landing = None;
            match result {
                Ok(()) => self.front_is_durable(),
                Err(e) => {
                    self.complain(&e);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn flight(&mut self) -> Option<&mut Landing> {
        if self.landing.is_none() {
            let (store, next) = (self.store.clone(), self.queue.front()?.clone());
            self.landing = Some(Box::pin(async move {
                let told = is_awaited(&next);
                let (_, on_disk) = store.commit_early(next, told).await?;
                if told { on_disk.wait().await } else { Ok(()) }
            }));
        }
        self.landing.as_mut()
    }

    fn front_is_durable(&mut self) {
        self.failing = false;
        if let Some(done) = self.queue.pop_front() {
            self.bytes = self.bytes.saturating_sub(weight(&done));
            if let Some(turn) = done.turn {
                self.publish(turn);
                self.saw(self.seen);
            }
        }
    }

    fn complain(&mut self, error: &StoreError) {
        if !self.failing {
            self.failing = true;
            event!(&events::STORE_FAILED, ASH_SESSION = %self.blank.session,
                "cannot write to the database (retried every {} ms): {error}", RETRY.as_millis());
        }
    }
}

/// Whether a client waits until it is on the disk.
fn is_awaited(change: &Commit) -> bool {
    change.status.is_some() || change.turn.as_ref().is_some_and(|turn| turn.end.is_some())
}

/// Whether two changes fit into one commit, which holds one turn and one status.
fn fits(last: &Commit, change: &Commit) -> bool {
    let same_turn = match (&last.turn, &change.turn) {
        (Some(a), Some(b)) => a.number == b.number,
        _ => true,
    };
    // Rows of different turns need different commits.
    let same_rows = last.of_turn == change.of_turn || !has_rows(last) || !has_rows(change);
    same_turn && same_rows && last.status.is_none() && change.status.is_none() && !is_large(last)
}

/// Whether a change is a commit of its own.
pub(super) fn is_large(change: &Commit) -> bool {
    change.messages.len() + change.events.len() >= ROWS
}

fn has_rows(change: &Commit) -> bool {
    !change.messages.is_empty() || !change.events.is_empty() || change.usage.is_some()
}

fn merge(into: &mut Commit, change: Commit) {
    into.of_turn = if has_rows(into) { into.of_turn } else { change.of_turn };
    into.conversation = change.conversation.or(into.conversation);
    into.messages.extend(change.messages);
    into.events.extend(change.events);
    into.stdout_offset = change.stdout_offset.or(into.stdout_offset);
    into.turn = change.turn.or(into.turn.take());
    into.usage = match (into.usage.take(), change.usage) {
        (Some(a), Some(b)) => Some(sum(&a, &b)),
        (a, b) => a.or(b),
    };
    into.model = change.model.or(into.model.take());
    into.config = change.config.or(into.config.take());
    into.launch = change.launch.or(into.launch.take());
    into.limits = change.limits.or(into.limits);
    into.touch |= change.touch;
}

/// Sums the usage of several lines.
pub fn sum(a: &Usage, b: &Usage) -> Usage {
    Usage {
        input_tokens: a.input_tokens.saturating_add(b.input_tokens),
        output_tokens: a.output_tokens.saturating_add(b.output_tokens),
        cache_creation_tokens: a.cache_creation_tokens.saturating_add(b.cache_creation_tokens),
        cache_read_tokens: a.cache_read_tokens.saturating_add(b.cache_read_tokens),
        tool_calls: a.tool_calls.saturating_add(b.tool_calls),
        compute_ms: a.compute_ms.saturating_add(b.compute_ms),
        messages: a.messages.saturating_add(b.messages),
    }
}

/// Bytes of a change in memory, including those of the statement that writes it.
fn weight(change: &Commit) -> usize {
    /// Per row beside its text: an id, the session's, the tenant's, a word, and its part of the
    /// statement.
    const ROW: usize = 768;
    let texts = change.messages.iter().map(|(_, text)| ROW + text.len()).sum::<usize>();
    let events = change.events.iter().map(|(_, data)| ROW + data.len()).sum::<usize>();
    256 + texts + events
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
