//! Keys of model providers, stored by tenants. The gateway uses the credential that a session
//! names; the key never enters a sandbox and is stored encrypted.
//!
//! A session's requests use the first key of: its own `extraEnv`, its credential, its agent's
//! `env`, the gateway's.

use uuid::Uuid;

use crate::sessions::claude::{self, LaunchOptions};
use crate::sessions::context::Shared;
use crate::sessions::{CreateSession, SessionError, Sessions};
use crate::store::{Credential, Session};
use ash_model::{TenantId, now_ms};

/// Types for the API that claude uses. Older versions also stored others, which no session can use.
pub const FOR_SESSIONS: [&str; 2] = ["anthropic", "custom"];

impl Sessions {
    /// Encrypts and stores the key.
    ///
    /// # Errors
    /// `Failed` when it cannot be sealed; `Store`.
    pub async fn add_credential(
        &self,
        tenant: &TenantId,
        kind: &str,
        label: String,
        key: &str,
    ) -> Result<Credential, SessionError> {
        let id = Uuid::new_v4();
        let sealed = self
            .shared
            .vault
            .seal(tenant, id, key)
            .map_err(|e| SessionError::Failed(format!("the credential: {e}")))?;
        let credential = Credential {
            id,
            tenant: tenant.clone(),
            kind: kind.to_owned(),
            label,
            sealed,
            active: true,
            created_at: now_ms(),
            last_used_at: None,
        };
        self.shared.store.credential_insert(credential.clone()).await?;
        Ok(credential)
    }
}

impl Shared {
    /// Checks the credential that a new session names.
    pub(in crate::sessions) async fn credential_for(
        &self,
        tenant: &TenantId,
        body: &CreateSession,
    ) -> Result<Option<Uuid>, SessionError> {
        let Some(named) = &body.credential_id else { return Ok(None) };
        let refused = |why: String| SessionError::Invalid(format!("credentialId: {why}"));
        let found = match Uuid::try_parse(named) {
            Ok(id) => self.store.credential(tenant, id).await?,
            Err(_) => None,
        };
        let credential = found.ok_or_else(|| refused(format!("there is no credential \"{named}\"")))?;
        if !credential.active {
            return Err(refused(format!("the credential \"{}\" is not active", credential.label)));
        }
        if !FOR_SESSIONS.contains(&credential.kind.as_str()) {
            return Err(refused(format!(
                "a session needs a credential of type {}; \"{}\" is of type {}",
                FOR_SESSIONS.join(" or "),
                credential.label,
                credential.kind
            )));
        }
        self.open(&credential)?;
        Ok(Some(credential.id))
    }

    /// The session's own model key, if it has one.
    pub(in crate::sessions) async fn model_key(
        &self,
        session: &Session,
        options: &LaunchOptions,
    ) -> Result<Option<String>, SessionError> {
        let Some(id) = options.credential else { return Ok(claude::own_key(&options.env)) };
        let gone = || {
            SessionError::Invalid(format!(
                "the credential {id} of this session was deleted; create a session with another one"
            ))
        };
        let credential = self.store.credential(&session.tenant, id).await?.ok_or_else(gone)?;
        self.open(&credential).map(Some)
    }

    fn open(&self, credential: &Credential) -> Result<String, SessionError> {
        self.vault.unseal(&credential.tenant, credential.id, &credential.sealed).map_err(|why| {
            SessionError::Failed(format!("the credential \"{}\" cannot be used: {why}", credential.label))
        })
    }
}
