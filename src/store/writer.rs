//! The only writing task. Everything queued when it is free becomes one transaction.
//!
//! ```text
//!   idle --op--> batch = op + all queued (at most 256) --> BEGIN IMMEDIATE, apply each, COMMIT
//!                    | one of them fails                        |
//!                    v                                          v
//!            ROLLBACK, each in its own transaction          numbered, see [`super::durable`]
//!                                                           --> on the disk: callers answered
//! ```
//!
//! A failure is rare, so a batch has no savepoints: when one operation fails, all are repeated one
//! by one.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use nix::fcntl::Flock;
use sqlx::SqliteConnection;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::durable::{self, Commits, OnDisk, Progress, SyncLog};
use super::room::Room;
use super::{Committed, StoreError, open};
use ash_model::TenantId;
use ash_observe::tasks;

/// Queued writes; further ones wait in their callers.
const QUEUE: usize = 1024;
/// Maximum writes per transaction.
const BATCH: usize = 256;
/// Sessions whose sequence numbers are cached; above this number, the cache is cleared.
const COUNTERS: usize = 4096;

/// A change of the database. `apply` may run twice (in a failed batch, then alone), each time on a
/// database without its effect.
pub(super) trait Write: Send + Sync + 'static {
    type Out: Send + 'static;
    fn apply(
        &self,
        conn: &mut SqliteConnection,
        counters: &mut Counters,
    ) -> impl Future<Output = Result<Self::Out, StoreError>> + Send;
    /// Whether it ends or removes something, and is therefore written on a full disk too.
    fn frees(&self) -> bool {
        false
    }
}

/// The newest sequence numbers of sessions in this transaction. Cleared by every rollback.
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

    pub fn forget(&mut self, session: Uuid, tenant: &TenantId) {
        self.of.remove(&(session, tenant.clone()));
    }
}

#[derive(Clone, Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Order>,
    commits: Arc<Commits>,
    progress: watch::Receiver<Progress>,
}

enum Order {
    Work(Box<dyn Work>),
    /// Moves the log into the database; returns whether that succeeded.
    MoveLog(oneshot::Sender<bool>),
    Close(oneshot::Sender<()>),
}

/// A [`Write`] without its result type, so that all kinds share one queue.
trait Work: Send {
    fn apply<'a>(
        &'a mut self,
        conn: &'a mut SqliteConnection,
        counters: &'a mut Counters,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Answers with the number of its commit.
    fn answer(self: Box<Self>, result: Result<u64, StoreError>);
    /// Whether a caller waits for the disk.
    fn at_once(&self) -> bool;
    fn frees(&self) -> bool;
}

struct Job<W: Write> {
    write: W,
    out: Option<W::Out>,
    at_once: bool,
    reply: oneshot::Sender<Result<(W::Out, u64), StoreError>>,
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

    fn answer(self: Box<Self>, result: Result<u64, StoreError>) {
        let Self { out, reply, .. } = *self;
        let answer = result.and_then(|number| Ok((out.ok_or(StoreError::Closed)?, number)));
        // A caller that is gone stopped waiting; the write stays.
        drop(reply.send(answer));
    }

    fn at_once(&self) -> bool {
        self.at_once
    }

    fn frees(&self) -> bool {
        self.write.frees()
    }
}

impl Writer {
    /// Starts the task. It holds the lock of the data directory until its last commit. `sync` syncs
    /// SQLite's write-ahead log.
    pub fn start(conn: SqliteConnection, lock: Flock<std::fs::File>, sync: SyncLog, room: Room) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let (commits, (sender, progress)) = (Arc::new(Commits::default()), watch::channel(Progress::default()));
        let progressing = Arc::new(sender);
        let mover = queue.downgrade();
        let syncer = tasks::spawn_essential("store-sync", {
            let (commits, progressing) = (Arc::clone(&commits), Arc::clone(&progressing));
            async move { durable::keep(commits, progressing, sync, || move_log(mover.clone())).await }
        });
        tasks::spawn_essential("store-writer", run(conn, inbox, lock, Arc::clone(&commits), progressing, syncer, room));
        Self { queue, commits, progress }
    }

    /// Queues a write. Returns when it is on the disk, or refused without a change.
    /// [`StoreError::NotOnDisk`]: the disk took the change without confirming it.
    pub async fn write<W: Write>(&self, write: W) -> Result<W::Out, StoreError> {
        let (out, on_disk) = self.commit(write, true).await?;
        on_disk.wait_once().await?;
        Ok(out)
    }

    /// Queues a write. Returns when it survives the end of this process. `at_once`: a caller will
    /// wait for the disk.
    pub async fn commit<W: Write>(&self, write: W, at_once: bool) -> Result<(W::Out, OnDisk), StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { write, out: None, at_once, reply };
        self.queue.send(Order::Work(Box::new(job))).await.map_err(|_| StoreError::Closed)?;
        let (out, number) = answer.await.map_err(|_| StoreError::Closed)??;
        Ok((out, OnDisk { number, commits: Arc::clone(&self.commits), progress: self.progress.clone() }))
    }

    /// Returns when everything queued is committed and on the disk, and the connection is closed.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Order::Close(done)).await.is_ok() {
            // On an error the task has already ended.
            drop(closed.await);
        }
    }
}

/// Asks the writer, which alone may do it.
async fn move_log(writer: mpsc::WeakSender<Order>) -> bool {
    let Some(queue) = writer.upgrade() else { return false };
    let (reply, answer) = oneshot::channel();
    queue.send(Order::MoveLog(reply)).await.is_ok() && answer.await.unwrap_or(false)
}

async fn run(
    mut conn: SqliteConnection,
    mut inbox: mpsc::Receiver<Order>,
    lock: Flock<std::fs::File>,
    commits: Arc<Commits>,
    progress: Arc<watch::Sender<Progress>>,
    syncer: tokio::task::JoinHandle<()>,
    room: Room,
) {
    let mut counters = Counters::default();
    let mut closing = None;
    while closing.is_none() {
        let Some(first) = inbox.recv().await else { break };
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Work(work) => batch.push(work),
                Order::MoveLog(reply) => drop(reply.send(open::move_log(&mut conn).await)),
                Order::Close(done) => closing = Some(done),
            }
            next = if batch.len() < BATCH && closing.is_none() { inbox.try_recv().ok() } else { None };
        }
        if room.is_short() {
            let (frees, refused): (Vec<_>, Vec<_>) = batch.into_iter().partition(|work| work.frees());
            refused.into_iter().for_each(|work| work.answer(Err(StoreError::Full)));
            batch = frees;
        }
        commit(&mut conn, &mut counters, batch, &commits).await;
    }
    inbox.close();
    syncer.abort();
    // Closing moves the log into the database and syncs it.
    if open::close(conn).await {
        progress.send_modify(|now| now.done = commits.newest());
    }
    drop(lock);
    if let Some(done) = closing {
        // The caller may have stopped waiting.
        let _ = done.send(());
    }
}

async fn commit(
    conn: &mut SqliteConnection,
    counters: &mut Counters,
    mut batch: Vec<Box<dyn Work>>,
    commits: &Commits,
) {
    if batch.is_empty() {
        return;
    }
    let together = transact(conn, counters, &mut batch).await;
    if together.is_err() && batch.len() > 1 {
        for work in batch {
            let mut alone = [work];
            let result = transact(conn, counters, &mut alone).await;
            let [work] = alone;
            let at_once = work.at_once();
            work.answer(result.map(|()| commits.committed(at_once)));
        }
        return;
    }
    match together {
        Ok(()) => {
            let number = commits.committed(batch.iter().any(|work| work.at_once()));
            batch.into_iter().for_each(|work| work.answer(Ok(number)));
        }
        // A batch of one.
        Err(error) => drop(batch.pop().map(|work| work.answer(Err(error)))),
    }
}

/// One transaction: all of it or nothing.
///
/// BEGIN and ROLLBACK are plain statements, not sqlx's `Transaction`: on a full disk SQLite may
/// roll back by itself. Then sqlx 0.9's ROLLBACK fails, its count of open transactions stays at
/// one, and no transaction can start again.
async fn transact(
    conn: &mut SqliteConnection,
    counters: &mut Counters,
    batch: &mut [Box<dyn Work>],
) -> Result<(), StoreError> {
    let result = async {
        // IMMEDIATE takes the write lock first: otherwise a transaction that reads first would have
        // to start over when it cannot write.
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *conn).await?;
        for work in batch.iter_mut() {
            work.apply(&mut *conn, counters).await?;
        }
        sqlx::query("COMMIT").execute(&mut *conn).await?;
        Ok(())
    }
    .await;
    if result.is_err() {
        counters.of.clear();
        // Fails only when there is nothing to roll back.
        drop(sqlx::query("ROLLBACK").execute(conn).await);
    }
    result
}
