//! The sandboxes there are: made, found again, changed, listed. Ending them is in [`super::ending`].
//!
//! ```text
//!   create: limits -> uids -> directories -> claim (record) -> cgroups -> init.sock -> set-up -> record with pid
//!   any step fails: everything before it is undone, and the reply names the step
//! ```
//!
//! The table is a view of the run directory and the cgroup tree; a new launcher builds it from them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use uuid::Uuid;

use super::ending::Ending;
use super::holding::Holdings;
use super::policy::Policies;
use super::protocol::{self, ClaudeBinary, Create, Failure, MAX_PACKET, Reply, SandboxInfo};
use super::reclaiming::Reclaims;
use super::rundir::RunDir;
use super::settings::Settings;
use super::setup::{self, SetupSpec, Started};
use super::victims::Victims;
use crate::kernel::beneath::{self, Refused};
use crate::kernel::cgroup::{CgroupError, Leaf, Tree};
use crate::kernel::idmap::Mappings;
use crate::kernel::kmsg::KernelLog;
use crate::kernel::procfs;
use crate::model::{Limits, now_ms};

/// A reply with the descriptors that travel beside it.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    pub fn plain(reply: Reply) -> Self {
        Self { reply, fds: Vec::new() }
    }
}

/// One sandbox of the table.
#[derive(Debug)]
pub struct Entry {
    pub info: SandboxInfo,
    /// `None` once init has ended; the cgroups and the record stay until `Destroy`.
    pub pidfd: Option<OwnedFd>,
}

#[derive(Debug)]
pub struct Sandboxes {
    pub settings: Settings,
    pub(super) tree: Tree,
    pub(super) run: RunDir,
    pub(super) table: BTreeMap<Uuid, Entry>,
    pub(super) endings: BTreeMap<Uuid, Ending>,
    pub(super) reclaims: Reclaims,
    pub(super) victims: Victims,
    pub(super) holdings: Holdings,
    policies: Policies,
    mappings: Mappings,
}

/// A failure without a hint.
pub(super) fn failure(step: &str, message: impl ToString) -> Failure {
    Failure { step: step.to_owned(), message: message.to_string(), hint: None }
}

fn hinted(step: &str, message: impl ToString, hint: impl ToString) -> Failure {
    Failure { hint: Some(hint.to_string()), ..failure(step, message) }
}

impl Sandboxes {
    /// Finds again what an earlier launcher made, and removes what it did not finish.
    ///
    /// # Errors
    /// A run directory or cgroup tree that cannot be read.
    pub fn recover(settings: Settings, tree: Tree, run: RunDir, policies: Policies) -> anyhow::Result<Self> {
        let (table, endings, reclaims) = (BTreeMap::new(), BTreeMap::new(), Reclaims::default());
        let (victims, holdings) = (Victims::default(), Holdings::default());
        let mappings = Mappings::default();
        let mut all = Self { settings, tree, run, table, endings, reclaims, victims, holdings, policies, mappings };
        for id in all.run.ids()? {
            match all.run.recorded(id) {
                Some(mut info) if info.pid != 0 => {
                    let pidfd = procfs::open_process(info.pid, info.start_time)?;
                    if pidfd.is_none() {
                        tracing::warn!(ASH_SESSION = %id, "the sandbox ended while no launcher was running");
                        info.pid = 0;
                    }
                    all.table.insert(id, Entry { info, pidfd });
                }
                _ => {
                    tracing::warn!(ASH_SESSION = %id, "removing a sandbox whose creation was interrupted");
                    all.undo(id, None);
                }
            }
        }
        for (tenant, id) in all.tree.leaves()? {
            let Some((_, leaf)) = all.tree.find(id)?.filter(|_| !all.table.contains_key(&id)) else { continue };
            if leaf.try_remove().is_err() {
                tracing::warn!(ASH_SESSION = %id, ASH_TENANT = %tenant, "processes run in a cgroup that has no record; destroy it by its id");
            }
            all.tree.forget_tenant(&tenant);
        }
        tracing::info!(sandboxes = all.table.len(), "found");
        Ok(all)
    }

    /// Where it is read who was killed for want of memory.
    #[must_use]
    pub fn hearing(self, log: Option<KernelLog>) -> Self {
        Self { victims: Victims::new(log), ..self }
    }

    /// # Errors
    /// The step that failed, after everything was undone.
    pub fn create(&mut self, create: &Create) -> Result<Answer, Failure> {
        let id = create.id;
        if self.endings.contains_key(&id) {
            return Err(hinted("create", format!("sandbox {id} is being ended"), "wait for the reply to Destroy"));
        }
        if self.table.contains_key(&id) {
            return Err(hinted("create", format!("sandbox {id} exists already"), "attach to it, or destroy it first"));
        }
        self.check_limits(&create.limits)?;
        let (uid, init_uid) = self.free_uids()?;
        self.forget_victims(uid);
        let workspace = self.session_directory(id, "workspace")?;
        let home = self.session_directory(id, "home")?;
        let claude = self.claude(&create.claude)?;
        let mut info = SandboxInfo {
            id,
            tenant: create.tenant.clone(),
            pid: 0,
            start_time: 0,
            uid,
            init_uid,
            created_at: now_ms(),
            limits: create.limits,
            cgroup: Default::default(),
            steps: Vec::new(),
        };
        // Written before anything runs: a launcher that is killed from here on leaves a trace to clean up by.
        self.run.claim(&info, self.settings.client_gid).map_err(|error| failure("claim run directory", error))?;
        let made = self.build(&mut info, workspace, home, claude);
        match made {
            Ok((pidfd, answer)) => {
                self.table.insert(id, Entry { info, pidfd: Some(pidfd) });
                Ok(answer)
            }
            Err((error, pidfd)) => {
                self.undo(id, pidfd);
                Err(error)
            }
        }
    }

    /// The part of `create` that leaves something behind; on an error, with the init if it was started.
    fn build(
        &mut self,
        info: &mut SandboxInfo,
        workspace: OwnedFd,
        home: OwnedFd,
        claude: OwnedFd,
    ) -> Result<(OwnedFd, Answer), (Failure, Option<OwnedFd>)> {
        let before = |step: &'static str| move |error: &dyn std::fmt::Display| (failure(step, error), None);
        let leaf = self.tree.create(&info.tenant, info.id, &info.limits).map_err(|e| before("make cgroups")(&e))?;
        info.cgroup = leaf.paths().clone();
        let init_socket = self.run.init_socket(info.id).map_err(|e| before("bind init socket")(&e))?;
        let spec = SetupSpec {
            id: info.id,
            uid: info.uid,
            init_uid: info.init_uid,
            disk_uid: self.settings.client_uid,
            disk_gid: self.settings.client_gid,
            workspace: workspace.as_fd(),
            home: home.as_fd(),
            claude: claude.as_fd(),
            init_socket: init_socket.as_fd(),
            leaf: &leaf,
            floor: &self.settings.floor,
        };
        let started = setup::start(&spec, &self.policies, &mut self.mappings).map_err(|error| (error, None))?;
        match self.finish(info, &started, &leaf) {
            Ok(answer) => Ok((started.pidfd, answer)),
            Err(error) => Err((error, Some(started.pidfd))),
        }
    }

    fn finish(&self, info: &mut SandboxInfo, started: &Started, leaf: &Leaf) -> Result<Answer, Failure> {
        info.pid = started.pid;
        info.steps.clone_from(&started.steps);
        info.start_time = procfs::start_time(info.pid).map_err(|e| failure("find the start time of init", e))?;
        self.run.record(info).map_err(|e| failure("record", e))?;
        self.answer(info, &started.pidfd, leaf)
    }

    /// Removes whatever a creation left. The undo of [`Sandboxes::build`].
    fn undo(&self, id: Uuid, pidfd: Option<OwnedFd>) {
        match self.tree.find(id) {
            Ok(Some((tenant, leaf))) => {
                if let Err(error) = leaf.remove() {
                    tracing::error!(ASH_SESSION = %id, %error, "a cgroup was left behind");
                }
                self.tree.forget_tenant(&tenant);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(ASH_SESSION = %id, %error, "cgroups cannot be searched"),
        }
        if let Some(pidfd) = pidfd {
            super::ending::reap(&pidfd);
        }
        if let Err(error) = self.run.forget(id) {
            tracing::error!(ASH_SESSION = %id, %error, "a run directory was left behind");
        }
    }

    /// # Errors
    /// No such sandbox, or one whose init has ended.
    pub fn attach(&self, id: Uuid) -> Result<Answer, Failure> {
        let entry = self.running(id, "attach")?;
        let leaf = self.leaf(id, "attach")?;
        let Some(pidfd) = &entry.pidfd else {
            let hint = "destroy it and create it again";
            return Err(hinted("attach", format!("the init of sandbox {id} has ended"), hint));
        };
        self.answer(&entry.info, pidfd, &leaf)
    }

    fn answer(&self, info: &SandboxInfo, pidfd: &OwnedFd, leaf: &Leaf) -> Result<Answer, Failure> {
        let fds = || Ok::<_, std::io::Error>(vec![pidfd.try_clone()?, leaf.freeze_file()?, leaf.events_file()?]);
        let fds = fds().map_err(|error| failure("open descriptors", error))?;
        Ok(Answer { reply: Reply::Sandbox(info.clone()), fds })
    }

    /// Writes new limits; on an error the old ones are in force.
    ///
    /// # Errors
    /// The limit or file at fault.
    pub fn set_limits(&mut self, id: Uuid, limits: &Limits) -> Result<Answer, Failure> {
        self.check_limits(limits)?;
        let old = self.running(id, "set limits")?.info.clone();
        let leaf = self.leaf(id, "set limits")?;
        let new = SandboxInfo { limits: *limits, ..old.clone() };
        let set = leaf
            .set_limits(limits)
            .map_err(limit_failure)
            .and_then(|_| self.run.record(&new).map_err(|error| failure("record", error)));
        if let Err(error) = set {
            if let Err(error) = leaf.set_limits(&old.limits) {
                tracing::error!(ASH_SESSION = %id, %error, "the old limits could not be written again");
            }
            return Err(error);
        }
        if let Some(entry) = self.table.get_mut(&id) {
            entry.info = new;
        }
        Ok(Answer::plain(Reply::Done))
    }

    /// The sandboxes behind `after` in the order of their ids, as many as fit a packet; the steps of their set-up are
    /// left out.
    pub fn list(&self, after: Option<Uuid>) -> Answer {
        let mut sandboxes = Vec::new();
        let mut left = MAX_PACKET - 1024;
        let mut more = false;
        for (_, entry) in self.table.iter().filter(|(id, _)| after.is_none_or(|after| **id > after)) {
            let info = SandboxInfo { steps: Vec::new(), ..entry.info.clone() };
            let size = serde_json::to_vec(&info).map_or(0, |text| text.len() + 1);
            if size > left {
                more = true;
                break;
            }
            left -= size;
            sandboxes.push(info);
        }
        Answer::plain(Reply::List { sandboxes, more })
    }

    pub(super) fn running(&self, id: Uuid, step: &str) -> Result<&Entry, Failure> {
        let ending = self.endings.contains_key(&id);
        let known = self.table.get(&id).filter(|_| !ending);
        known.ok_or_else(|| hinted(step, format!("there is no sandbox {id}"), "List names those there are"))
    }

    pub(super) fn leaf(&self, id: Uuid, step: &str) -> Result<Leaf, Failure> {
        match self.tree.find(id) {
            Ok(Some((_, leaf))) => Ok(leaf),
            Ok(None) => Err(failure(step, format!("the cgroup of sandbox {id} is gone"))),
            Err(error) => Err(failure(step, error)),
        }
    }

    fn check_limits(&self, limits: &Limits) -> Result<(), Failure> {
        crate::kernel::cgroup::limits::values(limits).map_err(limit_failure)?;
        match self.settings.ceiling.exceeded(limits) {
            Some((field, asked, ceiling)) => {
                let hint = "ask for less, or raise [ceiling] in launcher.toml and send the launcher SIGHUP";
                Err(hinted("check limits", format!("{field} = {asked} is above the host's ceiling {ceiling}"), hint))
            }
            None => Ok(()),
        }
    }

    fn free_uids(&self) -> Result<(u32, u32), Failure> {
        let used: BTreeSet<u32> = self.table.values().map(|entry| entry.info.uid).collect();
        free_slot(self.settings.uid_base, self.settings.uid_count, &used).ok_or_else(|| {
            let message = format!("all {} pairs of uids are in use", self.settings.uid_count / 2);
            hinted("choose uids", message, "end sandboxes, or raise uid_count in launcher.toml")
        })
    }

    fn session_directory(&self, id: Uuid, name: &str) -> Result<OwnedFd, Failure> {
        let at = format!("sessions/{id}/{name}");
        let open = || {
            let root = beneath::root(&self.settings.data_dir)?;
            let dir = beneath::directory(&root, Path::new(&at))?;
            beneath::owned_by(&dir, self.settings.client_uid)?;
            Ok(dir)
        };
        open().map_err(|refused: Refused| {
            let message = format!("{}/{at} {refused}", self.settings.data_dir.display());
            let hint = format!("it must be a directory that belongs to uid {}", self.settings.client_uid);
            hinted(&format!("open {name}"), message, hint)
        })
    }

    fn claude(&self, which: &ClaudeBinary) -> Result<OwnedFd, Failure> {
        let step = "open claude";
        let (path, opened) = match which {
            ClaudeBinary::Configured => {
                let Some(path) = &self.settings.claude_binary else {
                    let hint = "set claude_binary in launcher.toml (--claude-binary), or install a version";
                    return Err(hinted(step, "the launcher has no binary of its own", hint));
                };
                let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
                let open = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(Refused::from);
                (path.clone(), open.and_then(|file| beneath::regular(&file).map(|()| file)))
            }
            ClaudeBinary::Version(version) => {
                if !protocol::is_version(version) {
                    let message = format!("\"{}\" is not a version", version.escape_debug());
                    return Err(hinted(step, message, "1 to 64 of 0-9 A-Z a-z . _ -, not starting with a dot"));
                }
                let at = format!("claude/{version}/claude");
                let open = beneath::root(&self.settings.data_dir).and_then(|root| beneath::file(root, Path::new(&at)));
                (self.settings.data_dir.join(at), open)
            }
        };
        opened.map_err(|refused| {
            hinted(step, format!("{} {refused}", path.display()), "install it: ashctl claude install")
        })
    }
}

fn limit_failure(error: CgroupError) -> Failure {
    failure("set limits", error)
}

/// The lowest pair of uids nobody uses: payload's and init's.
fn free_slot(base: u32, count: u32, used: &BTreeSet<u32>) -> Option<(u32, u32)> {
    (0..count / 2).map(|slot| base + 2 * slot).find(|uid| !used.contains(uid)).map(|uid| (uid, uid + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_pairs_and_run_out() {
        let used = |uids: &[u32]| uids.iter().copied().collect::<BTreeSet<u32>>();
        assert_eq!(free_slot(1000, 4, &used(&[])), Some((1000, 1001)));
        assert_eq!(free_slot(1000, 4, &used(&[1000])), Some((1002, 1003)));
        assert_eq!(free_slot(1000, 4, &used(&[1002])), Some((1000, 1001)));
        assert_eq!(free_slot(1000, 4, &used(&[1000, 1002])), None);
        assert_eq!(free_slot(1000, 3, &used(&[1000])), None, "half a pair is none");
    }
}
