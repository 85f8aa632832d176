//! Why the daemon does not start. Each text names the cause and, if known, the fix.

use crate::config::ConfigErrors;
use crate::gateway::client::GatewayError;
use crate::sandbox::LauncherError;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{0}\nstart it first: `systemctl start ash-launcher`, or start ashd as root, which starts its own launcher and gateway"
    )]
    Launcher(#[from] LauncherError),
    #[error(
        "{0}\nstart it first: `systemctl start ash-gateway`, or start ashd as root, which starts its own launcher and gateway"
    )]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Unconfined(#[from] ash_kernel::confine::Unconfined),
    #[error("{0}")]
    Refused(String),
}

impl BootError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// As [`BootError::io`], for a call that returns an errno.
    pub(super) fn errno<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |errno| Self::Io { what, source: errno.into() }
    }
}
