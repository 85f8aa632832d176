//! The first API key: makes a new daemon usable without opening it to everyone.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::BootError;
use crate::store::{ApiKey, Store};
use ash_model::{TenantId, now_ms};

/// File below the data directory; the only copy of the plaintext.
const FILE: &str = "initial-api-key";

/// Creates a key if the database has none. Writes the file before the row: after a crash between
/// the two, the next start creates another key, and no row without a known plaintext exists.
pub(super) async fn ensure(store: &Store, data_dir: &Path) -> Result<(), BootError> {
    if store.key_count().await? > 0 {
        return Ok(());
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(|why| BootError::Refused(format!("cannot get random bytes for the first API key: {why}")))?;
    let token = format!("ash_{}", URL_SAFE_NO_PAD.encode(random));
    let path = data_dir.join(FILE);
    write(data_dir, &path, &token).map_err(BootError::io(path.display().to_string()))?;
    let key = ApiKey {
        id: Uuid::new_v4(),
        tenant: TenantId::default_tenant(),
        label: "initial".to_owned(),
        hash: Sha256::digest(token.as_bytes()).into(),
        prefix: token[..8].to_owned(),
        admin: true,
        created_at: now_ms(),
    };
    store.key_insert(key).await?;
    tracing::info!(file = %path.display(), "created the first API key; this file is its only copy");
    Ok(())
}

fn write(data_dir: &Path, path: &Path, token: &str) -> std::io::Result<()> {
    let unfinished = data_dir.join(format!("{FILE}.unfinished"));
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(format!("{token}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn one_key_is_made_once_and_opens_the_door() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        ensure(&store, dir.path()).await.unwrap();
        let path = dir.path().join(FILE);
        let token = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let token = token.trim();
        assert_eq!((&token[..4], URL_SAFE_NO_PAD.decode(&token[4..]).unwrap().len()), ("ash_", 32));
        let key = store.key_by_hash(Sha256::digest(token.as_bytes()).into()).await.unwrap().unwrap();
        assert!(key.admin && key.tenant.as_str() == "default" && token.starts_with(&key.prefix));
        ensure(&store, dir.path()).await.unwrap();
        assert_eq!(store.key_count().await.unwrap(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), token);
    }
}
