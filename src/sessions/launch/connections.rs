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

/// In the client's words, with the way out where the launcher knows one.
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
    /// Lets the gateway serve this sandbox, and returns the listener it serves. Its undo is `remove_sandbox`.
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

    /// Tells the gateway of this session, which may be news to it or not.
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

    /// The undo of a start, safe to call for what was never there. What cannot be undone now is said and left to the
    /// next start of ashd, which destroys every sandbox that no session claims.
    pub async fn remove_sandbox(&self, id: Uuid) {
        if let Err(e) = self.gateway.unregister(id).await {
            tracing::warn!(ASH_SESSION = %id, "the gateway still serves a sandbox that is going: {e}");
        }
        self.destroy_sandbox(id).await;
    }

    /// The same for one that the gateway was never told of.
    pub async fn destroy_sandbox(&self, id: Uuid) {
        if let Err(e) = self.launcher.destroy(id).await {
            tracing::error!(ASH_SESSION = %id, "the sandbox could not be destroyed: {e}");
        }
    }
}
