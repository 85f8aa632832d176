//! Changes of a sandbox's cgroup counters between two readings.

use std::time::{Duration, Instant};

use crate::sandbox::usage::{MemoryUsage, PidsUsage, pids_limit};
use crate::sessions::monitor::resource_monitor::Finding;
use ash_model::processes;
use ash_protocol::launcher::CgroupPaths;

/// Minimum time between two reports of a reached process limit.
const TELL_PIDS: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Counters {
    oom_kills: u64,
    refused: u64,
    /// Highest number of processes and threads at the same time.
    peak: u64,
    told_pids: Option<Instant>,
}

impl Counters {
    /// Current values.
    pub fn of(cgroup: &CgroupPaths) -> Self {
        let pids = PidsUsage::read(cgroup);
        Self {
            oom_kills: MemoryUsage::read(cgroup).oom_kills.unwrap_or(0),
            refused: pids.refused.unwrap_or(0),
            peak: pids.peak.unwrap_or(0),
            told_pids: None,
        }
    }

    /// New findings since the last call.
    pub fn look(&mut self, cgroup: &CgroupPaths, now: Instant) -> Vec<Finding> {
        let kills = MemoryUsage::read(cgroup).oom_kills.unwrap_or(0);
        self.judge(kills, PidsUsage::read(cgroup), pids_limit(cgroup), now)
    }

    fn judge(&mut self, kills: u64, pids: PidsUsage, limit: Option<u64>, now: Instant) -> Vec<Finding> {
        let mut found = Vec::new();
        if kills > self.oom_kills {
            found.push(Finding::OomKilled(kills - self.oom_kills));
            self.oom_kills = kills;
        }
        if self.told_pids.is_some_and(|at| now.saturating_duration_since(at) < TELL_PIDS) {
            return found;
        }
        let refused = pids.refused.unwrap_or(0);
        let peak = pids.peak.unwrap_or(0);
        // The kernel does not count forks refused by the commands' own limit; the peak shows them.
        let most = if peak > self.peak { peak } else { pids.current.unwrap_or(0) };
        let share = limit.map(processes::for_commands).filter(|share| most > *share);
        let finding = match (refused.checked_sub(self.refused), share) {
            (Some(more), _) if more > 0 => Some(Finding::ForksRefused(more)),
            (_, Some(share)) => Some(Finding::CommandsFull(share)),
            _ => None,
        };
        self.peak = self.peak.max(peak);
        if finding.is_some() {
            (self.refused, self.told_pids) = (refused, Some(now));
        }
        found.extend(finding);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pids(current: u64, peak: Option<u64>, refused: u64) -> PidsUsage {
        PidsUsage { current: Some(current), peak, refused: Some(refused) }
    }

    #[test]
    fn what_is_new_is_told_once_and_not_too_often() {
        let (mut counters, start) = (Counters::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (seconds, kills, pids, wanted) in [
            (0, 0, pids(10, Some(10), 0), vec![]),
            (1, 2, pids(10, Some(48), 0), vec![Finding::OomKilled(2)]),
            // A short peak between two readings.
            (2, 2, pids(10, Some(49), 0), vec![Finding::CommandsFull(48)]),
            (3, 2, pids(60, Some(64), 7), vec![]),
            (63, 2, pids(10, Some(64), 7), vec![Finding::ForksRefused(7)]),
            (200, 2, pids(10, Some(64), 7), vec![]),
            (201, 2, pids(49, Some(64), 7), vec![Finding::CommandsFull(48)]),
        ] {
            assert_eq!(counters.judge(kills, pids, Some(64), at(seconds)), wanted, "{seconds}");
        }
        let mut counters = Counters::default();
        assert_eq!(counters.judge(0, pids(5000, None, 0), None, start), [], "no limit");
        assert_eq!(counters.judge(0, PidsUsage::default(), Some(64), start), [], "unknown values");
    }
}
