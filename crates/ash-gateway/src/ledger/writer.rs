//! Appends to the ledger: one thread writes, another one syncs to the disk.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Charge, Entry, FULL, LedgerError, MAX_UNREAD, Payer};
use ash_model::now_ms;
use ash_observe::events::{self, event};
use ash_observe::tasks;
use ash_protocol::gateway::Tokens;

/// Maximum delay of a sync; a power failure loses no more.
const SYNC_AFTER: Duration = Duration::from_millis(100);
/// Retry interval while the disk fails.
const RETRY: Duration = Duration::from_millis(500);
/// Maximum charges per write.
const BATCH: usize = 256;

/// The ledger of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(super) directory: Arc<PathBuf>,
    jobs: Sender<Job>,
    pub(super) state: Arc<State>,
}

/// State shared by the threads.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The last write failed; its charges are kept in memory.
    failing: AtomicBool,
    /// Bytes in the directory that ashd has not acknowledged.
    pub unread: AtomicU64,
    /// The current file, and the number of its newest entry.
    pub newest: Mutex<(Uuid, u64)>,
}

struct Job {
    charge: Charge,
    /// Sent when the entry survives kill -9, or cannot be written now.
    written: oneshot::Sender<()>,
}

impl Ledger {
    /// Creates a ledger in the existing `directory`, and starts its threads. They end with the last
    /// clone.
    ///
    /// # Errors
    /// What cannot be created.
    pub fn open(directory: &Path) -> Result<Self, LedgerError> {
        super::collect::tidy(directory)?;
        let state = Arc::new(State::default());
        state.unread.store(super::collect::size(directory)?, Ordering::Relaxed);
        let file = Appended::begin(directory)?;
        *lock(&state.newest) = (file.id, 0);
        let (jobs, inbox) = channel();
        let writer = Writer {
            directory: directory.to_owned(),
            file,
            state: Arc::clone(&state),
            owed: HashMap::new(),
            failed: false,
        };
        let failed = |source| LedgerError::Directory { path: directory.to_owned(), source };
        let sync = Arc::new(Sync::default());
        let syncing = Arc::clone(&sync);
        // Without this thread, the gateway would admit requests that nothing counts.
        tasks::spawn_essential_thread("ledger-sync", move || syncing.run()).map_err(failed)?;
        tasks::spawn_essential_thread("ledger", move || writer.run(&inbox, &sync)).map_err(failed)?;
        Ok(Self { directory: Arc::new(directory.to_owned()), jobs, state })
    }

    /// Records a charge; returns when it survives kill -9 of this process. Also returns when the
    /// disk fails: the charge stays in memory until it can be written, and [`Ledger::admits`]
    /// refuses requests meanwhile.
    pub async fn append(&self, charge: Charge) {
        let (written, done) = oneshot::channel();
        if self.jobs.send(Job { charge, written }).is_ok() {
            // On an error this process ends, see `open`.
            let _ = done.await;
        }
    }

    /// Whether a request may be admitted, because its usage can be recorded.
    ///
    /// # Errors
    /// The cause, for the sandbox and the log.
    pub fn admits(&self) -> Result<(), &'static str> {
        if self.state.failing.load(Ordering::Relaxed) {
            return Err("the gateway cannot record usage: its state directory cannot be written");
        }
        if self.state.unread.load(Ordering::Relaxed) > MAX_UNREAD {
            return Err("the gateway cannot record usage: ashd has not collected 64 MiB of records");
        }
        Ok(())
    }
}

/// The file that this process appends to.
struct Appended {
    id: Uuid,
    file: Arc<Flock<File>>,
    path: PathBuf,
    /// Bytes of complete entries.
    length: u64,
    newest: u64,
}

impl Appended {
    fn begin(directory: &Path) -> Result<Self, LedgerError> {
        let id = Uuid::now_v7();
        let path = super::collect::path(directory, id);
        let failed = |source| LedgerError::File { path: path.clone(), source };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, why)| failed(why.into()))?;
        // The directory entry must be on the disk before the file's contents.
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        Ok(Self { id, file: Arc::new(file), path, length: 0, newest: 0 })
    }

    /// Writes complete entries or nothing.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(why) = self.file.write_all_at(bytes, self.length) {
            // A partial line would make the next one unreadable. If this fails too, the reader
            // skips the line.
            let _ = self.file.set_len(self.length);
            return Err(why);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

struct Writer {
    directory: PathBuf,
    file: Appended,
    state: Arc<State>,
    /// What could not be written, summed by payer.
    owed: HashMap<Payer, (u64, Tokens)>,
    failed: bool,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Job>, sync: &Sync) {
        loop {
            let first = if self.owed.is_empty() {
                inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                inbox.recv_timeout(RETRY)
            };
            let mut written = Vec::new();
            match first {
                Ok(job) => {
                    for Job { charge, written: told } in std::iter::once(job).chain(inbox.try_iter().take(BATCH)) {
                        self.owe(charge);
                        written.push(told);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.write_owed(sync);
            for told in written {
                // The receiver may be gone.
                let _ = told.send(());
            }
        }
        self.write_owed(sync);
        let _ = self.file.file.sync_data();
        sync.stop();
    }

    fn owe(&mut self, charge: Charge) {
        let payer = Payer::clone(&charge.payer);
        let (requests, tokens) = self.owed.entry(payer).or_default();
        *requests += charge.requests;
        *tokens = tokens.plus(charge.tokens);
    }

    fn write_owed(&mut self, sync: &Sync) {
        if self.owed.is_empty() {
            return;
        }
        match self.try_write() {
            Ok(()) => {
                self.owed.clear();
                self.failed = false;
                self.state.failing.store(false, Ordering::Relaxed);
                sync.wanted(Arc::clone(&self.file.file));
            }
            Err(why) => {
                self.state.failing.store(true, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failed, true) {
                    event!(
                        &events::LEDGER_FAILED,
                        "cannot record usage ({why}); requests are refused until this works"
                    );
                }
            }
        }
    }

    fn try_write(&mut self) -> Result<(), LedgerError> {
        if self.file.length > FULL {
            let next = Appended::begin(&self.directory)?;
            // The syncer may already use the next file.
            let _ = self.file.file.sync_data();
            self.file = next;
        }
        let at = now_ms();
        let mut bytes = Vec::new();
        let mut n = self.file.newest;
        for (payer, (requests, tokens)) in &self.owed {
            n += 1;
            let entry = Entry { n, at, payer: payer.clone(), requests: *requests, tokens: *tokens };
            serde_json::to_writer(&mut bytes, &entry).map_err(|why| self.failed(why.into()))?;
            bytes.write_all(b"\n").map_err(|why| self.failed(why))?;
        }
        self.file.write(&bytes).map_err(|why| LedgerError::File { path: self.file.path.clone(), source: why })?;
        self.file.newest = n;
        *lock(&self.state.newest) = (self.file.id, n);
        self.state.unread.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn failed(&self, source: io::Error) -> LedgerError {
        LedgerError::File { path: self.file.path.clone(), source }
    }
}

/// The syncing thread, so that no answer waits for the disk.
#[derive(Default)]
struct Sync {
    order: Mutex<Order>,
    changed: Condvar,
}

#[derive(Default)]
struct Order {
    file: Option<Arc<Flock<File>>>,
    stop: bool,
}

impl Sync {
    fn wanted(&self, file: Arc<Flock<File>>) {
        lock(&self.order).file = Some(file);
        self.changed.notify_one();
    }

    fn stop(&self) {
        lock(&self.order).stop = true;
        self.changed.notify_one();
    }

    fn run(&self) {
        loop {
            let mut order = lock(&self.order);
            while order.file.is_none() && !order.stop {
                order = self.changed.wait(order).unwrap_or_else(PoisonError::into_inner);
            }
            if order.stop {
                return;
            }
            drop(order);
            std::thread::sleep(SYNC_AFTER);
            let Some(file) = lock(&self.order).file.take() else { continue };
            if let Err(why) = file.sync_data() {
                tracing::warn!(%why, "cannot sync the ledger; a power failure would lose its newest entries");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
