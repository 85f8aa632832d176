//! Counts the disk space that a sandbox holds in files without a name, in a separate worker. See
//! [`ash_kernel::held`].
//!
//! ```text
//!   Held {id} -> [worker: scan, at most 300 ms] -> its end of a pipe -> the reply to the caller
//! ```
//!
//! The launcher's loop never does this work, because a hostile sandbox can have millions of
//! descriptors. The worker is a fork that makes CAP_SYS_PTRACE effective, scans, and ends.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use uuid::Uuid;

use super::ending::{Waiter, reap};
use super::sandboxes::{Sandboxes, failure};
use ash_kernel::cgroup::Leaf;
use ash_kernel::clone::{Child, Side, clone_into, exit_now};
use ash_kernel::single::{Forked, require_single_thread};
use ash_kernel::{caps, held, process};
use ash_protocol::launcher::{Failure, Reply};

/// A longer scan is incomplete (`hidden`). 100 processes with 50 descriptors each take about 20 ms.
const WITHIN: Duration = Duration::from_millis(300);
const MAX_ANSWER: u64 = 4096;

/// Scans in progress, by waiting connection: at most one per connection.
#[derive(Debug, Default)]
pub struct Holdings(BTreeMap<Waiter, (Child, OwnedFd)>);

impl Holdings {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each is readable when its worker has finished.
    pub fn workers(&self) -> impl Iterator<Item = (Waiter, BorrowedFd<'_>)> {
        self.0.iter().map(|(waiter, (_, pipe))| (*waiter, pipe.as_fd()))
    }
}

impl Sandboxes {
    /// Starts a scan. [`Sandboxes::held`] returns the answer.
    ///
    /// # Errors
    /// An unknown sandbox, or a failed fork.
    pub fn begin_hold(&mut self, id: Uuid, waiter: Waiter) -> Result<(), Failure> {
        const STEP: &str = "look for held files";
        self.running(id, STEP)?;
        let leaf = self.leaf(id, STEP)?;
        let (answer, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failure(STEP, e))?;
        let one = require_single_thread().map_err(|e| failure(STEP, e))?;
        match clone_into(&one, 0, None).map_err(|e| failure(STEP, e))? {
            Side::Parent(child) => {
                self.holdings.0.insert(waiter, (child, answer));
                Ok(())
            }
            Side::Child(forked) => {
                if let Ok(reply) = work(&forked, &leaf, &self.settings.data_dir, tell.as_fd()) {
                    let text = serde_json::to_vec(&reply).unwrap_or_default();
                    std::fs::File::from(tell).write_all(&text).ok();
                }
                exit_now(0)
            }
        }
    }

    /// The answer of a worker that has finished.
    pub fn held(&mut self, waiter: Waiter) -> Option<Result<Reply, Failure>> {
        let (child, pipe) = self.holdings.0.remove(&waiter)?;
        let mut text = Vec::new();
        std::fs::File::from(pipe).take(MAX_ANSWER).read_to_end(&mut text).ok();
        reap(&child.pidfd);
        let step = "look for held files";
        Some(serde_json::from_slice(&text).map_err(|_| failure(step, "the worker exited without an answer")))
    }
}

fn work(forked: &Forked, leaf: &Leaf, data_dir: &Path, tell: BorrowedFd<'_>) -> std::io::Result<Reply> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    process::close_all_but(forked, &[leaf.unified_fd(), tell])?;
    caps::use_all_permitted()?;
    let device = std::fs::metadata(data_dir)?.dev();
    let found = held::scan(&leaf.processes()?, device, WITHIN);
    Ok(Reply::Held { bytes: found.bytes, files: found.files, hidden: found.hidden })
}
