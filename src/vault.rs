//! Seals secrets of tenants in the database, with a key that is outside it.
//!
//! ```text
//!   ASH_CREDENTIAL_KEY       >  $CREDENTIALS_DIRECTORY/     >  <data dir>/credential-key (0600)
//!   (auth.credential_key)       credential_key
//!            |                         |                                 |
//!            +---- the first key seals; every existing key can unseal ---+
//! ```
//!
//! To change the key, put the new one first and keep the old one. The cipher is XChaCha20-Poly1305
//! (a random nonce of 192 bits never repeats). A sealed value is bound to its tenant and id, so a
//! row copied to another one does not open.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::config::Config;
use ash_model::TenantId;

/// First byte of every sealed value, for a later change of cipher.
const VERSION: u8 = 1;
const NONCE: usize = 24;
/// The generated key, below the data directory.
const FILE: &str = "credential-key";
/// Its name among systemd's credentials.
const SYSTEMD: &str = "credential_key";

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("cannot use the credential key {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the credential key {0} is shorter than 32 characters")]
    Short(PathBuf),
    #[error("cannot get random bytes from the kernel")]
    Random,
    /// Gives no details: a wrong key and a changed row look the same.
    #[error(
        "it was sealed with a credential key that ashd no longer has (ASH_CREDENTIAL_KEY, or {FILE} in the data directory)"
    )]
    Sealed,
}

/// Seals and unseals. Holds keys: never shown.
#[derive(Clone)]
pub struct Vault {
    ciphers: Vec<XChaCha20Poly1305>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({} keys)", self.ciphers.len())
    }
}

impl Vault {
    /// Finds the keys, and generates one if there is none.
    ///
    /// # Errors
    /// An existing key cannot be read, or none can be generated.
    pub fn open(config: &Config) -> Result<Self, VaultError> {
        let systemd = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join(SYSTEMD));
        let file = config.data_dir.join(FILE);
        let mut secrets: Vec<String> = config.auth.credential_key.iter().cloned().collect();
        for path in systemd.into_iter().chain([file.clone()]) {
            secrets.extend(read(&path)?);
        }
        if secrets.is_empty() {
            secrets.push(generate(&config.data_dir, &file)?);
        }
        Ok(Self::of(&secrets))
    }

    /// From these secrets; the first one seals. Hashing does not strengthen a secret.
    fn of(secrets: &[String]) -> Self {
        let cipher = |secret: &String| {
            let key = Sha256::new().chain_update(b"ashd credential key\0").chain_update(secret).finalize();
            let key: [u8; 32] = key.into();
            XChaCha20Poly1305::new(&key.into())
        };
        Self { ciphers: secrets.iter().map(cipher).collect() }
    }

    /// # Errors
    /// `Random`.
    pub fn seal(&self, tenant: &TenantId, id: Uuid, secret: &str) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| VaultError::Random)?;
        let bound = bound(tenant, id);
        let payload = Payload { msg: secret.as_bytes(), aad: &bound };
        let cipher = self.ciphers.first().ok_or(VaultError::Sealed)?;
        let sealed = cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| VaultError::Sealed)?;
        Ok([&[VERSION], &nonce[..], &sealed].concat())
    }

    /// # Errors
    /// `Sealed` with another key, for another tenant or id, or a changed value.
    pub fn unseal(&self, tenant: &TenantId, id: Uuid, sealed: &[u8]) -> Result<String, VaultError> {
        let (head, text) = sealed.split_at_checked(1 + NONCE).ok_or(VaultError::Sealed)?;
        let [VERSION, nonce @ ..] = head else { return Err(VaultError::Sealed) };
        let bound = bound(tenant, id);
        let opens = |cipher: &XChaCha20Poly1305| {
            cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: text, aad: &bound }).ok()
        };
        let open = self.ciphers.iter().find_map(opens).ok_or(VaultError::Sealed)?;
        String::from_utf8(open).map_err(|_| VaultError::Sealed)
    }
}

fn bound(tenant: &TenantId, id: Uuid) -> Vec<u8> {
    // The id has a fixed length, so no other pair gives the same bytes.
    [id.as_bytes().as_slice(), tenant.as_str().as_bytes()].concat()
}

fn read(path: &Path) -> Result<Option<String>, VaultError> {
    match std::fs::read_to_string(path) {
        // Value of the unit's `SetCredential=` without an admin's key.
        Ok(text) if text.trim() == "none" => Ok(None),
        Ok(text) if text.trim().len() < 32 => Err(VaultError::Short(path.to_owned())),
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(VaultError::File { path: path.to_owned(), source }),
    }
}

/// Complete and on the disk before anything is sealed with it.
fn generate(data_dir: &Path, path: &Path) -> Result<String, VaultError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|_| VaultError::Random)?;
    let secret = URL_SAFE_NO_PAD.encode(random);
    let written = || -> io::Result<()> {
        let unfinished = path.with_extension("unfinished");
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(format!("{secret}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        File::open(data_dir)?.sync_all()
    };
    written().map_err(|source| VaultError::File { path: path.to_owned(), source })?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(dir: &Path, key: Option<&str>) -> Config {
        let mut config = Config { data_dir: dir.to_owned(), ..Config::default() };
        config.auth.credential_key = key.map(str::to_owned);
        config
    }

    #[test]
    fn what_is_sealed_opens_only_for_its_own_row() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(&config(dir.path(), None)).unwrap();
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (tenant, id) = (TenantId::default_tenant(), Uuid::new_v4());
        let sealed = vault.seal(&tenant, id, "sk-ant-secret").unwrap();
        assert!(memchr::memmem::find(&sealed, b"secret").is_none());
        assert_ne!(sealed, vault.seal(&tenant, id, "sk-ant-secret").unwrap(), "a new nonce each time");
        assert_eq!(vault.unseal(&tenant, id, &sealed).unwrap(), "sk-ant-secret");
        assert!(vault.unseal(&"acme".parse().unwrap(), id, &sealed).is_err());
        assert!(vault.unseal(&tenant, Uuid::new_v4(), &sealed).is_err());
        for at in [0, 1, NONCE, NONCE + 1, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(vault.unseal(&tenant, id, &changed).is_err(), "byte {at}");
            assert!(vault.unseal(&tenant, id, &sealed[..at]).is_err(), "{at} bytes");
        }
        // The same key is found again.
        let again = Vault::open(&config(dir.path(), None)).unwrap();
        assert_eq!(again.unseal(&tenant, id, &sealed).unwrap(), "sk-ant-secret");
    }

    #[test]
    fn a_key_is_changed_without_losing_what_the_old_one_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let (tenant, id) = (TenantId::default_tenant(), Uuid::new_v4());
        let old = Vault::open(&config(dir.path(), None)).unwrap().seal(&tenant, id, "one").unwrap();
        let key = "k".repeat(32);
        let both = Vault::open(&config(dir.path(), Some(&key))).unwrap();
        let new = both.seal(&tenant, id, "two").unwrap();
        assert_eq!(both.unseal(&tenant, id, &old).unwrap(), "one");
        assert_eq!(both.unseal(&tenant, id, &new).unwrap(), "two");
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        let one = Vault::open(&config(dir.path(), Some(&key))).unwrap();
        assert!(!dir.path().join(FILE).exists(), "no key is generated if one is given");
        assert_eq!(one.unseal(&tenant, id, &new).unwrap(), "two");
        let error = one.unseal(&tenant, id, &old).unwrap_err().to_string();
        assert!(error.contains("ASH_CREDENTIAL_KEY"), "{error}");
    }

    #[test]
    fn a_key_that_is_there_and_no_key_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "short").unwrap();
        let error = Vault::open(&config(dir.path(), None)).unwrap_err().to_string();
        assert!(read(&dir.path().join("missing")).unwrap().is_none());
        std::fs::write(dir.path().join("of-the-unit"), "none").unwrap();
        assert!(read(&dir.path().join("of-the-unit")).unwrap().is_none());
        assert!(error.contains(FILE) && error.contains("32 characters"), "{error}");
    }
}
