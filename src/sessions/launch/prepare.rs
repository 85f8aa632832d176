//! A session's directories, and the agent's files in its workspace.

use super::{Plan, StepError, failed};
use crate::sessions::SessionError;
use crate::sessions::copy_tree::{Bounds, copy_tree};
use crate::sessions::paths::make_dir;

impl Plan {
    /// Directories, and the agent's files when the session does not have them yet. `mounted`: the workspace is that of a
    /// parked sandbox, empty and in its place.
    pub(super) async fn prepare(&self, mounted: bool) -> Result<(), StepError> {
        let fail = failed("prepare");
        let dir = self.dir.clone();
        let (workspace, partial) = (dir.workspace(), dir.partial());
        let made = tokio::task::spawn_blocking(move || dir.make().map(|()| dir.is_whole()));
        let present = made
            .await
            .map_err(|e| fail(e.to_string()))?
            .map_err(|e| fail(format!("{}: {e}", self.dir.root().display())))?;
        if present {
            return Ok(());
        }
        let agent = self
            .shared
            .store
            .agent(&self.session.tenant, &self.session.agent_name)
            .await
            .map_err(|e| StepError { step: "prepare", error: e.into() })?
            .ok_or_else(|| StepError {
                step: "prepare",
                error: SessionError::AgentNotFound(self.session.agent_name.clone()),
            })?;
        let bounds = Bounds { bytes: self.session.limits.disk_bytes.min(Bounds::default().bytes), ..Bounds::default() };
        let path = agent.path.clone();
        let copied = tokio::task::spawn_blocking(move || -> Result<_, SessionError> {
            let trouble = |e: &dyn std::fmt::Display| SessionError::Failed(format!("the session's workspace: {e}"));
            let refused = |e| SessionError::Failed(format!("the agent's directory {path} could not be copied: {e}"));
            if mounted {
                let copied = copy_tree(path.as_ref(), &workspace, bounds).map_err(refused)?;
                std::fs::remove_dir(&partial).map_err(|e| trouble(&e))?;
                return Ok(copied);
            }
            // Beside its place first: a workspace is whole, or not there, or (a start in a parked sandbox was cut short) has
            // this beside it.
            for old in [&workspace, &partial] {
                match std::fs::remove_dir_all(old) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(trouble(&e)),
                    _ => {}
                }
            }
            make_dir(&partial).map_err(|e| trouble(&e))?;
            let copied = copy_tree(path.as_ref(), &partial, bounds).map_err(|e| {
                let _ = std::fs::remove_dir_all(&partial);
                refused(e)
            })?;
            std::fs::rename(&partial, &workspace).map_err(|e| trouble(&e))?;
            Ok(copied)
        });
        let copied =
            copied.await.map_err(|e| fail(e.to_string()))?.map_err(|error| StepError { step: "prepare", error })?;
        if copied.skipped > 0 {
            tracing::warn!(ASH_SESSION = %self.session.id, skipped = copied.skipped, agent = %agent.name,
                "links that lead out of the agent's directory, sockets and devices were not copied");
        }
        Ok(())
    }
}
