//! What a start takes from the launcher and the gateway, and gives back.

use std::os::fd::OwnedFd;

use uuid::Uuid;

use crate::sandbox::Sandbox;
use crate::sessions::SessionError;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::context::Shared;
use crate::store::Session;
use ash_protocol::gateway::Register;
use ash_protocol::init::Listener;

pub fn cancelled() -> SessionError {
    SessionError::Invalid("the session was stopped or ended while it was starting".to_owned())
}

/// The error for the client, with the launcher's hint if it has one.
pub fn launcher_error(error: &crate::sandbox::LauncherError) -> SessionError {
    use crate::sandbox::LauncherError as L;
    match error {
        L::Unreachable { .. } => SessionError::Unavailable(format!("{error}; it is being restarted, try again")),
        L::Failed(failure) => {
            let hint = failure.hint.as_ref().map(|hint| format!(". {hint}")).unwrap_or_default();
            SessionError::Failed(format!("the sandbox could not be set up ({failure}){hint}"))
        }
        L::Protocol(_) | L::TimedOut { .. } | L::Gone | L::Freeze(_) => SessionError::Failed(error.to_string()),
    }
}

impl Shared {
    /// Opens the gateway to this sandbox, and returns the listener that it serves. Undone by
    /// `remove_sandbox`.
    pub async fn open_gateway(
        &self,
        session: &Session,
        sandbox: &Sandbox,
        token: &str,
        options: &LaunchOptions,
    ) -> Result<OwnedFd, SessionError> {
        let listener = sandbox.listener(Listener::Model).await.map_err(|e| launcher_error(&e))?;
        self.register(session, &listener, token, options).await?;
        Ok(listener)
    }

    /// Registers the session at the gateway, which may know it already.
    pub async fn register(
        &self,
        session: &Session,
        listener: &OwnedFd,
        token: &str,
        options: &LaunchOptions,
    ) -> Result<(), SessionError> {
        let listener =
            listener.try_clone().map_err(|e| SessionError::Failed(format!("the gateway's listener: {e}")))?;
        let key = self.model_key(session, options).await?;
        let register = Register {
            key,
            tenant: session.tenant.to_string(),
            agent: session.agent_name.clone(),
            ..Register::new(session.id, token)
        };
        self.gateway
            .register(register, listener)
            .await
            .map_err(|e| SessionError::Unavailable(format!("{e}; it is being restarted, try again")))
    }

    /// Undoes a start; safe for what never existed. Failures are logged and left to the next start
    /// of ashd, which destroys every sandbox without a session.
    pub async fn remove_sandbox(&self, id: Uuid) {
        if let Err(e) = self.gateway.unregister(id).await {
            tracing::warn!(ASH_SESSION = %id, "cannot unregister a sandbox from the gateway: {e}");
        }
        self.destroy_sandbox(id).await;
    }

    /// The same for a sandbox that the gateway does not know.
    pub async fn destroy_sandbox(&self, id: Uuid) {
        if let Err(e) = self.launcher.destroy(id).await {
            tracing::error!(ASH_SESSION = %id, "cannot destroy the sandbox: {e}");
        }
    }
}
