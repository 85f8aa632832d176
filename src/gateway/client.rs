//! ashd's side of the gateway's control socket.

use std::os::fd::OwnedFd;
use std::path::Path;

use uuid::Uuid;

use super::protocol::{Register, SessionUsage};

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("the gateway at {path} does not answer: {source}")]
    Unreachable { path: String, source: std::io::Error },
    #[error("the gateway refused: {0}")]
    Refused(String),
}

/// Cheap to clone; reconnects by itself.
#[derive(Clone, Debug)]
pub struct Gateway {}

impl Gateway {
    /// Connects to `<run_dir>/gateway.sock` and says hello.
    pub async fn connect(_run_dir: &Path) -> Result<Self, GatewayError> {
        unimplemented!()
    }
    pub async fn register(&self, _register: Register, _listener: OwnedFd) -> Result<(), GatewayError> {
        unimplemented!()
    }
    pub async fn unregister(&self, _session: Uuid) -> Result<(), GatewayError> {
        unimplemented!()
    }
    pub async fn usage(&self) -> Result<Vec<SessionUsage>, GatewayError> {
        unimplemented!()
    }
    /// Returns when the gateway's process was replaced (its sessions must be registered again).
    pub async fn restarted(&self) {
        unimplemented!()
    }
}
