//! The session of one case: created for it, and removed after it.

use serde_json::json;
use uuid::Uuid;

use crate::sessions::api::owned_session::Own;
use crate::sessions::claude::earlier_transcript::{self, Said};
use crate::sessions::driver::Request;
use crate::sessions::launch::Room;
use crate::sessions::policy::options;
use crate::sessions::{CreateSession, SessionError, Sessions};
use crate::store::{EvalCase, EvalTask, Session};
use ash_model::{RawJson, TenantId};

impl Sessions {
    /// Creates a session of the run's version under this id, with the case's earlier conversation
    /// as its own. Warm and parked sandboxes are not used: they have ids already.
    pub(super) async fn create_eval_session(
        &self,
        task: &EvalTask,
        case: &EvalCase,
        id: Uuid,
    ) -> Result<Own, SessionError> {
        let shared = &self.shared;
        shared.check_accepting()?;
        let tenant = &task.run.tenant;
        shared.check_write(tenant, 0).await?;
        // As if that version were the active one.
        let mut agent = task.agent.clone();
        agent.system_prompt.clone_from(&task.run.system_prompt);
        shared.agent_directory(&agent).await?;
        let body = CreateSession { agent: agent.name.clone(), ..CreateSession::default() };
        let (launch, _) = options::create(&agent, &body).map_err(SessionError::Invalid)?;
        let mark = json!({ "evalRunId": task.run.id, "evalCaseId": case.id });
        let session = Session { config: Some(mark.into()), ..shared.row(id, &agent, &launch).await? };
        let said = earlier_of(case.chat_history.as_ref())?;
        shared.check_memory()?;
        let room = Room::Empty(shared.admit(tenant, id).await?);
        shared.store.session_insert(&session).await?;
        shared.moved(None, session.status, true);
        if !said.is_empty() {
            let dir = shared.dir(id);
            let written = tokio::task::spawn_blocking(move || {
                dir.make().and_then(|()| earlier_transcript::write(&dir.home(), id, &said))
            });
            let written = written.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
            if let Err(e) = written {
                return Err(SessionError::Failed(format!("cannot write the earlier conversation: {e}")));
            }
        }
        self.ask(&session.into(), |reply| Request::Create { room, reply }).await.map(Own::from)
    }

    /// Ends and removes the session of a case, except its usage. A failed removal is repeated at
    /// the next start of ashd.
    pub(super) async fn remove_eval_session(&self, tenant: &TenantId, session: Uuid) {
        let removed = async {
            match self.own(tenant, session).await {
                Ok(own) => self.purge(&own).await.map(drop),
                Err(e) => Err(e),
            }
        };
        match removed.await {
            Ok(()) | Err(SessionError::NotFound) => {
                if let Err(e) = self.shared.store.eval_session_gone(tenant, session).await {
                    tracing::warn!(ASH_SESSION = %session, "cannot record the removal of an eval session: {e}");
                }
            }
            Err(e) => tracing::warn!(ASH_SESSION = %session, "cannot remove an eval session: {e}"),
        }
    }
}

fn earlier_of(history: Option<&RawJson>) -> Result<Vec<Said>, SessionError> {
    history.map_or(Ok(Vec::new()), |history| {
        let unreadable = |e| SessionError::Failed(format!("cannot read the stored chatHistory of the case: {e}"));
        serde_json::from_str(history.get()).map_err(unreadable)
    })
}
