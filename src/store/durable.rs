//! Tracks when a commit is on the disk. SQLite runs with `synchronous = NORMAL`: it writes its log
//! without waiting for the disk (except when the log is moved into the database). One task waits
//! for the disk on behalf of all commits.
//!
//! ```text
//!   writer: COMMIT n ----committed(n)----> [ syncer ] --fdatasync of the log--> 1..n on disk
//!                                            | a caller waits: immediately; else 100 ms later
//!                                            | on failure: moves the log into the database, which
//!                                            |             syncs it
//! ```
//!
//! The writer continues with the next transaction while the disk works on the last one. What
//! follows from a commit (a message handed to claude) need not wait for the disk; only answers to
//! clients do. fdatasync takes 1.3 ms, SQLite's own fsync 3.2 ms (ext4, idle machine).
//!
//! After a failed sync the kernel may have dropped the pages and report the next one as successful
//! (<https://wiki.postgresql.org/wiki/Fsync_Errors>), so the log is not trusted until it was moved.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::StoreError;

/// Delay of a sync that no caller waits for: a running sync makes the next commit of the same turn
/// wait for the file system's journal (measured: 5 ms).
const SYNC_AFTER: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_millis(100) };
/// Retry interval while the disk fails.
const RETRY: Duration = Duration::from_millis(500);

/// Syncs the log. Blocks.
pub(super) type SyncLog = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// State from the writer for the syncer. Commits are numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Commits {
    newest: AtomicU64,
    /// The newest commit that a caller waits for.
    wanted: AtomicU64,
    wake: Notify,
}

impl Commits {
    /// Adds a commit and returns its number.
    pub fn committed(&self, at_once: bool) -> u64 {
        let number = self.newest.fetch_add(1, Ordering::SeqCst) + 1;
        if at_once {
            self.wanted.fetch_max(number, Ordering::SeqCst);
        }
        self.wake.notify_one();
        number
    }

    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    fn want(&self, number: u64) {
        if self.wanted.fetch_max(number, Ordering::SeqCst) < number {
            self.wake.notify_one();
        }
    }
}

/// What is on the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// All commits up to this one are on the disk.
    pub done: u64,
    /// Newest commit with a failed sync, and the reason.
    failed: u64,
    why: String,
}

/// A commit that survives the end of this process but is not yet on the disk.
#[derive(Debug)]
pub struct OnDisk {
    pub(super) number: u64,
    pub(super) commits: Arc<Commits>,
    pub(super) progress: watch::Receiver<Progress>,
}

impl OnDisk {
    /// Returns when a power failure can no longer undo it, however long the disk takes.
    ///
    /// # Errors
    /// [`StoreError::Closed`]: the store was closed first.
    pub async fn wait(mut self) -> Result<(), StoreError> {
        self.commits.want(self.number);
        let number = self.number;
        self.progress.wait_for(|now| now.done >= number).await.map_err(|_| StoreError::Closed)?;
        Ok(())
    }

    /// The same, but a failing disk is an immediate error. The commit stays.
    ///
    /// # Errors
    /// [`StoreError::NotOnDisk`], and as for [`OnDisk::wait`].
    pub async fn wait_once(mut self) -> Result<(), StoreError> {
        self.commits.want(self.number);
        let number = self.number;
        let ready = self.progress.wait_for(|now| now.done >= number || now.failed >= number).await;
        let now = ready.map_err(|_| StoreError::Closed)?;
        if now.done >= number { Ok(()) } else { Err(StoreError::NotOnDisk(now.why.clone())) }
    }
}

/// The thread that waits for the disk. A separate thread, because file operations of requests can
/// occupy all threads of the runtime.
struct SyncThread(std::sync::mpsc::Sender<oneshot::Sender<io::Result<()>>>);

impl SyncThread {
    /// The thread ends when the value is dropped.
    fn start(sync: SyncLog) -> Self {
        let (asks, asked) = std::sync::mpsc::channel::<oneshot::Sender<io::Result<()>>>();
        let work = move || asked.iter().for_each(|reply| drop(reply.send(sync())));
        if let Err(error) = std::thread::Builder::new().name("ashd-sync".to_owned()).stack_size(128 << 10).spawn(work) {
            tracing::error!(%error, "the thread that syncs the database cannot be started");
        }
        Self(asks)
    }

    async fn sync(&self) -> io::Result<()> {
        let (reply, result) = oneshot::channel();
        let gone = || io::Error::other("the thread that syncs the database is gone");
        self.0.send(reply).map_err(|_| gone())?;
        result.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// The syncer. `move_log` moves the log into the database and returns whether that succeeded.
pub(super) async fn keep<F>(
    commits: Arc<Commits>,
    progress: Arc<watch::Sender<Progress>>,
    sync: SyncLog,
    move_log: impl Fn() -> F,
) where
    F: Future<Output = bool>,
{
    let thread = SyncThread::start(sync);
    let mut done = 0;
    let mut since: Option<Instant> = None;
    loop {
        if commits.newest() <= done {
            since = None;
            commits.wake.notified().await;
            continue;
        }
        let due = *since.get_or_insert_with(Instant::now) + SYNC_AFTER;
        if commits.wanted.load(Ordering::SeqCst) <= done
            && tokio::time::timeout_at(due, commits.wake.notified()).await.is_ok()
        {
            continue;
        }
        let target = commits.newest();
        if let Err(error) = thread.sync().await {
            tracing::error!(ASH_EVENT = "store-failed", %error, "cannot write the newest changes to the disk; retrying");
            progress.send_modify(|now| (now.failed, now.why) = (target, error.to_string()));
            while !move_log().await {
                tokio::time::sleep(RETRY).await;
            }
            tracing::info!(ASH_EVENT = "store-recovered", "all changes are on the disk again");
        }
        (done, since) = (target, None);
        progress.send_modify(|now| now.done = target);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Rig {
        commits: Arc<Commits>,
        progress: watch::Receiver<Progress>,
        syncs: Arc<AtomicUsize>,
        moves: Arc<AtomicUsize>,
        task: tokio::task::JoinHandle<()>,
    }

    /// Syncs fail `failures` times, and moving the log fails once.
    fn rig(failures: usize) -> Rig {
        let (commits, (sender, progress)) = (Arc::new(Commits::default()), watch::channel(Progress::default()));
        let (syncs, moves) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, moved) = (Arc::clone(&syncs), Arc::clone(&moves));
        let sync: SyncLog = Arc::new(move || match counted.fetch_add(1, Ordering::SeqCst) < failures {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        });
        let move_log = move || {
            let moved = Arc::clone(&moved);
            async move { moved.fetch_add(1, Ordering::SeqCst) > 0 }
        };
        let task = tokio::spawn(keep(Arc::clone(&commits), Arc::new(sender), sync, move_log));
        Rig { commits, progress, syncs, moves, task }
    }

    impl Rig {
        fn on_disk(&self, number: u64) -> OnDisk {
            OnDisk { number, commits: Arc::clone(&self.commits), progress: self.progress.clone() }
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_follows_later_and_one_sync_is_for_all() {
        let rig = rig(0);
        let start = Instant::now();
        for _ in 0..10 {
            rig.commits.committed(false);
        }
        tokio::time::sleep(SYNC_AFTER / 3).await;
        assert_eq!(rig.syncs.load(Ordering::SeqCst), 0, "no caller waits");
        rig.progress.clone().wait_for(|now| now.done == 10).await.unwrap();
        assert!(start.elapsed() >= SYNC_AFTER);
        assert_eq!(rig.syncs.load(Ordering::SeqCst), 1);
        let start = Instant::now();
        let number = rig.commits.committed(false);
        rig.on_disk(number).wait().await.unwrap();
        assert!(start.elapsed() < SYNC_AFTER, "a caller waits: {:?}", start.elapsed());
        rig.task.abort();
    }

    #[tokio::test]
    async fn a_failed_sync_is_told_at_once_and_only_a_moved_log_makes_it_good() {
        let rig = rig(1);
        let number = rig.commits.committed(true);
        let told = rig.on_disk(number).wait_once().await;
        assert!(matches!(&told, Err(StoreError::NotOnDisk(why)) if why.contains("os error 5")), "{told:?}");
        rig.on_disk(number).wait().await.unwrap();
        assert_eq!((rig.syncs.load(Ordering::SeqCst), rig.moves.load(Ordering::SeqCst)), (1, 2));
        let number = rig.commits.committed(true);
        rig.on_disk(number).wait_once().await.unwrap();
        rig.task.abort();
        assert!(rig.task.await.unwrap_err().is_cancelled());
        let never = OnDisk { number: 99, commits: rig.commits, progress: rig.progress };
        assert!(matches!(never.wait().await, Err(StoreError::Closed)));
    }
}
