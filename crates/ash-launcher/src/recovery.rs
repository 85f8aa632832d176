//! Recovery and preparation: finds sandboxes again, undoes creations, and prepares the next
//! sandbox's uids.
//!
//! ```text
//!   records of the run directory -> table, uids kept        interrupted ones -> undone
//!   groups without a record      -> removed; until then their uids are kept
//!   uids in use by processes     -> not assigned
//! ```
//!
//! A sandbox keeps its record, and so its uids, until nothing of it is left. One that cannot be
//! removed stays in the table as dead: `List` reports it, `Destroy` tries again.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::policy::Policies;
use super::reclaiming::Reclaims;
use super::rundir::RunDir;
use super::sandboxes::{Entry, Sandboxes, failure, hinted};
use super::settings::Settings;
use super::uids::{Pair, SHARED, Uids};
use super::victims::Victims;
use ash_kernel::cgroup::Tree;
use ash_kernel::idmap::{Entry as IdEntry, Mappings};
use ash_kernel::procfs;
use ash_kernel::single::require_single_thread;
use ash_protocol::launcher::{Failure, SandboxInfo};

/// How long a failed creation waits until its remains are gone. Then this continues in the
/// background.
const UNDO_WITHIN: Duration = Duration::from_millis(200);

/// The uids of the next sandbox and the namespace for its files, prepared while idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    No,
    Ready(Pair),
    /// The preparation failed or is disabled. The next creation does the work and reports errors.
    Never,
}

impl Sandboxes {
    /// Finds the sandboxes of an earlier launcher, and removes incomplete ones.
    ///
    /// # Errors
    /// The run directory or cgroup tree cannot be read.
    pub fn recover(settings: Settings, tree: Tree, run: RunDir, policies: Policies) -> anyhow::Result<Self> {
        let (table, endings, reclaims) = (BTreeMap::new(), BTreeMap::new(), Reclaims::default());
        let (victims, holdings) = (Victims::default(), super::holding::Holdings::default());
        let (mappings, prepared) = (Mappings::default(), Prepared::No);
        let uids = Uids::open(Path::new(SHARED), settings.uid_base, settings.uid_count, &settings.run_dir)
            .map_err(|error| anyhow::anyhow!("{SHARED}: {error}"))?;
        let mut all = Self {
            settings,
            tree,
            run,
            table,
            endings,
            reclaims,
            victims,
            holdings,
            uids,
            prepared,
            policies,
            mappings,
        };
        for id in all.run.ids()? {
            let recorded = all.run.recorded(id);
            if let Some(info) = &recorded {
                all.uids.keep(info.uid, id);
            }
            match recorded {
                Some(mut info) if info.pid != 0 => {
                    let pidfd = procfs::open_process(info.pid, info.start_time)?;
                    if pidfd.is_none() {
                        tracing::warn!(ASH_SESSION = %id, "the sandbox ended while no launcher was running");
                        info.pid = 0;
                    }
                    all.table.insert(id, Entry { info, pidfd });
                }
                recorded => {
                    tracing::warn!(ASH_SESSION = %id, "removing a sandbox whose creation was interrupted");
                    all.undo(id, recorded, None);
                }
            }
        }
        all.groups_without_a_record()?;
        all.free_what_is_gone()?;
        tracing::info!(sandboxes = all.table.len(), "found");
        Ok(all)
    }

    fn groups_without_a_record(&mut self) -> anyhow::Result<()> {
        for (tenant, id) in self.tree.leaves()? {
            let known = self.table.contains_key(&id) || self.endings.contains_key(&id);
            let Some((_, leaf)) = self.tree.find(id)?.filter(|_| !known) else { continue };
            if leaf.try_remove().is_err() {
                tracing::warn!(ASH_SESSION = %id, ASH_TENANT = %tenant, "processes run in a cgroup without a record: destroy the sandbox by its id");
                for uid in leaf.processes().unwrap_or_default().into_iter().flat_map(procfs::uids_of) {
                    self.uids.keep(uid, id);
                }
            }
            self.tree.forget_tenant(&tenant);
        }
        Ok(())
    }

    /// Releases uids of sandboxes that no longer exist, left by a launcher that was killed between
    /// two steps.
    fn free_what_is_gone(&mut self) -> anyhow::Result<()> {
        let running = procfs::uids_in_use(self.settings.uid_base, self.settings.uid_count)?;
        let groups: Vec<Uuid> = self.tree.leaves()?.into_iter().map(|(_, id)| id).collect();
        let directories = self.run.ids()?;
        for id in self.uids.holders() {
            if !self.table.contains_key(&id) && !groups.contains(&id) && !directories.contains(&id) {
                self.uids.release(id);
            }
        }
        // After the release: uids of running processes are still not assigned.
        self.uids.sweep(&running)?;
        Ok(())
    }

    /// Removes everything that a creation left. Its uids are released when all of it is gone.
    /// `info`: as far as known.
    pub(super) fn undo(&mut self, id: Uuid, info: Option<SandboxInfo>, pidfd: Option<OwnedFd>) {
        if let Some(info) = info {
            self.table.insert(id, Entry { info: SandboxInfo { pid: 0, ..info }, pidfd });
        }
        let since = Instant::now();
        let mut outcome = self.begin_end(id, None);
        while outcome.is_none() && since.elapsed() < UNDO_WITHIN {
            outcome = self.step_ending(id).map(|ended| ended.outcome);
            if outcome.is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        match outcome {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::error!(ASH_SESSION = %id, %error, "the remains of a failed creation could not be removed: its uids stay reserved")
            }
            None => {
                tracing::warn!(ASH_SESSION = %id, "a failed creation is not removed yet: its uids stay reserved until then")
            }
        }
    }

    pub(super) fn take_uids(&mut self, id: Uuid) -> Result<Pair, Failure> {
        const STEP: &str = "choose uids";
        let failed = |error: std::io::Error| hinted(STEP, format!("{SHARED}: {error}"), "free space in /run");
        if let Prepared::Ready(pair) = std::mem::replace(&mut self.prepared, Prepared::No) {
            self.uids.assign(pair, id).map_err(failed)?;
            return Ok(pair);
        }
        if let Some(pair) = self.uids.take(id).map_err(failed)? {
            return Ok(pair);
        }
        // Some may belong to a launcher that no longer exists.
        self.free_what_is_gone().map_err(|error| failure(STEP, error))?;
        self.uids.take(id).map_err(failed)?.ok_or_else(|| {
            let message = format!("all {} pairs of uids are in use", self.settings.uid_count / 2);
            hinted(STEP, message, "end sandboxes, or raise uid_count in launcher.toml")
        })
    }

    /// Whether [`Sandboxes::prepare`] has work to do.
    pub fn unprepared(&self) -> bool {
        self.prepared == Prepared::No
    }

    /// Takes the uids of the next sandbox and creates their namespace. Takes 0.7 ms, so it is
    /// called while idle.
    pub fn prepare(&mut self) {
        self.prepared = Prepared::Never;
        let Ok(Some(pair)) = self.uids.take(Uuid::nil()) else { return };
        let entry = |inside| IdEntry { inside, outside: pair.0 };
        let (uid, gid) = (entry(self.settings.client_uid), entry(self.settings.client_gid));
        match require_single_thread().and_then(|one| self.mappings.prepare(&one, uid, gid)) {
            Ok(()) => self.prepared = Prepared::Ready(pair),
            Err(error) => {
                tracing::debug!(%error, "the next sandbox is not prepared");
                self.uids.release(Uuid::nil());
            }
        }
    }

    /// Reverts [`Sandboxes::prepare`], before this program ends or is replaced.
    pub fn unprepare(&mut self) {
        self.prepared = Prepared::Never;
        self.mappings = Mappings::default();
        self.uids.release(Uuid::nil());
    }
}
