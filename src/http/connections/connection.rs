//! One connection's place among the others, for whoever answers its requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use super::table::{Full, Peer, Table};

/// The connections of the sockets that share one bound. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Table<AbortHandle>>>);

impl Places {
    pub fn new(max: usize, per_peer: usize) -> Self {
        Self(Arc::new(Mutex::new(Table::new(max, per_peer))))
    }

    fn table(&self) -> MutexGuard<'_, Table<AbortHandle>> {
        // The table is whole between any two of its calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection; another one may be closed for it.
    pub fn admit(&self, peer: Peer) -> Result<Arc<Connection>, Full> {
        let (id, closed) = self.table().admit(peer)?;
        if let Some(closed) = closed {
            closed.abort();
        }
        Ok(Arc::new(Connection { places: self.clone(), id, stream: AtomicBool::new(false) }))
    }

    /// Closes the connection that is least worth its descriptor. Whether there was one.
    pub fn relieve(&self) -> bool {
        let closed = self.table().relieve();
        closed.inspect(AbortHandle::abort).is_some()
    }

    pub fn open(&self) -> usize {
        self.table().len()
    }
}

/// A connection's place, given up when the last clone is dropped.
#[derive(Debug)]
pub struct Connection {
    places: Places,
    id: u64,
    /// Its answer is a stream of events.
    stream: AtomicBool,
}

impl Connection {
    /// The task that serves it, which is ended when its place is needed.
    pub fn attach(&self, task: AbortHandle) {
        let late = self.places.table().attach(self.id, task);
        if let Some(task) = late {
            task.abort();
        }
    }

    /// A request on it came with a valid key, or from an administrator of this host.
    pub fn known(&self) {
        self.places.table().known(self.id);
    }

    /// A request is being answered until the guard is dropped.
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
