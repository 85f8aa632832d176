//! What a session does by itself as time passes. Pure: the task sleeps until the earliest alarm.

use std::time::{Duration, Instant};

use ash_model::SessionStatus;

/// A task without a process and without requests ends after this; the next request creates a new
/// one.
pub const REST: Duration = Duration::from_secs(60);
/// The same for an ended session, which only gets reads. A task uses about 25 kB, and there can be
/// thousands.
pub const REST_ENDED: Duration = Duration::from_secs(1);
/// Time from claude's first output to the sync of its files, which claude does not sync itself.
pub const SAVE: Duration = Duration::from_secs(1);
/// The same during a turn of a process that was saved before: each sync writes the file system's
/// journal, which can delay other sessions.
pub const SAVE_IN_TURN: Duration = Duration::from_secs(5);
/// An interrupted claude answers within 0.1 s. After this long it is killed.
pub const INTERRUPT_GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// End the task.
    Rest,
    /// Sync claude's files to the disk.
    Save,
    /// Freeze an idle claude, which uses about 1 % of a core.
    Freeze,
    /// Reclaim the memory of a paused session, or of one that is idle for long.
    Reclaim,
    /// Destroy the sandbox of a session without a turn for long.
    Park,
    /// A turn was paused for too long.
    PausedInTurn,
    /// A turn exceeded the session's time limit.
    TurnTooLong,
    /// claude ignored an interrupt.
    InterruptIgnored,
}

/// Inputs of the alarms.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub status: SessionStatus,
    pub starting: bool,
    /// Start of the live process's idle time.
    pub live_idle_since: Option<Instant>,
    /// When claude first wrote unsynced data.
    pub unsaved_since: Option<Instant>,
    /// This process's files were saved before, so a power cut cannot take the whole conversation.
    pub saved: bool,
    pub frozen: bool,
    /// Its memory was reclaimed since it was frozen.
    pub reclaimed: bool,
    pub turn_since: Option<Instant>,
    pub turn_limit: Duration,
    pub paused_since: Option<Instant>,
    pub interrupted_at: Option<Instant>,
    pub last_asked: Instant,
    pub freeze_after: Option<Duration>,
    pub park_after: Duration,
    /// After a pause.
    pub reclaim_after: Duration,
    /// After the last turn of an active session; `None`: never.
    pub reclaim_idle_after: Option<Duration>,
    /// Longest time a turn stays frozen before it is ended cleanly.
    pub max_in_turn: Duration,
}

/// The next alarm and its time.
pub fn next(c: &Clocks) -> Option<(Instant, Alarm)> {
    if c.starting {
        return None;
    }
    let after = if c.saved && c.turn_since.is_some() { SAVE_IN_TURN } else { SAVE };
    let save = c.unsaved_since.map(|since| (since + after, Alarm::Save));
    match (save, routine(c)) {
        (Some(save), Some(other)) => Some(earlier(save, other)),
        (save, other) => save.or(other),
    }
}

fn routine(c: &Clocks) -> Option<(Instant, Alarm)> {
    let Some(idle_since) = c.live_idle_since else {
        let rest = if c.status == SessionStatus::Ended { REST_ENDED } else { REST };
        return Some((c.last_asked + rest, Alarm::Rest));
    };
    let Some(turn_since) = c.turn_since else {
        let park = (idle_since + c.park_after, Alarm::Park);
        let reclaim = match c.paused_since {
            Some(paused) => Some(paused + c.reclaim_after),
            None => c.reclaim_idle_after.map(|after| idle_since + after),
        };
        if let Some(at) = reclaim.filter(|_| c.frozen && !c.reclaimed) {
            return Some(earlier((at, Alarm::Reclaim), park));
        }
        return match c.freeze_after {
            Some(after) if !c.frozen && c.status == SessionStatus::Active => {
                Some(earlier((idle_since + after, Alarm::Freeze), park))
            }
            _ => Some(park),
        };
    };
    if let Some(at) = c.interrupted_at {
        return Some((at + INTERRUPT_GRACE, Alarm::InterruptIgnored));
    }
    if c.frozen {
        return c.paused_since.map(|at| (at + c.max_in_turn, Alarm::PausedInTurn));
    }
    Some((turn_since + c.turn_limit, Alarm::TurnTooLong))
}

fn earlier(a: (Instant, Alarm), b: (Instant, Alarm)) -> (Instant, Alarm) {
    if a.0 <= b.0 { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let t = Instant::now();
        let s = Duration::from_secs;
        let idle = Clocks {
            status: SessionStatus::Active,
            starting: false,
            live_idle_since: Some(t),
            unsaved_since: None,
            saved: false,
            frozen: false,
            turn_since: None,
            turn_limit: s(3600),
            paused_since: None,
            interrupted_at: None,
            last_asked: t,
            freeze_after: Some(s(2)),
            park_after: s(1800),
            reclaimed: false,
            reclaim_after: s(3),
            reclaim_idle_after: Some(s(60)),
            max_in_turn: s(150),
        };
        let paused = Clocks { status: SessionStatus::Paused, frozen: true, paused_since: Some(t), ..idle };
        let turn = Clocks { turn_since: Some(t), ..idle };
        let cases = [
            (idle, Some((2, Alarm::Freeze))),
            (Clocks { freeze_after: None, ..idle }, Some((1800, Alarm::Park))),
            (Clocks { frozen: true, ..idle }, Some((60, Alarm::Reclaim))),
            (Clocks { frozen: true, reclaimed: true, ..idle }, Some((1800, Alarm::Park))),
            (Clocks { frozen: true, reclaim_idle_after: None, ..idle }, Some((1800, Alarm::Park))),
            (Clocks { park_after: s(1), ..idle }, Some((1, Alarm::Park))),
            (paused, Some((3, Alarm::Reclaim))),
            (Clocks { reclaimed: true, ..paused }, Some((1800, Alarm::Park))),
            (Clocks { park_after: s(1), ..paused }, Some((1, Alarm::Park))),
            (Clocks { frozen: false, ..paused }, Some((1800, Alarm::Park))),
            (turn, Some((3600, Alarm::TurnTooLong))),
            (Clocks { turn_since: Some(t), ..paused }, Some((150, Alarm::PausedInTurn))),
            (Clocks { interrupted_at: Some(t + s(5)), ..turn }, Some((15, Alarm::InterruptIgnored))),
            (Clocks { live_idle_since: None, ..paused }, Some((60, Alarm::Rest))),
            (Clocks { live_idle_since: None, status: SessionStatus::Ended, ..idle }, Some((1, Alarm::Rest))),
            (Clocks { unsaved_since: Some(t), ..idle }, Some((1, Alarm::Save))),
            (Clocks { unsaved_since: Some(t + s(2)), ..idle }, Some((2, Alarm::Freeze))),
            (Clocks { unsaved_since: Some(t), ..turn }, Some((1, Alarm::Save))),
            (Clocks { unsaved_since: Some(t), saved: true, ..turn }, Some((5, Alarm::Save))),
            (Clocks { unsaved_since: Some(t), saved: true, ..idle }, Some((1, Alarm::Save))),
            (Clocks { starting: true, unsaved_since: Some(t), ..idle }, None),
        ];
        for (clocks, want) in cases {
            assert_eq!(next(&clocks), want.map(|(secs, alarm)| (t + s(secs), alarm)), "{clocks:?}");
        }
    }
}
