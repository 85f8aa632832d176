//! The one task that writes. Whatever is queued when it is free becomes one transaction: one fsync for all of them.
//!
//! ```text
//!   idle --op--> batch = op + all queued (at most 256) --> BEGIN IMMEDIATE, apply each, COMMIT
//!                    | one of them fails                        |
//!                    v                                          v
//!            ROLLBACK, each in a transaction of its own     answer all --> fsync, when all of them are `soon`
//! ```
//!
//! A turn would wait twice for the disk, 1 to 4 ms each, and nobody is helped: a power cut ends its claude as well, whose own
//! notes of the conversation are not synced either. So what claude says is answered when it survives the end of ashd
//! (it is in the kernel's hands), and the disk follows 100 ms later; everything a client decides waits for the disk.
//!
//! A failure is rare, so the batch runs without savepoints and is repeated op by op when one fails: the others lose
//! nothing but a little time.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::fcntl::Flock;
use sqlx::SqliteConnection;
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::{Committed, StoreError, open};
use crate::model::TenantId;

/// Writes that wait for the writer; one more waits in its caller.
const QUEUE: usize = 1024;
/// Writes in one transaction.
const BATCH: usize = 256;
/// Sessions whose sequence numbers are kept in memory; when there are more, all are read again.
const COUNTERS: usize = 4096;

/// Pause before the disk is told of what was answered already: a sync that runs makes the next commit of the same turn
/// wait for the file system's journal (measured: 5 ms).
const SYNC_AFTER: Duration = Duration::from_millis(100);

/// A change of the database. `apply` may run twice (in a batch that failed, then by itself), each time on a database without
/// its effect.
pub(super) trait Write: Send + Sync + 'static {
    type Out: Send + 'static;
    fn apply(
        &self,
        conn: &mut SqliteConnection,
        counters: &mut Counters,
    ) -> impl Future<Output = Result<Self::Out, StoreError>> + Send;
    /// Whether it may be answered before it is on the disk.
    fn soon(&self) -> bool {
        false
    }
}

/// The newest sequence numbers of sessions, as this transaction sees them. Emptied by every rollback.
#[derive(Debug, Default)]
pub(super) struct Counters {
    of: HashMap<(Uuid, TenantId), Committed>,
}

impl Counters {
    pub fn get(&self, session: Uuid, tenant: &TenantId) -> Option<Committed> {
        self.of.get(&(session, tenant.clone())).cloned()
    }

    pub fn set(&mut self, session: Uuid, tenant: &TenantId, newest: Committed) {
        if self.of.len() >= COUNTERS {
            self.of.clear();
        }
        self.of.insert((session, tenant.clone()), newest);
    }
}

#[derive(Clone, Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Order>,
}

enum Order {
    Work(Box<dyn Work>),
    Close(oneshot::Sender<()>),
}

/// A [`Write`] whose result type is hidden, so that all kinds share one queue.
trait Work: Send {
    fn apply<'a>(
        &'a mut self,
        conn: &'a mut SqliteConnection,
        counters: &'a mut Counters,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    fn answer(self: Box<Self>, result: Result<(), StoreError>);
    fn soon(&self) -> bool;
}

struct Job<W: Write> {
    write: W,
    out: Option<W::Out>,
    reply: oneshot::Sender<Result<W::Out, StoreError>>,
}

impl<W: Write> Work for Job<W> {
    fn apply<'a>(
        &'a mut self,
        conn: &'a mut SqliteConnection,
        counters: &'a mut Counters,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.out = Some(self.write.apply(conn, counters).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, result: Result<(), StoreError>) {
        let Self { out, reply, .. } = *self;
        let answer = result.and_then(|()| out.ok_or(StoreError::Closed));
        // A caller that no longer listens has given up waiting, not the write.
        drop(reply.send(answer));
    }

    fn soon(&self) -> bool {
        self.write.soon()
    }
}

impl Writer {
    /// Starts the task. It holds the lock of the data directory until its last commit is done. `wal` is SQLite's
    /// write-ahead log, for the commits that the disk follows.
    pub fn start(conn: SqliteConnection, lock: Flock<std::fs::File>, wal: PathBuf) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(run(conn, inbox, lock, wal));
        Self { queue }
    }

    /// Queues a write and returns when it is durable (or refused, with nothing changed); a [`Write::soon`] one when it
    /// survives the end of this process.
    pub async fn write<W: Write>(&self, write: W) -> Result<W::Out, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { write, out: None, reply };
        self.queue.send(Order::Work(Box::new(job))).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Returns when everything queued before is committed and the connection is closed.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Order::Close(done)).await.is_ok() {
            // An error means that the task is gone already.
            drop(closed.await);
        }
    }
}

async fn run(mut conn: SqliteConnection, mut inbox: mpsc::Receiver<Order>, lock: Flock<std::fs::File>, wal: PathBuf) {
    let mut counters = Counters::default();
    let mut closing = None;
    let unsynced = Arc::new(Notify::new());
    let syncing = tokio::spawn(sync(wal, Arc::clone(&unsynced)));
    while closing.is_none() {
        let Some(first) = inbox.recv().await else { break };
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Work(work) => batch.push(work),
                Order::Close(done) => closing = Some(done),
            }
            next = if batch.len() < BATCH && closing.is_none() { inbox.try_recv().ok() } else { None };
        }
        if commit(&mut conn, &mut counters, batch).await {
            unsynced.notify_one();
        }
    }
    inbox.close();
    // Closing checkpoints, which syncs.
    syncing.abort();
    open::close(conn).await;
    drop(lock);
    if let Some(done) = closing {
        // Whoever asked may have stopped waiting.
        let _ = done.send(());
    }
}

/// Whether the disk is to be waited for afterwards.
async fn commit(conn: &mut SqliteConnection, counters: &mut Counters, mut batch: Vec<Box<dyn Work>>) -> bool {
    if batch.is_empty() {
        return false;
    }
    let soon = batch.iter().all(|work| work.soon());
    let together = transact(conn, counters, &mut batch).await;
    if together.is_ok() || batch.len() == 1 {
        let mut result = Some(together);
        for work in batch {
            work.answer(result.take().unwrap_or(Ok(())));
        }
        return soon;
    }
    for work in batch {
        let mut alone = [work];
        let result = transact(conn, counters, &mut alone).await;
        let [work] = alone;
        work.answer(result);
    }
    true
}

/// Brings to the disk what was answered before it was there. One call covers every commit before it.
async fn sync(wal: PathBuf, unsynced: Arc<Notify>) {
    loop {
        unsynced.notified().await;
        tokio::time::sleep(SYNC_AFTER).await;
        let path = wal.clone();
        let synced = tokio::task::spawn_blocking(move || std::fs::File::open(path)?.sync_data()).await;
        if let Err(error) = synced.unwrap_or_else(|gone| Err(std::io::Error::other(gone))) {
            tracing::error!(wal = %wal.display(), %error, "the newest messages are not on the disk yet");
        }
    }
}

/// One transaction: all of it or nothing.
///
/// BEGIN and ROLLBACK are plain statements and not sqlx's `Transaction`: on a full disk SQLite may roll back by itself, upon
/// which sqlx 0.9's own ROLLBACK fails, its count of open transactions stays at one, and no transaction starts ever again.
async fn transact(
    conn: &mut SqliteConnection,
    counters: &mut Counters,
    batch: &mut [Box<dyn Work>],
) -> Result<(), StoreError> {
    let result = async {
        // IMMEDIATE takes the write lock at once: a transaction that reads first and cannot write then would have to start over.
        // With NORMAL, COMMIT writes the log and does not sync it; see `sync`.
        let begin = match batch.iter().all(|work| work.soon()) {
            true => "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE",
            false => "PRAGMA synchronous = FULL; BEGIN IMMEDIATE",
        };
        sqlx::query(begin).execute(&mut *conn).await?;
        for work in batch.iter_mut() {
            work.apply(&mut *conn, counters).await?;
        }
        sqlx::query("COMMIT").execute(&mut *conn).await?;
        Ok(())
    }
    .await;
    if result.is_err() {
        counters.of.clear();
        // Fails only when there is nothing left to roll back.
        drop(sqlx::query("ROLLBACK").execute(conn).await);
    }
    result
}
