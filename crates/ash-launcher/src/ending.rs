//! Ends a sandbox without blocking other requests.
//!
//! ```text
//!   Destroy -> cgroup.kill -> (loop: rmdir every group) -> reap init -> remove the record -> Done
//!                                   | 10 s
//!                                   v
//!                              Error; record and uids stay, and Destroy can be repeated
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use uuid::Uuid;

use super::sandboxes::{Sandboxes, failure};
use ash_kernel::cgroup::Leaf;
use ash_model::TenantId;
use ash_protocol::launcher::Failure;

/// The time limit for the last process. A killed group is usually gone after milliseconds, but a
/// process that hangs in the kernel (a dead network file system) stays.
const WITHIN: Duration = Duration::from_secs(10);

/// The number of a connection that waits for an end.
pub type Waiter = u64;

#[derive(Debug)]
pub struct Ending {
    leaf: Leaf,
    tenant: TenantId,
    since: Instant,
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
pub struct Ended {
    pub id: Uuid,
    pub outcome: Result<(), Failure>,
    pub waiters: Vec<Waiter>,
}

impl Sandboxes {
    /// Kills the sandbox. `None`: the caller waits, and [`Sandboxes::step_endings`] reports the
    /// end. `Some`: it has already ended, or never existed.
    pub fn begin_end(&mut self, id: Uuid, waiter: Option<Waiter>) -> Option<Result<(), Failure>> {
        if let Some(ending) = self.endings.get_mut(&id) {
            ending.waiters.extend(waiter);
            return None;
        }
        let (tenant, leaf) = match self.tree.find(id) {
            Ok(Some(found)) => found,
            Ok(None) => return Some(self.forget(id)),
            Err(error) => return Some(Err(failure("find cgroups", error))),
        };
        self.reclaims.forget(id);
        if let Err(error) = leaf.kill() {
            return Some(Err(failure("kill", format!("{}: {error}", leaf.paths().unified.display()))));
        }
        self.endings.insert(id, Ending { leaf, tenant, since: Instant::now(), waiters: waiter.into_iter().collect() });
        None
    }

    pub fn step_endings(&mut self) -> Vec<Ended> {
        let ids: Vec<Uuid> = self.endings.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.step_ending(id)).collect()
    }

    /// Checks one. `None` while it is in progress.
    pub(super) fn step_ending(&mut self, id: Uuid) -> Option<Ended> {
        let ending = self.endings.get(&id)?;
        let outcome = match ending.leaf.try_remove() {
            Ok(()) => {
                self.tree.forget_tenant(&ending.tenant);
                self.forget(id)
            }
            Err(_) if ending.since.elapsed() < WITHIN => return None,
            Err(error) => Err(Failure {
                hint: Some("a process hangs in the kernel: retry, or find it with ps -eo pid,stat,wchan".into()),
                ..failure("remove cgroups", error)
            }),
        };
        let waiters = self.endings.remove(&id).map(|ending| ending.waiters).unwrap_or_default();
        Some(Ended { id, outcome, waiters })
    }

    /// When to check again. Soon at first, since a killed group is gone after a millisecond or two.
    pub fn look_again(&self) -> Option<Duration> {
        let youngest = self.endings.values().map(|ending| ending.since.elapsed()).min()?;
        Some(if youngest < Duration::from_millis(50) { Duration::from_millis(1) } else { Duration::from_millis(10) })
    }

    /// Its groups and processes are gone. Its uids are free when its run directory is gone too.
    fn forget(&mut self, id: Uuid) -> Result<(), Failure> {
        if let Some(entry) = self.table.get_mut(&id) {
            entry.info.pid = 0;
            if let Some(pidfd) = entry.pidfd.take() {
                reap(&pidfd);
            }
        }
        self.run.forget(id).map_err(|error| failure("remove run directory", error))?;
        self.table.remove(&id);
        self.uids.release(id);
        Ok(())
    }

    /// Reaps an init that has ended. Its sandbox is remembered as dead until it is destroyed.
    pub fn init_ended(&mut self, id: Uuid) {
        let Some(entry) = self.table.get_mut(&id) else { return };
        if let Some(pidfd) = entry.pidfd.take() {
            reap(&pidfd);
        }
        entry.info.pid = 0;
        if !self.endings.contains_key(&id) {
            tracing::warn!(ASH_SESSION = %id, "the sandbox's init exited without a request");
        }
    }
}

/// Reaps all children that have ended, such as during [`super::again`].
pub fn reap_all() {
    while let Ok(Some(_)) = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {}
}

/// Longest wait for an init with empty cgroups.
const LAST_BREATH: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Reaps an init that has ended or is about to. Another launcher's child is reaped by the host's
/// init, which is no error.
///
/// A killed process leaves its cgroup shortly before it can be reaped, and there is no later
/// attempt. So this waits, at most [`LAST_BREATH`].
pub fn reap(pidfd: &OwnedFd) {
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&LAST_BREATH)).ok();
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
}
