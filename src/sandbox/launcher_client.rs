//! Client of the launcher's socket. One connection, requests in order, made anew when the launcher was restarted.

use std::path::Path;

use uuid::Uuid;

use crate::launcher::protocol::{Create, Failure, SandboxInfo};
use crate::model::Limits;
use crate::sandbox::Sandbox;

#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// The launcher cannot be reached; it may be restarting.
    #[error("the launcher at {path} does not answer: {source}")]
    Unreachable { path: String, source: std::io::Error },
    /// The launcher refused, or a step of the set-up failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("the launcher and ashd do not speak the same protocol: {0}")]
    Protocol(String),
}

/// Cheap to clone: all clones share one connection.
#[derive(Clone, Debug)]
pub struct Launcher {}

impl Launcher {
    /// Connects and says hello. `run_dir` holds `launcher.sock` and `sandboxes/`.
    pub async fn connect(_run_dir: &Path) -> Result<Self, LauncherError> {
        unimplemented!()
    }
    /// Sets up a sandbox and connects to its init. On an error nothing is left behind.
    pub async fn create(&self, _create: Create) -> Result<Sandbox, LauncherError> {
        unimplemented!()
    }
    /// A handle of a sandbox that already runs.
    pub async fn attach(&self, _id: Uuid) -> Result<Sandbox, LauncherError> {
        unimplemented!()
    }
    pub async fn set_limits(&self, _id: Uuid, _limits: Limits) -> Result<(), LauncherError> {
        unimplemented!()
    }
    /// Kills and removes it; returns when it is gone. No such sandbox is no error.
    pub async fn destroy(&self, _id: Uuid) -> Result<(), LauncherError> {
        unimplemented!()
    }
    pub async fn list(&self) -> Result<Vec<SandboxInfo>, LauncherError> {
        unimplemented!()
    }
}
