//! A parked sandbox: confined, proved and empty before a session needs it; and the start of a
//! session in it.
//!
//! ```text
//!   park:   directories -> sandbox -> probe -> listener --> [ Parked ]
//!   claim:  limits, if different -> agent's files and gateway -> spawn -> initialize -> Live
//!              \____________________________________________________/
//!                any failure: the parked sandbox is destroyed, and the session starts cold
//! ```
//!
//! Its workspace and home are mounts of its future session's directories, so later files appear in
//! it. Only init runs, asleep in poll(2): the sandbox is not frozen and uses no processor, and ashd
//! learns of its end.

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
    /// A slot for a new sandbox.
    Empty(Slot),
    /// A parked sandbox with the session's id.
    Parked(Box<Parked>),
}

/// The Claude Code binary that a new sandbox would mount. A sandbox keeps the binary it was created
/// with, so after a change of version or file it must not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub binary: ClaudeBinary,
    /// Device, inode, time of the last change; `None` where ashd cannot see the launcher's file.
    file: Option<(u64, u64, i64, i64)>,
}

/// Preconditions of a parked sandbox. A session takes it only while they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// Its cgroup is below this tenant's.
    pub tenant: TenantId,
    program: Program,
    /// The layers it was proved to have.
    floor: Floor,
}

/// A sandbox without a session. Dropping it gives the pool's slot back but keeps the sandbox: use
/// [`Shared::unpark`].
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
    /// Whether its init runs, as far as known.
    pub fn lives(&mut self) -> bool {
        use mpsc::error::TryRecvError;
        loop {
            match self.events.try_recv() {
                Ok(SandboxEvent::Died) | Err(TryRecvError::Disconnected) => return false,
                Ok(_) => {}
                Err(TryRecvError::Empty) => {
                    // The end may not have been read yet. If the group cannot be read, the claim
                    // will find out.
                    let procs = self.sandbox.info.cgroup.unified.join("cgroup.procs");
                    return std::fs::read_to_string(procs).map_or(true, |text| !text.trim().is_empty());
                }
            }
        }
    }

    /// A session owns it from here on: no other start evicts it.
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

    /// The preconditions of a sandbox parked now.
    pub fn basis(&self, tenant: TenantId) -> Basis {
        Basis { tenant, program: self.program(), floor: self.floor() }
    }

    /// Creates a parked sandbox with the default limits of the tenant's sessions.
    ///
    /// # Errors
    /// The sandbox cannot be created or proved; nothing is left of it then.
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
        let mut events = sandbox.take_events().expect("a new sandbox has its events");
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        let report = self.proof(id, &sandbox, &mut events).await.map_err(SessionError::Failed)?;
        // Kept, so that a claim need not ask init for it.
        let listener = sandbox.listener(Listener::Model).await.map_err(|e| launcher_error(&e))?;
        Ok((sandbox, events, listener, report))
    }

    /// Destroys a parked sandbox and its directories.
    pub async fn unpark(&self, parked: Parked) {
        let id = parked.id;
        // The gateway does not know it.
        self.destroy_sandbox(id).await;
        drop(parked);
        self.remove_directory(id).await;
    }
}

impl Plan {
    /// Starts claude in a parked sandbox. The slot is in `slot` or in `live`, also on an error.
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
        // Concurrent: neither needs the other, and claude needs both.
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

    /// Applies the session's limits where they differ from the parked ones, and verifies them
    /// again.
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
