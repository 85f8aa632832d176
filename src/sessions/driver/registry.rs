//! Which sessions have a task. A session without one is a row and a directory; its task is made when somebody asks for
//! it, and ends when the session has no process and nobody asked for a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::sessions::driver::Request;
use crate::sessions::driver::heartbeat::SharedPulse;
use crate::sessions::stream::reader::Published;
use ash_model::TenantId;

/// Requests that may be on their way to one session's task. One more waits for room, which is made within moments.
const INBOX: usize = 64;

/// How to reach a session's task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub tenant: TenantId,
    pub requests: mpsc::Sender<Request>,
    pub published: watch::Receiver<Published>,
    pub(in crate::sessions) pulse: SharedPulse,
}

/// The task's own ends of a [`Handle`].
#[derive(Debug)]
pub struct Ends {
    pub requests: mpsc::Receiver<Request>,
    pub published: watch::Sender<Published>,
    pub(in crate::sessions) pulse: SharedPulse,
}

/// A new pair, with what readers see until the task says more.
pub fn channel(tenant: TenantId, first: Published) -> (Handle, Ends) {
    let (request_sender, requests) = mpsc::channel(INBOX);
    let (published, watcher) = watch::channel(first);
    let pulse = SharedPulse::default();
    let handle = Handle { tenant, requests: request_sender, published: watcher, pulse: SharedPulse::clone(&pulse) };
    (handle, Ends { requests, published, pulse })
}

#[derive(Debug, Default)]
pub struct Registry(Mutex<HashMap<Uuid, Handle>>);

impl Registry {
    fn map(&self) -> MutexGuard<'_, HashMap<Uuid, Handle>> {
        // The map is whole between any two statements, so a panic elsewhere cannot have spoilt it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: Uuid) -> Option<Handle> {
        self.map().get(&id).cloned()
    }

    /// The handle that is there, or the one that `make` makes (and whose task it then starts): one task per session.
    pub fn get_or_insert(&self, id: Uuid, make: impl FnOnce() -> Handle) -> Handle {
        self.map().entry(id).or_insert_with(make).clone()
    }

    /// Called by the task that ends. `idle` is asked under the lock: a request that came meanwhile keeps the task.
    pub fn remove_if(&self, id: Uuid, idle: impl FnOnce() -> bool) -> bool {
        let mut map = self.map();
        let gone = idle();
        if gone {
            map.remove(&id);
        }
        gone
    }

    /// Every session with a task.
    pub fn all(&self) -> Vec<(Uuid, Handle)> {
        self.map().iter().map(|(id, handle)| (*id, handle.clone())).collect()
    }
}
