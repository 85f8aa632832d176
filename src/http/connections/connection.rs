//! One connection's place in the table, as the code that answers its requests sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use super::table::{Full, Peer, Table};

/// The connections of all sockets that share one limit. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Table<AbortHandle>>>);

impl Places {
    pub fn new(max: usize, per_peer: usize) -> Self {
        Self(Arc::new(Mutex::new(Table::new(max, per_peer))))
    }

    fn table(&self) -> MutexGuard<'_, Table<AbortHandle>> {
        // No method leaves the table half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection; another connection may be closed for it.
    pub fn admit(&self, peer: Peer) -> Result<Arc<Connection>, Full> {
        let (id, closed) = self.table().admit(peer)?;
        if let Some(closed) = closed {
            closed.abort();
        }
        Ok(Arc::new(Connection { places: self.clone(), id, stream: AtomicBool::new(false) }))
    }

    /// Closes the least important connection. Returns whether there was one.
    pub fn relieve(&self) -> bool {
        let closed = self.table().relieve();
        closed.inspect(AbortHandle::abort).is_some()
    }

    pub fn open(&self) -> usize {
        self.table().len()
    }
}

/// A connection's place, released when the last clone is dropped.
#[derive(Debug)]
pub struct Connection {
    places: Places,
    id: u64,
    /// Its answer is a stream of events.
    stream: AtomicBool,
}

impl Connection {
    /// Sets the task that serves it, which is aborted when its place is needed.
    pub fn attach(&self, task: AbortHandle) {
        let late = self.places.table().attach(self.id, task);
        if let Some(task) = late {
            task.abort();
        }
    }

    /// Marks that a request on it had a valid key, or came from an administrator of this host.
    pub fn known(&self) {
        self.places.table().known(self.id);
    }

    /// Marks the connection as busy until the guard is dropped.
    pub fn answer(self: &Arc<Self>) -> Answering {
        self.stream.store(false, Ordering::Relaxed);
        self.places.table().busy(self.id, true);
        Answering(Arc::clone(self))
    }

    pub fn set_stream(&self) {
        self.stream.store(true, Ordering::Relaxed);
    }

    pub fn is_stream(&self) -> bool {
        self.stream.load(Ordering::Relaxed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.places.table().remove(self.id);
    }
}

/// See [`Connection::answer`].
#[derive(Debug)]
pub struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.places.table().busy(self.0.id, false);
    }
}
