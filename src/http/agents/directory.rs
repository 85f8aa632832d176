//! Uploaded agents on disk: `<data dir>/agents/<tenant>/<name>/<version's own name>/`.
//!
//! A version is written under a temporary name, renamed into place, and then recorded. So a
//! deployment that fails changes nothing, and a session that is being created copies one whole
//! version. The previous version is kept for sessions that are copying it; older versions are
//! removed.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::AppState;
use super::super::error::ApiError;
use super::super::threads::blocking;
use super::check::Tree;
use crate::config::Config;
use crate::sessions::workspace::layout::{AGENTS, agents_of};
use crate::store::{Agent, NewAgent, Store, StoreError};
use ash_model::TenantId;

pub fn home(config: &Config, tenant: &TenantId, name: &str) -> PathBuf {
    agents_of(&config.data_dir, tenant).join(name)
}

/// Writes the tree, records it, and removes the versions it replaces.
pub async fn publish(state: &AppState, tenant: &TenantId, mut agent: NewAgent, tree: Tree) -> Result<Agent, ApiError> {
    let home = home(&state.config.now(), tenant, &agent.name);
    let fresh = home.join(format!("v-{}", Uuid::now_v7()));
    let target = fresh.clone();
    blocking(move || write(&target, &tree).map_err(|cause| ApiError::disk("the agent cannot be stored", &cause)))
        .await?;
    agent.path = fresh.to_str().map(str::to_owned).ok_or_else(|| {
        ApiError::bad_request("the data directory's path is not UTF-8, so uploaded agents cannot be recorded")
    })?;
    let _publishing = state.publishing.wait(tenant).await;
    let before = state.store.agent(tenant, &agent.name).await;
    let recorded = match before {
        Ok(before) => state.store.agent_upsert(tenant, agent).await.map(|agent| (agent, before)),
        Err(error) => Err(error),
    };
    match recorded {
        Ok((agent, before)) => {
            state.sessions.agents_changed();
            let keep = [Some(fresh), before.map(|old| PathBuf::from(old.path))];
            in_background(move || prune(&home, &keep)).await;
            Ok(agent)
        }
        Err(error) => {
            in_background(move || std::fs::remove_dir_all(&fresh)).await;
            Err(error.into())
        }
    }
}

/// Removes every version of an agent. Failures are only logged: clients no longer see the agent.
pub async fn remove(config: &Config, tenant: &TenantId, name: &str) {
    let home = home(config, tenant, name);
    in_background(move || match std::fs::remove_dir_all(&home) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    })
    .await;
}

async fn in_background(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let result = tokio::task::spawn_blocking(work).await;
    if let Ok(Err(cause)) = result {
        tracing::warn!(error = %cause, "cannot remove an old version of an agent");
    }
}

/// Creates `target` with all files of the tree, or not at all.
fn write(target: &Path, tree: &Tree) -> io::Result<()> {
    let home = target.parent().expect("a version has the agent's directory above it");
    directories().create(home)?;
    let staging = home.join(format!(".new-{}", Uuid::new_v4()));
    let result = fill(&staging, tree).and_then(|()| std::fs::rename(&staging, target));
    if result.is_err() {
        // Report the first error, not one of the clean-up.
        let _ = std::fs::remove_dir_all(&staging);
    }
    result
}

fn fill(staging: &Path, tree: &Tree) -> io::Result<()> {
    directories().create(staging)?;
    for (path, bytes) in tree {
        let file = staging.join(path);
        if let Some(above) = file.parent() {
            directories().create(above)?;
        }
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode(bytes)).open(file)?;
        file.write_all(bytes)?;
        // Before the version is recorded, so that a power failure cannot leave it with empty files. Not
        // syncfs(2): it waits for what all tenants have written.
        file.sync_all()?;
    }
    sync_directories(staging)
}

fn sync_directories(of: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    std::fs::File::open(of)?.sync_all()
}

/// Removes what interrupted deployments left: versions and agents that no row names. Run before
/// requests are served.
///
/// # Errors
/// The database cannot be read.
pub async fn sweep(config: &Config, store: &Store) -> Result<(), StoreError> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    for tenant in names(&config.data_dir.join(AGENTS)) {
        let Ok(tenant) = tenant.parse::<TenantId>() else { continue };
        for name in names(&agents_of(&config.data_dir, &tenant)) {
            let home = home(config, &tenant, &name);
            let agent = store.agent(&tenant, &name).await?;
            in_background(move || match &agent {
                None => std::fs::remove_dir_all(&home),
                Some(agent) => remove_unnamed(&home, Path::new(&agent.path)),
            })
            .await;
        }
    }
    Ok(())
}

fn directories() -> std::fs::DirBuilder {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o750);
    builder
}

/// The API has no file modes, but hooks are scripts: files that begin like a program are
/// executable.
pub fn mode(bytes: &[u8]) -> u32 {
    if bytes.starts_with(b"#!") || bytes.starts_with(b"\x7fELF") { 0o750 } else { 0o640 }
}

/// Removes the versions that are not in `keep`.
fn prune(home: &Path, keep: &[Option<PathBuf>]) -> io::Result<()> {
    for entry in std::fs::read_dir(home)? {
        let entry = entry?;
        let version = entry.file_name().to_str().is_some_and(|name| name.starts_with("v-"));
        let path = entry.path();
        if version && !keep.iter().flatten().any(|kept| *kept == path) {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Removes everything but the version of `path`. Compared by name: the data directory may have moved.
fn remove_unnamed(home: &Path, path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(home)? {
        let entry = entry?;
        if Some(entry.file_name().as_os_str()) != path.file_name() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        files.iter().map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_version_is_whole_or_absent() {
        let temp = tempfile::tempdir().unwrap();
        let home = temp.path().join("agents/default/a");
        write(&home.join("v-1"), &tree(&[("CLAUDE.md", "x"), ("hooks/run.sh", "#!/bin/sh\n")])).unwrap();
        assert_eq!(std::fs::read(home.join("v-1/CLAUDE.md")).unwrap(), b"x");
        assert_eq!(std::fs::metadata(home.join("v-1/hooks/run.sh")).unwrap().permissions().mode() & 0o777, 0o750);
        // The file system rejects this name.
        let long = "n".repeat(300);
        write(&home.join("v-2"), &tree(&[("CLAUDE.md", "x"), (&long, "y")])).unwrap_err();
        let left: Vec<_> = std::fs::read_dir(&home).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["v-1"]);
    }

    #[test]
    fn old_versions_go_and_the_one_before_stays() {
        let temp = tempfile::tempdir().unwrap();
        let home = temp.path().join("a");
        for name in ["v-1", "v-2", "v-3"] {
            write(&home.join(name), &tree(&[("CLAUDE.md", name)])).unwrap();
        }
        prune(&home, &[Some(home.join("v-3")), Some(home.join("v-2"))]).unwrap();
        assert!(!home.join("v-1").exists() && home.join("v-2").exists() && home.join("v-3").exists());
    }

    #[tokio::test]
    async fn what_interrupted_deployments_left_is_removed_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let tenant = TenantId::default_tenant();
        let kept = home(&config, &tenant, "kept");
        for made in ["v-1", "v-0", ".new-7/sub"] {
            std::fs::create_dir_all(kept.join(made)).unwrap();
        }
        std::fs::create_dir_all(home(&config, &tenant, "gone").join("v-1")).unwrap();
        // As if the data directory had another path when the agent was deployed.
        let agent =
            NewAgent { name: "kept".into(), path: "/old/agents/default/kept/v-1".into(), ..NewAgent::default() };
        store.agent_upsert(&tenant, agent).await.unwrap();
        sweep(&config, &store).await.unwrap();
        let left = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(left, ["v-1"]);
        assert!(!home(&config, &tenant, "gone").exists());
    }
}
