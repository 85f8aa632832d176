//! The table of sandboxes: creates, changes and lists them. [`super::recovery`] finds them again,
//! [`super::ending`] ends them.
//!
//! ```text
//!   create: limits -> uids -> directories -> claim (record) -> cgroups -> init.sock -> setup
//!           -> record with pid
//! ```
//!
//! If a step fails, all steps before are undone, and the reply names the step. Anything that cannot
//! be removed at once keeps its record and uids, and Destroy removes it later.
//!
//! The table mirrors the run directory and the cgroup tree. A new launcher builds it from them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use uuid::Uuid;

use super::ending::Ending;
use super::holding::Holdings;
use super::policy::Policies;
use super::reclaiming::Reclaims;
use super::recovery::Prepared;
use super::rundir::RunDir;
use super::settings::Settings;
use super::setup::{self, SetupSpec, Started};
use super::uids::Uids;
use super::victims::Victims;
use ash_kernel::beneath::{self, Refused};
use ash_kernel::cgroup::{CgroupError, Leaf, Tree};
use ash_kernel::idmap::Mappings;
use ash_kernel::kmsg::KernelLog;
use ash_kernel::{procfs, trusted};
use ash_model::{Limits, now_ms};
use ash_protocol::launcher::{self, ClaudeBinary, Create, Failure, MAX_PACKET, Reply, SandboxInfo};

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

#[derive(Debug)]
pub struct Entry {
    pub info: SandboxInfo,
    /// `None` after init has ended. Cgroups and record stay until `Destroy`.
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
    pub(super) uids: Uids,
    pub(super) prepared: Prepared,
    pub(super) policies: Policies,
    pub(super) mappings: Mappings,
}

pub(super) fn failure(step: &str, message: impl ToString) -> Failure {
    Failure { step: step.to_owned(), message: message.to_string(), hint: None }
}

pub(super) fn hinted(step: &str, message: impl ToString, hint: impl ToString) -> Failure {
    Failure { hint: Some(hint.to_string()), ..failure(step, message) }
}

impl Sandboxes {
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
        let workspace = self.session_directory(id, "workspace")?;
        let home = self.session_directory(id, "home")?;
        let claude = self.claude(&create.claude)?;
        let (uid, init_uid) = self.take_uids(id)?;
        self.forget_victims(uid);
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
        // Written before anything runs, so that a launcher killed from here on leaves a record for
        // the cleanup.
        if let Err(error) = self.run.claim(&info, self.settings.client_gid) {
            // They were never in use.
            self.uids.give_back((uid, init_uid));
            return Err(failure("claim run directory", error));
        }
        let made = self.build(&mut info, workspace, home, claude);
        match made {
            Ok((pidfd, answer)) => {
                self.table.insert(id, Entry { info, pidfd: Some(pidfd) });
                Ok(answer)
            }
            Err((error, pidfd)) => {
                self.undo(id, Some(info), pidfd);
                Err(error)
            }
        }
    }

    /// The steps of `create` with lasting effects. An error includes the init if it was started.
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

    /// # Errors
    /// An unknown sandbox, or one whose init has ended.
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

    /// Writes new limits. After an error the old ones are in force.
    ///
    /// # Errors
    /// The limit or file that failed.
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
                tracing::error!(ASH_SESSION = %id, %error, "the old limits could not be restored");
            }
            return Err(error);
        }
        if let Some(entry) = self.table.get_mut(&id) {
            entry.info = new;
        }
        Ok(Answer::plain(Reply::Done))
    }

    /// The sandboxes after `after` ordered by id, as many as fit into a packet, without their setup
    /// steps.
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
        known.ok_or_else(|| hinted(step, format!("sandbox {id} does not exist"), "List shows the existing ones"))
    }

    pub(super) fn leaf(&self, id: Uuid, step: &str) -> Result<Leaf, Failure> {
        match self.tree.find(id) {
            Ok(Some((_, leaf))) => Ok(leaf),
            Ok(None) => Err(failure(step, format!("the cgroup of sandbox {id} does not exist"))),
            Err(error) => Err(failure(step, error)),
        }
    }

    fn check_limits(&self, limits: &Limits) -> Result<(), Failure> {
        ash_kernel::cgroup::limits::values(limits).map_err(limit_failure)?;
        match self.settings.ceiling.exceeded(limits) {
            Some((field, asked, ceiling)) => {
                let hint = "lower the limit, or raise [ceiling] in launcher.toml and send SIGHUP to the launcher";
                Err(hinted("check limits", format!("{field} = {asked} is above the host's ceiling {ceiling}"), hint))
            }
            None => Ok(()),
        }
    }

    fn session_directory(&self, id: Uuid, name: &str) -> Result<OwnedFd, Failure> {
        let at = format!("sessions/{id}/{name}");
        let open = || {
            let root = trusted::any_directory(&self.settings.data_dir).map_err(|why| Refused::Io(why.into()))?.0;
            // On the disk, files of a payload belong to ashd with any mode. No other user may reach
            // them.
            let session = beneath::directory(&root, Path::new(&format!("sessions/{id}")))?;
            beneath::closed(&session)?;
            let dir = beneath::directory(&session, Path::new(name))?;
            beneath::owned_by(&dir, self.settings.client_uid)?;
            Ok(dir)
        };
        open().map_err(|refused: Refused| {
            let message = format!("{}/{at} {refused}", self.settings.data_dir.display());
            let hint = format!(
                "it must belong to uid {}, and its parent directory must have mode 0700",
                self.settings.client_uid
            );
            hinted(&format!("open {name}"), message, hint)
        })
    }

    fn claude(&self, which: &ClaudeBinary) -> Result<OwnedFd, Failure> {
        let step = "open claude";
        let path = match which {
            ClaudeBinary::Configured => {
                let Some(path) = &self.settings.claude_binary else {
                    let hint = "set claude_binary in launcher.toml (--claude-binary), or install a version";
                    return Err(hinted(step, "the launcher has no configured binary", hint));
                };
                path.clone()
            }
            ClaudeBinary::Version(version) => {
                if !launcher::is_version(version) {
                    let message = format!("\"{}\" is not a version", version.escape_debug());
                    return Err(hinted(
                        step,
                        message,
                        "use 1 to 64 characters of 0-9 A-Z a-z . _ -, not starting with a dot",
                    ));
                }
                self.settings.claude_dir.join(version).join("claude")
            }
        };
        trusted::file(&path).map_err(|why| {
            let hint = why.remedy().unwrap_or_else(|| "install it: ashctl claude install".to_owned());
            hinted(step, why, hint)
        })
    }
}

fn limit_failure(error: CgroupError) -> Failure {
    failure("set limits", error)
}
