//! Sessions with a task. A session without one is a row and a directory. Its task starts with the
//! first request, and ends when the session has no process and no recent request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::sessions::driver::Request;
use crate::sessions::driver::heartbeat::SharedPulse;
use crate::sessions::stream::reader::Published;
use ash_model::TenantId;

/// Capacity of a task's inbox. Further requests wait for space, usually for moments.
const INBOX: usize = 64;

/// How to reach a session's task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub tenant: TenantId,
    pub requests: mpsc::Sender<Request>,
    pub published: watch::Receiver<Published>,
    pub(in crate::sessions) pulse: SharedPulse,
}

/// The task's ends of a [`Handle`].
#[derive(Debug)]
pub struct Ends {
    pub requests: mpsc::Receiver<Request>,
    pub published: watch::Sender<Published>,
    pub(in crate::sessions) pulse: SharedPulse,
}

/// A new pair, with the published state until the task updates it.
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
        // Consistent between any two statements, so a panic elsewhere cannot break it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: Uuid) -> Option<Handle> {
        self.map().get(&id).cloned()
    }

    /// The existing handle, or the one from `make` (whose task it then starts): one task per
    /// session.
    pub fn get_or_insert(&self, id: Uuid, make: impl FnOnce() -> Handle) -> Handle {
        self.map().entry(id).or_insert_with(make).clone()
    }

    /// Called by the ending task. `idle` runs under the lock: a request that came meanwhile keeps
    /// the task.
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
