//! One running sandbox, as ashd holds it: descriptors from the launcher and a connection to its init.
//! Dropping the handle leaves the sandbox running; [`super::Launcher::destroy`] ends it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::mpsc;
use uuid::Uuid;

use crate::launcher::init_protocol::{ChildStat, Exit, Listener, SpawnSpec};
use crate::launcher::protocol::SandboxInfo;
use crate::sandbox::LauncherError;

/// What happens in a sandbox without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxEvent {
    Exited {
        child: u32,
        status: Exit,
    },
    Delivered {
        child: u32,
        message: u64,
    },
    /// init itself is gone, and with it every process of the sandbox.
    Died,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub info: Arc<SandboxInfo>,
}

impl Sandbox {
    pub fn id(&self) -> Uuid {
        self.info.id
    }
    /// Starts a process as the payload (see [`SpawnSpec`]) with these descriptors as its stdout and stderr.
    pub async fn spawn(
        &self,
        _child: u32,
        _spec: &SpawnSpec,
        _stdout: OwnedFd,
        _stderr: OwnedFd,
    ) -> Result<(), LauncherError> {
        unimplemented!()
    }
    pub async fn signal(&self, _child: u32, _signal: i32, _group: bool) -> Result<(), LauncherError> {
        unimplemented!()
    }
    /// Queues the whole file for the child's stdin; answered when queued.
    pub async fn deliver(&self, _child: u32, _message: u64, _file: OwnedFd) -> Result<(), LauncherError> {
        unimplemented!()
    }
    pub async fn stat(&self) -> Result<Vec<ChildStat>, LauncherError> {
        unimplemented!()
    }
    pub async fn listener(&self, _which: Listener) -> Result<OwnedFd, LauncherError> {
        unimplemented!()
    }
    /// The one stream of events of this handle; `None` when it was already taken.
    pub fn take_events(&self) -> Option<mpsc::UnboundedReceiver<SandboxEvent>> {
        unimplemented!()
    }
    /// Freezes every process and waits, at most 5 s, until the kernel says so; thaws again when it does not.
    pub async fn freeze(&self) -> Result<(), LauncherError> {
        unimplemented!()
    }
    pub async fn thaw(&self) -> Result<(), LauncherError> {
        unimplemented!()
    }
}
