//! A session's directories, and the agent's files in its workspace.

use std::os::fd::AsFd;

use super::{Plan, StepError, failed};
use crate::sessions::SessionError;
use crate::sessions::workspace::layout::make_dir;
use ash_kernel::copy::{Bounds, CopyError, Links, copy_tree};

impl Plan {
    /// Creates the directories, and copies the agent's files if the session lacks them. `mounted`:
    /// the workspace is that of a parked sandbox, empty and mounted.
    pub(super) async fn prepare(&self, mounted: bool) -> Result<(), StepError> {
        let fail = failed("prepare");
        let dir = self.dir.clone();
        let (workspace, partial) = (dir.workspace(), dir.partial());
        let made = tokio::task::spawn_blocking(move || dir.make().map(|()| dir.is_whole()));
        let present =
            made.await.map_err(|e| fail(e.to_string()))?.map_err(|e| fail(format!("the session's directory: {e}")))?;
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
        let source = self.shared.agent_directory(&agent).await.map_err(|error| StepError { step: "prepare", error })?;
        let name = agent.name.clone();
        let dir = self.dir.clone();
        let copied = tokio::task::spawn_blocking(move || -> Result<_, SessionError> {
            let trouble = |e: &dyn std::fmt::Display| SessionError::Failed(format!("the session's workspace: {e}"));
            let refused = |e| not_copied(&name, &e);
            if mounted {
                let copied =
                    copy_tree(source.as_fd(), &workspace, bounds, Links::Inside, source.takes()).map_err(refused)?;
                dir.note_install(&workspace).map_err(|e| trouble(&e))?;
                std::fs::remove_dir(&partial).map_err(|e| trouble(&e))?;
                return Ok(copied);
            }
            // Copied to a temporary directory first: a workspace is whole or missing, or (an
            // interrupted start in a parked sandbox) has this directory beside it.
            for old in [&workspace, &partial] {
                match std::fs::remove_dir_all(old) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(trouble(&e)),
                    _ => {}
                }
            }
            make_dir(&partial).map_err(|e| trouble(&e))?;
            let copied = copy_tree(source.as_fd(), &partial, bounds, Links::Inside, source.takes()).map_err(|e| {
                let _ = std::fs::remove_dir_all(&partial);
                refused(e)
            })?;
            dir.note_install(&partial).map_err(|e| trouble(&e))?;
            std::fs::rename(&partial, &workspace).map_err(|e| trouble(&e))?;
            Ok(copied)
        });
        let copied =
            copied.await.map_err(|e| fail(e.to_string()))?.map_err(|error| StepError { step: "prepare", error })?;
        if !copied.skipped.is_empty() {
            let first = copied.skipped.entries.first().map(|entry| format!("{}: {}", entry.path, entry.reason));
            tracing::warn!(ASH_SESSION = %self.session.id, skipped = copied.skipped.count(), first, agent = %agent.name,
                "some entries of the agent's directory were not copied; the deployment's response lists them");
        }
        Ok(())
    }
}

/// The deployer can change the mode of unreadable files.
fn not_copied(agent: &str, cause: &CopyError) -> SessionError {
    match cause {
        CopyError::At { path, source } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            let why =
                format!("the user that ashd runs as may not read \"{path}\" in it (chmod -R o+rX makes it readable)");
            SessionError::AgentDirectoryRefused { agent: agent.to_owned(), why }
        }
        cause => SessionError::Failed(format!("the files of agent \"{agent}\" could not be copied: {cause}")),
    }
}
