//! ashd's side of the windows: who holds which window open, and what the gateway does not know yet.
//!
//! ```text
//!   turn, command, background work: Hold ---first---> open ----+
//!                                        ---last----> closed --+--> changed (newest state wins)
//!                                                                   --> one packet
//! ```
//!
//! No caller waits: a hold takes a lock and wakes a task. The task that owns the connection sends
//! the changes, and puts the current state into every registration, so that neither order nor a
//! restart of the gateway can leave a wrong state.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use ash_protocol::gateway::Request;

/// Maximum sessions per packet.
const BATCH: usize = 1000;

#[derive(Debug, Default)]
pub struct Windows {
    state: Mutex<State>,
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    holds: HashMap<Uuid, usize>,
    changed: HashSet<Uuid>,
}

/// Keeps a session's window open as long as it lives.
#[derive(Debug)]
pub struct Hold {
    windows: Arc<Windows>,
    session: Uuid,
}

impl Windows {
    pub fn hold(self: &Arc<Self>, session: Uuid) -> Hold {
        let mut state = self.lock();
        let holds = state.holds.entry(session).or_default();
        *holds += 1;
        if *holds == 1 {
            state.changed.insert(session);
            self.changed.notify_one();
        }
        drop(state);
        Hold { windows: Arc::clone(self), session }
    }

    pub fn is_open(&self, session: Uuid) -> bool {
        self.lock().holds.contains_key(&session)
    }

    /// The request for the gateway; `None` when there are no changes. Takes the changes: the next
    /// call returns later ones.
    pub(super) fn news(&self) -> Option<Request> {
        let mut state = self.lock();
        let some: Vec<Uuid> = state.changed.iter().take(BATCH).copied().collect();
        for session in &some {
            state.changed.remove(session);
        }
        if !state.changed.is_empty() {
            self.changed.notify_one();
        }
        let (open, closed): (Vec<_>, Vec<_>) = some.into_iter().partition(|session| state.holds.contains_key(session));
        (!open.is_empty() || !closed.is_empty()).then_some(Request::Windows { open, closed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.windows.lock();
        if let Some(holds) = state.holds.get_mut(&self.session) {
            *holds -= 1;
            if *holds == 0 {
                state.holds.remove(&self.session);
                state.changed.insert(self.session);
                self.windows.changed.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_state_is_told_once() {
        let windows = Arc::new(Windows::default());
        let [a, b] = [Uuid::new_v4(), Uuid::new_v4()];
        assert!(windows.news().is_none());
        let (first, second) = (windows.hold(a), windows.hold(a));
        let other = windows.hold(b);
        let Some(Request::Windows { mut open, closed }) = windows.news() else { panic!("news") };
        open.sort_unstable();
        let mut both = vec![a, b];
        both.sort_unstable();
        assert_eq!((open, closed), (both, vec![]));
        drop(first);
        assert!(windows.news().is_none() && windows.is_open(a), "the second one holds it");
        drop(other);
        let _again = windows.hold(b);
        drop(second);
        let Some(Request::Windows { open, closed }) = windows.news() else { panic!("news") };
        assert_eq!((open, closed), (vec![b], vec![a]), "closed and opened again in between: open");
        assert!(windows.lock().holds.len() == 1);
    }
}
