//! The pool: how many sandboxes may live, and whose turn it is to make room.
//!
//! ```text
//!         admit_spare [ warming ] --> [ warm ] --- claimed ---+      (a parked one: to [ warming ], its claude is to start)
//!                                                             v
//!            admit                    ready                       turn begins
//!   (cold) ---------> [ warming ] ----------------------> [ waiting ] <------> [ running ]
//!      ^                  |                                |      ^    turn ends     |
//!      |                  |                          pause |      | resume           |
//!      +------------------+---- drop ----------------- [ parkable ] <----------------+  (paused in mid-turn: not parkable)
//! ```
//!
//! A [`Slot`] is the right to one live sandbox, and exists before the sandbox does: the bound (`ASH_MAX_SANDBOXES`) holds
//! at every moment, also while many sessions start at once. Its undo is its drop, after the sandbox is destroyed.
//! Nothing here does I/O: the layer above destroys what [`Admission::MakeRoom`] names.

mod victim;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::model::SandboxState;

pub use victim::{Occupant, Spare};

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max: AtomicUsize,
    /// Time without a turn after which an active session's sandbox may go.
    evict_after: Mutex<Duration>,
    slots: Mutex<HashMap<Uuid, Occupant>>,
    /// One gauge per state, so that `/health` and `/metrics` read numbers and compute nothing.
    warming: AtomicI64,
    warm: AtomicI64,
    waiting: AtomicI64,
    running: AtomicI64,
    cold: AtomicI64,
    resumed_warm: AtomicU64,
    resumed_cold: AtomicU64,
    pre_warmed: AtomicU64,
    created_parked: AtomicU64,
    created_cold: AtomicU64,
}

/// What a request for a slot comes to.
#[derive(Debug)]
pub enum Admission {
    Granted(Slot),
    /// Full, but this sandbox that is nobody's, or this idle session's, may be given up: do that and ask again.
    MakeRoom(Uuid),
    /// Full, and nothing may go.
    Full,
}

/// The pool in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub cold: usize,
    pub warming: usize,
    pub warm: usize,
    pub waiting: usize,
    pub running: usize,
    pub max: usize,
    pub resumed_warm: u64,
    pub resumed_cold: u64,
    /// Sessions that were created from a warm sandbox.
    pub pre_warmed: u64,
    /// ... from a parked one, and from nothing.
    pub created_parked: u64,
    pub created_cold: u64,
}

impl Pool {
    /// `max` live sandboxes at most (`ASH_MAX_SANDBOXES`). When they are there, active sessions that had no turn for
    /// `evict_after` make room behind the paused ones.
    pub fn new(max: usize, evict_after: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                max: AtomicUsize::new(max),
                evict_after: Mutex::new(evict_after),
                slots: Mutex::new(HashMap::new()),
                warming: AtomicI64::new(0),
                warm: AtomicI64::new(0),
                waiting: AtomicI64::new(0),
                running: AtomicI64::new(0),
                cold: AtomicI64::new(0),
                resumed_warm: AtomicU64::new(0),
                resumed_cold: AtomicU64::new(0),
                pre_warmed: AtomicU64::new(0),
                created_parked: AtomicU64::new(0),
                created_cold: AtomicU64::new(0),
            }),
        }
    }

    /// Other bounds from now on. What lives above a lower maximum is counted, not killed.
    pub fn resize(&self, max: usize, evict_after: Duration) {
        self.shared.max.store(max, Ordering::Relaxed);
        *self.shared.evict_after.lock().unwrap_or_else(PoisonError::into_inner) = evict_after;
    }

    pub fn max(&self) -> usize {
        self.shared.max.load(Ordering::Relaxed)
    }

    /// A slot for this session's sandbox, if there is room.
    pub fn admit(&self, session: Uuid) -> Admission {
        let mut slots = self.shared.slots();
        if slots.len() < self.max() {
            return Admission::Granted(self.occupy(&mut slots, session, SandboxState::Warming, None));
        }
        let evict_after = *self.shared.evict_after.lock().unwrap_or_else(PoisonError::into_inner);
        match victim::choose(&slots, evict_after) {
            Some(id) => {
                // Named once: two requests at the same moment must not wait for the same room.
                if let Some(occupant) = slots.get_mut(&id) {
                    occupant.leaving = true;
                }
                Admission::MakeRoom(id)
            }
            None => Admission::Full,
        }
    }

    /// A slot for a sandbox that is nobody's yet: only where there is room, and the first to be given up again.
    pub fn admit_spare(&self, id: Uuid, kind: Spare) -> Option<Slot> {
        let mut slots = self.shared.slots();
        (slots.len() < self.max()).then(|| self.occupy(&mut slots, id, SandboxState::Warming, Some(kind)))
    }

    /// A slot for a sandbox that lives already (found at the start of the daemon). Given even above the maximum, which
    /// may have been lowered meanwhile: what lives is counted, not killed.
    pub fn adopt(&self, session: Uuid) -> Slot {
        let mut slots = self.shared.slots();
        self.occupy(&mut slots, session, SandboxState::Waiting, None)
    }

    fn occupy(
        &self,
        slots: &mut HashMap<Uuid, Occupant>,
        session: Uuid,
        state: SandboxState,
        spare: Option<Spare>,
    ) -> Slot {
        slots.insert(session, Occupant { state, spare, parkable: false, leaving: false, since: Instant::now() });
        self.shared.gauge(state, 1);
        Slot { shared: Arc::clone(&self.shared), session }
    }

    /// Sessions without a process changed by this many (they are rows, which the pool does not count).
    pub fn cold_changed(&self, by: i64) {
        self.shared.cold.fetch_add(by, Ordering::Relaxed);
    }

    /// A session was resumed from a frozen sandbox (`warm`) or by a new process.
    pub fn resumed(&self, warm: bool) {
        let counter = if warm { &self.shared.resumed_warm } else { &self.shared.resumed_cold };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A session was created from a warm sandbox.
    pub fn pre_warmed(&self) {
        self.shared.pre_warmed.fetch_add(1, Ordering::Relaxed);
    }

    /// A session was created from a parked sandbox, or from nothing.
    pub fn created(&self, parked: bool) {
        let counter = if parked { &self.shared.created_parked } else { &self.shared.created_cold };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Constant time.
    pub fn census(&self) -> Census {
        let gauge = |g: &AtomicI64| usize::try_from(g.load(Ordering::Relaxed)).unwrap_or(0);
        let s = &self.shared;
        Census {
            cold: gauge(&s.cold),
            warming: gauge(&s.warming),
            warm: gauge(&s.warm),
            waiting: gauge(&s.waiting),
            running: gauge(&s.running),
            max: self.max(),
            resumed_warm: s.resumed_warm.load(Ordering::Relaxed),
            resumed_cold: s.resumed_cold.load(Ordering::Relaxed),
            pre_warmed: s.pre_warmed.load(Ordering::Relaxed),
            created_parked: s.created_parked.load(Ordering::Relaxed),
            created_cold: s.created_cold.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, HashMap<Uuid, Occupant>> {
        // The map is whole between any two statements, so a panic elsewhere cannot have spoilt it.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self, state: SandboxState, by: i64) {
        let gauge = match state {
            SandboxState::Warming => &self.warming,
            SandboxState::Running => &self.running,
            SandboxState::Warm => &self.warm,
            SandboxState::Waiting => &self.waiting,
            SandboxState::Cold => &self.cold,
        };
        gauge.fetch_add(by, Ordering::Relaxed);
    }
}

/// The right to one live sandbox. Dropped when the sandbox is gone.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    session: Uuid,
}

impl Slot {
    /// `parkable`: the sandbox may be destroyed to make room for another session's (a paused session between turns). In any
    /// state but `Warm` it is a session's.
    pub fn set(&self, state: SandboxState, parkable: bool) {
        let mut slots = self.shared.slots();
        if let Some(occupant) = slots.get_mut(&self.session) {
            self.shared.gauge(occupant.state, -1);
            self.shared.gauge(state, 1);
            let spare = occupant.spare.filter(|_| state == SandboxState::Warm);
            *occupant = Occupant { state, spare, parkable, leaving: false, since: Instant::now() };
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(occupant) = self.shared.slots().remove(&self.session) {
            self.shared.gauge(occupant.state, -1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(pool: &Pool) -> Slot {
        match pool.admit(Uuid::new_v4()) {
            Admission::Granted(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_maximum_is_hard_and_a_drop_gives_the_place_back() {
        let pool = Pool::new(2, Duration::MAX);
        let first = granted(&pool);
        let _second = granted(&pool);
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::Full));
        drop(first);
        assert_eq!(pool.census().warming, 1);
        let _third = granted(&pool);
    }

    #[test]
    fn a_lower_maximum_kills_nothing_and_admits_nothing() {
        let pool = Pool::new(2, Duration::MAX);
        let (first, second) = (granted(&pool), granted(&pool));
        pool.resize(1, Duration::MAX);
        assert_eq!((pool.census().warming, pool.census().max), (2, 1));
        drop(first);
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::Full));
        drop(second);
        granted(&pool);
    }

    #[test]
    fn a_paused_session_makes_room_once() {
        let pool = Pool::new(1, Duration::MAX);
        let slot = granted(&pool);
        slot.set(SandboxState::Running, false);
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::Full));
        slot.set(SandboxState::Waiting, true);
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::MakeRoom(id) if id == slot.session));
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::Full), "it is leaving already");
    }

    #[test]
    fn warm_ones_take_no_room_from_sessions_and_go_first() {
        let pool = Pool::new(2, Duration::MAX);
        let paused = granted(&pool);
        paused.set(SandboxState::Waiting, true);
        let warm = pool.admit_spare(Uuid::new_v4(), Spare::Warm).expect("there is room");
        assert!(pool.admit_spare(Uuid::new_v4(), Spare::Parked).is_none(), "never at the cost of another");
        assert!(
            matches!(pool.admit(Uuid::new_v4()), Admission::MakeRoom(id) if id == warm.session),
            "while it is made"
        );
        warm.set(SandboxState::Warm, false);
        assert_eq!((pool.census().warm, pool.census().warming), (1, 0));
        assert!(
            matches!(pool.admit(Uuid::new_v4()), Admission::MakeRoom(id) if id == warm.session),
            "before the paused"
        );
        warm.set(SandboxState::Waiting, false);
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::MakeRoom(id) if id == paused.session), "it is claimed");
    }

    #[test]
    fn a_parked_one_that_was_taken_is_a_sessions_while_it_starts() {
        let pool = Pool::new(1, Duration::ZERO);
        let slot = pool.admit_spare(Uuid::new_v4(), Spare::Parked).expect("there is room");
        slot.set(SandboxState::Warm, false);
        assert_eq!((pool.census().warm, pool.census().warming), (1, 0));
        slot.set(SandboxState::Warming, false);
        assert_eq!((pool.census().warm, pool.census().warming), (0, 1));
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::Full));
        pool.created(true);
        assert_eq!((pool.census().created_parked, pool.census().created_cold, pool.census().pre_warmed), (1, 0, 0));
    }

    #[test]
    fn gauges_follow_the_states() {
        let pool = Pool::new(9, Duration::MAX);
        let slot = granted(&pool);
        slot.set(SandboxState::Waiting, false);
        slot.set(SandboxState::Running, false);
        let census = pool.census();
        assert_eq!((census.warming, census.waiting, census.running), (0, 0, 1));
        drop(slot);
        assert_eq!(pool.census().running, 0);
    }

    #[test]
    fn adoption_counts_what_lives_even_above_the_maximum() {
        let pool = Pool::new(1, Duration::MAX);
        let _slots = [pool.adopt(Uuid::new_v4()), pool.adopt(Uuid::new_v4())];
        assert_eq!(pool.census().waiting, 2);
        assert!(matches!(pool.admit(Uuid::new_v4()), Admission::Full));
    }
}
