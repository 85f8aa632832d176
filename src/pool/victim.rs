//! Which sandbox goes when there is no room: a parked one, else a warm one, else the one that was paused longest ago, else the
//! one of the active session that had no turn for the longest. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::model::SandboxState;

/// A sandbox that is nobody's yet, the cheapest to make anew first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spare {
    /// Empty: no files, no claude.
    Parked,
    /// claude is ready in it.
    Warm,
}

/// One slot that is taken.
#[derive(Clone, Copy, Debug)]
pub struct Occupant {
    pub state: SandboxState,
    /// Nobody's, ready or being made; `None` for a session's.
    pub spare: Option<Spare>,
    /// Nobody waits for it: its session is paused, between turns, and resumes from its directory.
    pub parkable: bool,
    /// Already asked to go.
    pub leaving: bool,
    /// When it came into this state.
    pub since: Instant,
}

/// The session whose sandbox may be destroyed. A sandbox in a turn is never chosen; one of an active session only when
/// it is idle for `evict_after`: its client finds it paused without having asked, and resumes it.
pub fn choose(slots: &HashMap<Uuid, Occupant>, evict_after: Duration) -> Option<Uuid> {
    slots
        .iter()
        .filter(|(_, o)| !o.leaving && (o.spare.is_some() || o.state == SandboxState::Waiting))
        .filter(|(_, o)| o.spare.is_some() || o.parkable || o.since.elapsed() >= evict_after)
        .min_by_key(|(_, o)| (o.spare.is_none(), o.spare, !o.parkable, o.since))
        .map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_paused_goes_first_and_a_turn_never() {
        let base = Instant::now();
        let at = |secs, state, parkable, leaving| Occupant {
            state,
            spare: None,
            parkable,
            leaving,
            since: base + Duration::from_secs(secs),
        };
        let ids: Vec<Uuid> = (0..5).map(|_| Uuid::new_v4()).collect();
        let mut slots = HashMap::from([
            (ids[0], at(1, SandboxState::Running, true, false)),
            (ids[1], at(2, SandboxState::Waiting, false, false)),
            (ids[2], at(3, SandboxState::Waiting, true, true)),
            (ids[3], at(9, SandboxState::Waiting, true, false)),
            (ids[4], at(5, SandboxState::Waiting, true, false)),
        ]);
        assert_eq!(choose(&slots, Duration::MAX), Some(ids[4]));
        slots.remove(&ids[4]);
        assert_eq!(choose(&slots, Duration::MAX), Some(ids[3]));
        slots.remove(&ids[3]);
        assert_eq!(choose(&slots, Duration::MAX), None);
        // The active one that is idle for long enough; never the turn, never the one that is leaving.
        assert_eq!(choose(&slots, Duration::ZERO), Some(ids[1]));
    }

    #[test]
    fn what_is_nobodys_goes_first_and_the_cheapest_of_it_before_all() {
        let base = Instant::now();
        let at = |secs, state, spare| Occupant {
            state,
            spare,
            parkable: true,
            leaving: false,
            since: base + Duration::from_secs(secs),
        };
        let ids: Vec<Uuid> = (0..5).map(|_| Uuid::new_v4()).collect();
        let mut slots = HashMap::from([
            (ids[0], at(1, SandboxState::Waiting, None)),
            (ids[1], at(2, SandboxState::Warm, Some(Spare::Warm))),
            (ids[2], at(3, SandboxState::Warming, Some(Spare::Warm))),
            (ids[3], at(8, SandboxState::Warm, Some(Spare::Parked))),
            (ids[4], at(9, SandboxState::Warming, Some(Spare::Parked))),
        ]);
        for next in [3, 4, 1, 2, 0] {
            assert_eq!(choose(&slots, Duration::MAX), Some(ids[next]), "{next}");
            slots.remove(&ids[next]);
        }
    }
}
