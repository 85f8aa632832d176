//! Detects hanging session tasks: a task that hangs in one step handles no message and no
//! interrupt, and logs nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::sessions::Sessions;
use ash_model::TenantId;
use ash_observe::events::{self, event};
use ash_observe::tasks;

/// The longest step copies a workspace, or waits 20 s for the launcher. A step of this length
/// hangs.
const WEDGED: Duration = Duration::from_secs(300);
/// When at least [`MANY`] tasks are all in one step for this long, the cause is something they
/// share.
const STALLED: Duration = Duration::from_secs(60);
const MANY: usize = 4;
/// Interval of checks.
const LOOK: Duration = Duration::from_secs(15);

/// When a task's current step began. Written by the task, read by the watcher.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds after `start`, plus one; 0 between two steps.
    since: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl Pulse {
    pub fn begin(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now + 1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Duration of the current step; `None` between two steps.
    pub fn busy(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

/// Tasks in one step for too long, and whether all are. Pure.
fn judge<T: Copy>(steps: &[(T, Option<Duration>)]) -> (Vec<T>, bool) {
    let longer = |than: Duration| steps.iter().filter(move |(_, busy)| busy.is_some_and(|busy| busy >= than));
    let all = steps.len() >= MANY && longer(STALLED).count() == steps.len();
    (longer(WEDGED).map(|(of, _)| *of).collect(), all)
}

impl Sessions {
    /// # Errors
    /// Why new work would not be done: the daemon's watchdog is not fed then.
    pub async fn pulse(&self) -> Result<(), String> {
        // A separate task: tests the timers and threads that all tasks need.
        tokio::spawn(async {}).await.map_err(|e| format!("tasks cannot be started: {e}"))?;
        let steps = self.steps();
        let steps: Vec<_> = steps.iter().map(|(id, _, busy)| (*id, *busy)).collect();
        match judge(&steps) {
            (_, true) => Err(format!("no step of {} session tasks ended for {} s", steps.len(), STALLED.as_secs())),
            _ => Ok(()),
        }
    }

    fn steps(&self) -> Vec<(Uuid, TenantId, Option<Duration>)> {
        let all = self.shared.registry.all().into_iter();
        all.map(|(id, handle)| (id, handle.tenant, handle.pulse.busy())).collect()
    }

    /// Logs once for each session whose task hangs.
    pub(in crate::sessions) fn watch_steps(&self) {
        let sessions = self.clone();
        tasks::spawn_restarting("hung-task-watch", move || {
            let sessions = sessions.clone();
            async move {
                let mut said: HashSet<Uuid> = HashSet::new();
                loop {
                    tokio::time::sleep(LOOK).await;
                    let steps = sessions.steps();
                    let pairs: Vec<_> = steps.iter().map(|(id, tenant, busy)| ((*id, tenant), *busy)).collect();
                    let (wedged, _) = judge(&pairs);
                    said.retain(|id| wedged.iter().any(|(wedged, _)| wedged == id));
                    for (id, tenant) in wedged {
                        if said.insert(id) {
                            event!(&events::WEDGED, ASH_SESSION = %id, ASH_TENANT = %tenant,
                            "the session's task hangs in one step for {} s", WEDGED.as_secs());
                        }
                    }
                }
            }
        });
    }
}

/// Shared by a handle and its task.
pub type SharedPulse = Arc<Pulse>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_begins_and_ends() {
        let pulse = Pulse::default();
        assert_eq!(pulse.busy(), None);
        pulse.begin();
        std::thread::sleep(Duration::from_millis(5));
        assert!(pulse.busy().unwrap() >= Duration::from_millis(4));
        pulse.end();
        assert_eq!(pulse.busy(), None);
    }

    #[test]
    fn one_that_hangs_is_named_and_all_of_them_are_the_daemon_s_fault() {
        let step = |seconds: u64| Some(Duration::from_secs(seconds));
        for (steps, wedged, all) in [
            (vec![], vec![], false),
            (vec![None, step(400)], vec![1], false),
            (vec![step(70); 3], vec![], false),
            (vec![step(70); 4], vec![], true),
            (vec![step(70), step(70), step(70), step(70), None], vec![], false),
            (vec![step(59), step(300), step(70), step(70)], vec![1], false),
        ] {
            let steps: Vec<(usize, _)> = steps.into_iter().enumerate().collect();
            assert_eq!(judge(&steps), (wedged, all), "{steps:?}");
        }
    }
}
