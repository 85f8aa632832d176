//! Automatic removal, so that nothing grows forever.
//!
//! | what | when |
//! |---|---|
//! | directory of an ended session | `[sessions] keep_ended` after its end; its rows stay |
//! | directory without a row (warm sandbox, interrupted creation) | at the next start |
//! | an interrupted removal | at the next start |
//!
//! A clock that jumps ahead makes nothing old ([`past_ms`]). A directory is renamed before its
//! removal: a client sees all files of a session, or an error that they are gone.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::sessions::context::Shared;
use crate::sessions::workspace::remove_tree::remove_tree;
use ash_model::past_ms;
use ash_observe::tasks;

/// Longest interval of checks for sessions that ended long enough ago.
const LOOK: Duration = Duration::from_secs(3600);
/// Shortest interval, for any `keep_ended`.
const LOOK_AT_MOST: Duration = Duration::from_secs(1);
/// Prefix of a directory that is being removed.
const GOING: &str = ".removing-";

impl Shared {
    /// Starts the cleaning. Call it before anything new is created: an existing directory without a
    /// row belongs to no session.
    pub fn keep_clean(self: &Arc<Self>) {
        let sessions = self.config.now().data_dir.join("sessions");
        let found = match directories(&sessions) {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!("cannot search {} for left-over directories: {e}", sessions.display());
                Vec::new()
            }
        };
        let shared = Arc::clone(self);
        let mut found = Some(found);
        tasks::spawn_restarting("cleaning", move || {
            let (shared, found) = (Arc::clone(&shared), found.take());
            async move {
                shared.remove_orphans(found.unwrap_or_default()).await;
                loop {
                    let keep = Duration::from_millis(shared.config.now().sessions.keep_ended_ms);
                    shared.remove_ended(keep).await;
                    tokio::time::sleep((keep / 4).clamp(LOOK_AT_MOST, LOOK)).await;
                }
            }
        });
    }

    async fn remove_orphans(&self, found: Vec<(PathBuf, Option<Uuid>)>) {
        for (path, id) in found {
            if let Some(id) = id {
                match self.store.session_of_any_tenant(id).await {
                    Ok(None) => {}
                    Ok(Some(_)) => continue,
                    Err(e) => {
                        // A read error does not mean that the row is gone.
                        tracing::warn!(ASH_SESSION = %id, "cannot read whether the session's directory is still needed: {e}");
                        continue;
                    }
                }
                tracing::info!(ASH_SESSION = %id, ASH_EVENT = "orphan-directory", "removing a directory without a session");
            }
            self.remove(path).await;
        }
    }

    async fn remove_ended(&self, keep: Duration) {
        let before = past_ms().saturating_sub(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
        let ended = match self.store.sessions_ended_before(before).await {
            Ok(ended) => ended,
            Err(e) => {
                tracing::warn!("cannot read which sessions ended long ago: {e}");
                return;
            }
        };
        for id in ended {
            let dir = self.dir(id).root().to_owned();
            // Most were removed by an earlier check: their rows stay.
            if tokio::fs::try_exists(&dir).await.unwrap_or(false) {
                tracing::info!(ASH_SESSION = %id, ASH_EVENT = "files-removed", "removing the files of an ended session");
                self.remove(dir).await;
                self.storage.removed(id);
            }
        }
    }

    /// Removes the directory of a session that no longer exists. A failed removal is repeated at
    /// the next start.
    pub async fn remove_directory(&self, id: Uuid) {
        self.remove(self.dir(id).root().to_owned()).await;
        self.storage.removed(id);
    }

    async fn remove(&self, path: PathBuf) {
        let removed = tokio::task::spawn_blocking({
            let path = path.clone();
            move || take_away(&path)
        });
        if let Err(e) = removed.await.unwrap_or_else(|e| Err(io::Error::other(e))) {
            tracing::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

/// Renames first, then removes.
fn take_away(path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with(GOING) {
        return remove_tree(path);
    }
    let going = path.with_file_name(format!("{GOING}{name}"));
    match std::fs::rename(path, &going) {
        Ok(()) => remove_tree(&going),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Not even a rename is possible (disk full): removes it in place.
        Err(_) => remove_tree(path),
    }
}

/// Directories of sessions (with their ids) and interrupted removals (without). Other entries are
/// ignored.
fn directories(sessions: &Path) -> io::Result<Vec<(PathBuf, Option<Uuid>)>> {
    let entries = match std::fs::read_dir(sessions) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) else { continue };
        if name.starts_with(GOING) {
            found.push((entry.path(), None));
        } else if let Ok(id) = Uuid::try_parse(name) {
            found.push((entry.path(), Some(id)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_like_a_session_is_looked_at() {
        let temp = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        for name in [id.to_string(), format!("{GOING}{id}"), "lost+found".to_owned(), "notes".to_owned()] {
            std::fs::create_dir(temp.path().join(name)).unwrap();
        }
        std::fs::write(temp.path().join(Uuid::new_v4().to_string()), "a file").unwrap();
        let mut found: Vec<_> = directories(temp.path()).unwrap().into_iter().map(|(_, id)| id).collect();
        found.sort();
        assert_eq!(found, [None, Some(id)]);
        assert!(directories(&temp.path().join("missing")).unwrap().is_empty());
        // An earlier removal of the same name may exist, empty or not.
        std::fs::write(temp.path().join(format!("{GOING}{id}/rest")), "").unwrap();
        take_away(&temp.path().join(id.to_string())).unwrap();
        take_away(&temp.path().join(format!("{GOING}{id}"))).unwrap();
        assert!(directories(temp.path()).unwrap().is_empty());
    }
}
