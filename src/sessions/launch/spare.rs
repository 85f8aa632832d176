//! A sandbox that is confined, proved and empty before anybody asked for it, and the start of a session in it.
//!
//! ```text
//!   park:   directories -> sandbox -> probe -> listener --> [ Parked ]
//!   claim:  limits, where the session's differ -> agent's files and gateway -> spawn -> initialize -> Live
//!              \________________________________________________________/
//!                whatever fails here: the parked one is destroyed, and the session starts from nothing
//! ```
//!
//! Its workspace and home are mounts of the directories of the session it will become, so what is put there later appears
//! in it. Only its init runs, which sleeps in poll(2): it is not frozen, uses no processor, and its death is told.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::steps::{StepError, Steps, failed};
use super::{Plan, cancelled, launcher_error};
use crate::pool::Slot;
use crate::sandbox::confinement::{Floor, Report};
use crate::sandbox::{Sandbox, SandboxEvent};
use crate::sessions::SessionError;
use crate::sessions::claude::process_record::ProcessRecord;
use crate::sessions::context::Shared;
use crate::sessions::launch::running::Live;
use ash_model::{SandboxState, TenantId};
use ash_protocol::init::Listener;
use ash_protocol::launcher::{ClaudeBinary, Create, SandboxInfo};

/// Where a session starts.
#[derive(Debug)]
pub enum Room {
    /// There may be a sandbox.
    Empty(Slot),
    /// There is one, of the session's id.
    Parked(Box<Parked>),
}

/// The Claude Code that a sandbox made now would hold. What is mounted in a sandbox stays what it was, so one that was
/// made before the version was changed, or the file replaced, must not be handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub binary: ClaudeBinary,
    /// Device, inode, time of the last change; `None` where ashd cannot see the file that the launcher opens.
    file: Option<(u64, u64, i64, i64)>,
}

/// What a parked sandbox was made upon. A session takes it only while all of it is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// Its cgroup stands below this tenant's.
    pub tenant: TenantId,
    program: Program,
    /// What it was proved to be confined by.
    floor: Floor,
}

/// A sandbox without a session. Dropping it gives the pool's slot back and leaves the sandbox: [`Shared::unpark`].
#[derive(Debug)]
pub struct Parked {
    pub id: Uuid,
    pub basis: Basis,
    sandbox: Sandbox,
    events: mpsc::UnboundedReceiver<SandboxEvent>,
    slot: Slot,
    listener: OwnedFd,
    report: Report,
}

impl Parked {
    /// Whether its init runs, as far as was heard.
    pub fn lives(&mut self) -> bool {
        use mpsc::error::TryRecvError;
        loop {
            match self.events.try_recv() {
                Ok(SandboxEvent::Died) | Err(TryRecvError::Disconnected) => return false,
                Ok(_) => {}
                Err(TryRecvError::Empty) => {
                    // The end may not have been read yet; a group that cannot be read is left to the claim.
                    let procs = self.sandbox.info.cgroup.unified.join("cgroup.procs");
                    return std::fs::read_to_string(procs).map_or(true, |text| !text.trim().is_empty());
                }
            }
        }
    }

    /// It is a session's from here on: no other one's start makes it leave.
    pub fn taken(&self) {
        self.slot.set(SandboxState::Warming, false);
    }
}

impl Shared {
    pub fn program(&self) -> Program {
        let config = self.config.now();
        let binary = match &config.claude.binary {
            Some(_) => ClaudeBinary::Configured,
            None => ClaudeBinary::Version(config.claude.version.clone()),
        };
        Program { binary, file: mark(&config.claude.program()) }
    }

    /// What a sandbox that is parked now stands upon.
    pub fn basis(&self, tenant: TenantId) -> Basis {
        Basis { tenant, program: self.program(), floor: self.floor() }
    }

    /// Makes one, with the limits that a session of the tenant has when nobody says anything else.
    ///
    /// # Errors
    /// Whatever keeps a sandbox from being made and proved; nothing is left of it then.
    pub async fn park(
        &self,
        id: Uuid,
        basis: Basis,
        slot: Slot,
        cancel: &CancellationToken,
    ) -> Result<Parked, SessionError> {
        match self.park_steps(id, &basis, cancel).await {
            Ok((sandbox, events, listener, report)) => {
                slot.set(SandboxState::Warm, false);
                Ok(Parked { id, basis, sandbox, events, slot, listener, report })
            }
            Err(e) => {
                self.destroy_sandbox(id).await;
                self.remove_directory(id).await;
                Err(e)
            }
        }
    }

    async fn park_steps(
        &self,
        id: Uuid,
        basis: &Basis,
        cancel: &CancellationToken,
    ) -> Result<(Sandbox, mpsc::UnboundedReceiver<SandboxEvent>, OwnedFd, Report), SessionError> {
        let limits = self.levels_of(&basis.tenant, None, None).await?.effective();
        let dir = self.dir(id);
        let made = tokio::task::spawn_blocking(move || dir.make_empty()).await;
        let trouble = |e: &dyn std::fmt::Display| SessionError::Failed(format!("its directory: {e}"));
        made.map_err(|e| trouble(&e))?.map_err(|e| trouble(&e))?;
        let create = Create { id, tenant: basis.tenant.clone(), limits, claude: basis.program.binary.clone() };
        let sandbox = self.launcher.create(create).await.map_err(|e| launcher_error(&e))?;
        let mut events = sandbox.take_events().expect("a new sandbox's events were taken by nobody");
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        let report = self.proof(id, &sandbox, &mut events).await.map_err(SessionError::Failed)?;
        // Kept, so that a claim need not ask init for it.
        let listener = sandbox.listener(Listener::Model).await.map_err(|e| launcher_error(&e))?;
        Ok((sandbox, events, listener, report))
    }

    /// Destroys a parked sandbox and everything it had.
    pub async fn unpark(&self, parked: Parked) {
        let id = parked.id;
        // The gateway was never told of it.
        self.destroy_sandbox(id).await;
        drop(parked);
        self.remove_directory(id).await;
    }
}

impl Plan {
    /// Starts claude in a sandbox that is parked. Whose slot it is, is in `slot` or in `live`, also on an error.
    pub(super) async fn parked_steps(
        &self,
        parked: Parked,
        slot: &mut Option<Slot>,
        live: &mut Option<Live>,
        steps: &mut Steps,
    ) -> Result<(), StepError> {
        let Parked { sandbox, events, slot: own, listener, report, .. } = parked;
        let own = slot.insert(own);
        own.set(SandboxState::Warming, false);
        let sandbox = self.with_own_limits(sandbox, report).await?;
        steps.done("parked");
        self.check_cancelled("parked")?;
        let record = ProcessRecord { token: ProcessRecord::new_token(), ..ProcessRecord::default() };
        // Neither needs the other, and claude needs both.
        let (files, gateway) = tokio::join!(
            self.prepare(true),
            self.shared.register(&self.session, &listener, &record.token, &self.options)
        );
        files?;
        gateway.map_err(|error| StepError { step: "gateway", error })?;
        steps.done("prepare and gateway");
        self.check_cancelled("prepare")?;
        let slot = slot.take().ok_or_else(|| failed("parked")("no slot".to_owned()))?;
        let live = live.insert(Live::new(sandbox, events, slot, listener, record));
        live.parked = true;
        self.scripts(live, steps).await?;
        self.start_claude(live, steps).await
    }

    /// Puts the session's limits in force where they differ from those it was parked with, and judges it again by them.
    async fn with_own_limits(&self, mut sandbox: Sandbox, report: Report) -> Result<Sandbox, StepError> {
        let (id, limits) = (self.session.id, self.session.limits);
        if sandbox.info.limits == limits {
            return Ok(sandbox);
        }
        let fail = failed("limits");
        self.shared.launcher.set_limits(id, limits).await.map_err(|e| fail(e.to_string()))?;
        sandbox.info = Arc::new(SandboxInfo { limits, ..SandboxInfo::clone(&sandbox.info) });
        self.shared.judge_again(id, &sandbox.info, report).await.map_err(fail)?;
        Ok(sandbox)
    }
}

fn mark(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let data = path.metadata().ok()?;
    Some((data.dev(), data.ino(), data.mtime(), data.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ash_model::Layer;

    #[test]
    fn a_program_that_was_replaced_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claude");
        assert_eq!(mark(&path), None);
        std::fs::write(&path, "one").unwrap();
        let first = mark(&path);
        assert_eq!(first, mark(&path));
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_ne!(first, mark(&path));
    }

    #[test]
    fn whatever_differs_makes_another_basis() {
        let version = |v: &str| Program { binary: ClaudeBinary::Version(v.to_owned()), file: None };
        let floor = Floor { layers: Layer::ALL.to_vec(), landlock_abi: 2 };
        let basis = Basis { tenant: TenantId::default_tenant(), program: version("1"), floor: floor.clone() };
        assert_eq!(basis, basis.clone());
        let tenant: TenantId = "other".to_owned().try_into().unwrap();
        assert_ne!(basis, Basis { tenant, ..basis.clone() });
        assert_ne!(basis, Basis { program: version("2"), ..basis.clone() });
        let replaced = Program { file: Some((1, 2, 3, 4)), ..version("1") };
        assert_ne!(basis, Basis { program: replaced, ..basis.clone() });
        assert_ne!(basis, Basis { floor: Floor { landlock_abi: 3, ..floor }, ..basis.clone() });
    }
}
