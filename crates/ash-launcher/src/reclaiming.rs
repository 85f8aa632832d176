//! Moves the memory of frozen sandboxes to swap, in a separate worker.
//!
//! ```text
//!   Reclaim -> queue -> [worker: one at a time] -> it exits -> next
//!                          | the sandbox is thawed: it stops within one step
//!                          | the sandbox or the launcher ends: it is killed
//! ```
//!
//! The launcher's loop never does this work: one step takes milliseconds and would delay a start.
//! The worker is a fork with niceness 19 that only holds the group's directory and stderr.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};
use uuid::Uuid;

use super::ending::reap;
use super::sandboxes::{Answer, Sandboxes, failure};
use ash_kernel::cgroup::Leaf;
use ash_kernel::clone::{Child, Side, clone_into, exit_now};
use ash_kernel::single::{Forked, require_single_thread};
use ash_kernel::{process, reclaim};
use ash_observe::logging;
use ash_protocol::launcher::{Failure, Reply};

/// The queue and the running worker. Each sandbox is queued at most once.
#[derive(Debug, Default)]
pub struct Reclaims {
    queue: VecDeque<Uuid>,
    worker: Option<(Uuid, Child)>,
}

impl Reclaims {
    /// Readable when the worker has ended.
    pub fn worker(&self) -> Option<BorrowedFd<'_>> {
        self.worker.as_ref().map(|(_, child)| child.pidfd.as_fd())
    }

    /// The remaining work for the next program. The worker is killed, and its sandbox comes first.
    pub fn hand_over(&mut self) -> Vec<Uuid> {
        let under_way = self.worker.take().map(|(id, child)| {
            // A worker that has ended needs no signal.
            pidfd_send_signal(&child.pidfd, Signal::KILL).ok();
            reap(&child.pidfd);
            id
        });
        under_way.into_iter().chain(self.queue.drain(..)).collect()
    }

    /// Called before this sandbox ends. Kills its worker (the loop reaps it) and removes it from
    /// the queue.
    pub fn forget(&mut self, id: Uuid) {
        self.queue.retain(|waiting| *waiting != id);
        if let Some((_, child)) = self.worker.as_ref().filter(|(of, _)| *of == id) {
            // A worker that has ended needs no signal.
            pidfd_send_signal(&child.pidfd, Signal::KILL).ok();
        }
    }
}

impl Sandboxes {
    /// Queues the sandbox, at most once.
    ///
    /// # Errors
    /// An unknown sandbox.
    pub fn reclaim(&mut self, id: Uuid) -> Result<Answer, Failure> {
        self.running(id, "reclaim")?;
        if !self.reclaims.queue.contains(&id) {
            self.reclaims.queue.push_back(id);
        }
        self.next_reclaim();
        Ok(Answer::plain(Reply::Done))
    }

    /// Called when [`Reclaims::worker`] is readable.
    pub fn reclaimer_ended(&mut self) {
        if let Some((_, child)) = self.reclaims.worker.take() {
            reap(&child.pidfd);
        }
        self.next_reclaim();
    }

    fn next_reclaim(&mut self) {
        while self.reclaims.worker.is_none() {
            let Some(id) = self.reclaims.queue.pop_front() else { return };
            let started = self.leaf(id, "reclaim").and_then(|leaf| start(id, &leaf));
            match started {
                Ok(child) => self.reclaims.worker = Some((id, child)),
                Err(error) => tracing::warn!(ASH_SESSION = %id, %error, "the memory of the sandbox was not reclaimed"),
            }
        }
    }
}

fn start(id: Uuid, leaf: &Leaf) -> Result<Child, Failure> {
    let one = require_single_thread().map_err(|error| failure("fork the reclaimer", error))?;
    match clone_into(&one, 0, None).map_err(|error| failure("fork the reclaimer", error))? {
        Side::Parent(child) => Ok(child),
        Side::Child(forked) => {
            work(&forked, id, leaf);
            exit_now(0)
        }
    }
}

fn work(forked: &Forked, id: Uuid, leaf: &Leaf) {
    let alone = || -> std::io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        process::close_all_but(forked, &[leaf.unified_fd()])?;
        rustix::process::setpriority_process(None, 19)?;
        Ok(())
    };
    let done = alone().and_then(|()| reclaim::page_out(leaf));
    logging::anew(|| match done {
        Ok(report) => {
            tracing::info!(ASH_SESSION = %id, end = ?report.end, way = ?report.way, resident_before = report.before,
            resident_after = report.after, ms = report.took.as_millis(), "reclaimed")
        }
        Err(error) => tracing::warn!(ASH_SESSION = %id, %error, "the memory of the sandbox was not reclaimed"),
    });
}
