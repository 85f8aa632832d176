//! Processes killed by the OOM killer: the kernel's log by sandbox. See [`ash_kernel::kmsg`].
//!
//! ```text
//!   Victims {id} -> read new lines of the log -> by uid -> those of this sandbox
//!   Create       -> read, and forget those of the uid's previous sandbox
//! ```
//!
//! The log is read only on request. A line is written before its process gets the signal, so a
//! request after a death finds it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use uuid::Uuid;

use super::sandboxes::{Answer, Sandboxes};
use ash_kernel::kmsg::{self, KernelLog};
use ash_protocol::launcher::{Failure, Reply, Victim};

/// Kills kept per sandbox. Further ones replace the newest but one.
const KEPT: usize = 16;

#[derive(Debug, Default)]
pub struct Victims {
    log: Option<KernelLog>,
    /// By the payload's uid, oldest first.
    of: BTreeMap<u32, Killed>,
    newest: Option<u32>,
}

#[derive(Debug, Default)]
struct Killed {
    all: Vec<Victim>,
    /// The last of them killed the whole sandbox: processes killed with it were not chosen.
    group: bool,
}

impl Victims {
    pub fn new(log: Option<KernelLog>) -> Self {
        Self { log, ..Self::default() }
    }

    /// For the next program, which continues to read at this position.
    pub fn log(&self) -> Option<BorrowedFd<'_>> {
        self.log.as_ref().map(AsFd::as_fd)
    }

    /// `base` and `count`: the uids of sandboxes, two for each.
    fn hear(&mut self, base: u32, count: u32) {
        let Some(log) = self.log.take() else { return };
        log.read(|line| self.line(line, base, count));
        self.log = Some(log);
    }

    fn line(&mut self, line: &str, base: u32, count: u32) {
        if kmsg::takes_its_group(line) {
            if let Some(killed) = self.newest.and_then(|uid| self.of.get_mut(&uid)) {
                killed.group = true;
            }
            return;
        }
        let Some(kill) = kmsg::parse(line) else { return };
        let Some(offset) = kill.uid.checked_sub(base).filter(|offset| *offset < count) else {
            self.newest = None;
            return;
        };
        let uid = base + offset / 2 * 2;
        self.newest = Some(uid);
        let killed = self.of.entry(uid).or_default();
        if killed.group {
            return;
        }
        if killed.all.len() == KEPT {
            killed.all.remove(KEPT - 2);
        }
        killed.all.push(Victim {
            process: kill.process,
            pid: kill.pid,
            resident_bytes: kill.resident_bytes,
            of_host: kill.of_host,
        });
    }
}

impl Sandboxes {
    /// # Errors
    /// An unknown sandbox.
    pub fn victims(&mut self, id: Uuid) -> Result<Answer, Failure> {
        let uid = self.running(id, "victims")?.info.uid;
        self.victims.hear(self.settings.uid_base, self.settings.uid_count);
        let victims = self.victims.of.get(&uid).map(|killed| killed.all.clone()).unwrap_or_default();
        Ok(Answer::plain(Reply::Victims { victims, readable: self.victims.log.is_some() }))
    }

    /// The uid is assigned to a new sandbox.
    pub(super) fn forget_victims(&mut self, uid: u32) {
        self.victims.hear(self.settings.uid_base, self.settings.uid_count);
        self.victims.of.remove(&uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, uid: u32) -> String {
        format!(
            "Memory cgroup out of memory: Killed process 7 ({name}) total-vm:9kB, anon-rss:8kB, file-rss:0kB, shmem-rss:0kB, UID:{uid} pgtables:1kB oom_score_adj:0"
        )
    }

    fn names(victims: &Victims, uid: u32) -> Vec<&str> {
        victims.of.get(&uid).map(|killed| killed.all.iter().map(|v| v.process.as_str()).collect()).unwrap_or_default()
    }

    #[test]
    fn each_to_its_own_sandbox() {
        let mut all = Victims::default();
        for (name, uid) in [("a", 1000), ("init", 1001), ("b", 1002), ("host", 999), ("other", 1010)] {
            all.line(&line(name, uid), 1000, 10);
        }
        assert_eq!((names(&all, 1000), names(&all, 1002)), (vec!["a", "init"], vec!["b"]));
        assert_eq!(all.of.len(), 2);
    }

    #[test]
    fn who_dies_with_the_group_was_not_the_one() {
        let mut all = Victims::default();
        all.line(&line("hog", 1000), 1000, 10);
        all.line("Tasks in /x/tenants/t/i are going to be killed due to memory.oom.group set", 1000, 10);
        all.line(&line("claude", 1000), 1000, 10);
        assert_eq!(names(&all, 1000), ["hog"]);
    }

    #[test]
    fn the_first_and_the_newest_are_kept() {
        let mut all = Victims::default();
        for n in 0..100 {
            all.line(&line(&n.to_string(), 1000), 1000, 10);
        }
        let kept = names(&all, 1000);
        assert_eq!((kept.len(), kept[0], kept[KEPT - 1]), (KEPT, "0", "99"));
    }
}
