//! A fork: the copy of a session's directory.

use std::os::fd::AsFd;

use uuid::Uuid;

use super::Driver;
use crate::sessions::SessionError;
use crate::sessions::claude::transcript;
use crate::sessions::launch::launcher_error;
use crate::sessions::workspace::layout::SessionDir;
use crate::store::Session;
use ash_kernel::copy::{Bounds, CopyError, Links, copy_tree, directory, everything};
use ash_model::Skipped;

impl Driver {
    /// Copies the session's files to another session's directory. The sandbox is frozen meanwhile.
    pub(super) async fn copy_to(&mut self, to: Uuid) -> Result<(Session, Skipped), SessionError> {
        self.ledger.commit(self.ledger.blank()).await?;
        if self.live.is_none() && !self.dir.is_whole() {
            let why = "The files of this session are no longer kept, so there is nothing to fork; create a new session";
            return Err(SessionError::Invalid(why.to_owned()));
        }
        let lift = match &mut self.live {
            Some(live) if !live.frozen => {
                live.freeze().await.map_err(|e| launcher_error(&e))?;
                true
            }
            _ => false,
        };
        let (from, target) = (self.dir.clone(), SessionDir::new(&self.shared.config.now().data_dir, to));
        let had_turns = self.newest > self.session.conversation_turn;
        let old = self.session.conversation;
        let limits = &self.session.limits;
        let bounds = Bounds { bytes: limits.disk_bytes, entries: limits.disk_files };
        // Busy, so that the pool does not evict it meanwhile.
        if let Some(live) = &self.live {
            live.place(true, false);
        }
        let copied =
            tokio::task::spawn_blocking(move || copy_session(&from, &target, old, to, bounds, had_turns)).await;
        self.place();
        if lift && let Some(live) = &mut self.live {
            live.thaw().await.map_err(|e| launcher_error(&e))?;
        }
        let skipped = copied.map_err(|e| SessionError::Failed(e.to_string()))??;
        Ok((self.session.clone(), skipped))
    }
}

fn copy_session(
    from: &SessionDir,
    to: &SessionDir,
    old: Uuid,
    new: Uuid,
    bounds: Bounds,
    had_turns: bool,
) -> Result<Skipped, SessionError> {
    let fail = |what: &str, e: &dyn std::fmt::Display| {
        SessionError::Failed(format!("the session could not be copied ({what}): {e}"))
    };
    to.make().map_err(|e| fail("directory", &e))?;
    crate::sessions::workspace::layout::make_dir(&to.workspace()).map_err(|e| fail("workspace", &e))?;
    let mut skipped = Skipped::default();
    for (what, within, from, to) in
        [("workspace", "", from.workspace(), to.workspace()), ("home", "/home/agent/", from.home(), to.home())]
    {
        let source = directory(&from).map_err(|e| fail(what, &e))?;
        let copied = copy_tree(source.as_fd(), &to, bounds, Links::All, everything).map_err(|e| match e {
            CopyError::TooLarge(_) | CopyError::TooMany(_) => SessionError::Invalid(format!(
                "The session's {what} cannot be copied: {e}. Delete files, or raise diskBytes or diskFiles"
            )),
            e => fail(what, &e),
        })?;
        skipped.append(copied.skipped, within);
    }
    let renamed = transcript::rename(&to.home(), old, new).map_err(|e| fail("conversation", &e))?;
    if had_turns && !renamed {
        // Normal if all turns failed before claude wrote anything.
        tracing::warn!(ASH_SESSION = %new, "the fork starts without a conversation: {old} has no record");
    }
    Ok(skipped)
}
