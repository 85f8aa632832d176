//! `ashctl backup` and `ashctl restore`: the database and all session files in one archive that
//! carries its own checksums.
//!
//! ```text
//!   backup (ashd may run)    VACUUM INTO a copy --> ashd.db, agents/, attachments/, sessions/
//!                            --> FILE (tar, gzip); the manifest (path, size, SHA-256) is last,
//!                            so a truncated archive has none
//!   restore --verify FILE    checks every checksum and the database; writes nothing
//!   restore FILE             verifies, unpacks beside the old data, exchanges the two by rename,
//!                            and keeps the old data
//! ```
//!
//! The database is copied first, so it never refers to output that the copied files lack: ashd
//! reads later output again from the session's output file. Files that agents write during the
//! backup are copied as they are at that moment.

mod manifest;
mod read;
mod write;

pub use read::{restore as restore_files, verify};

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::CtlError;
use super::output::Output;
use super::render::printable;

/// What a backup includes. Versions of Claude Code can be installed again.
const KEPT: [&str; 4] = ["agents", "attachments", "initial-api-key", "sessions"];
/// Seals tenant credentials; included only on request.
const KEY: &str = "credential-key";
const DATABASE: &str = "ashd.db";
/// Name of the manifest in the archive.
const MANIFEST: &str = "manifest.jsonl";

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Archive to write (default: ashd-<time>.tar.gz in this directory); only its owner can read
    /// it.
    pub file: Option<PathBuf>,
    /// Include the key that seals tenant credentials, for a restore on another host.
    #[arg(long)]
    pub with_key: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    pub file: PathBuf,
    /// Only check the archive: every checksum and its database. Needs no ashd and changes nothing.
    #[arg(long)]
    pub verify: bool,
}

/// # Errors
/// [`CtlError::Usage`] when the file exists; otherwise what could not be read or written. An error
/// leaves no archive.
pub async fn backup(args: BackupArgs, data_dir: &Path, out: &Output) -> Result<(), CtlError> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let file = args.file.unwrap_or_else(|| PathBuf::from(format!("ashd-{stamp}.tar.gz")));
    let done = write::write(data_dir, &file, args.with_key).await?;
    if out.json() {
        return out
            .value(&json!({ "file": file, "entries": done.entries, "bytes": done.bytes, "skipped": done.skipped }));
    }
    for skipped in &done.skipped {
        eprintln!("skipped: {}", printable(skipped));
    }
    out.line(&format!("{}: {} entries, {} bytes, {} compressed", file.display(), done.entries, done.bytes, done.size))?;
    if !args.with_key && done.has_key {
        eprintln!(
            "The key of tenant credentials is not included: they can be used on this host only. --with-key includes it."
        );
    }
    Ok(())
}

/// Copies a database as the user of this process. [`backup`] starts it as the data directory's
/// owner.
#[derive(Debug, Args)]
pub struct CopyDatabaseArgs {
    from: PathBuf,
    to: PathBuf,
}

/// # Errors
/// The error of SQLite.
pub async fn copy_database(args: CopyDatabaseArgs) -> Result<(), CtlError> {
    write::copy_as_this_user(&args.from, &args.to).await
}

/// # Errors
/// [`CtlError::Answer`] names the first damaged entry; [`CtlError::Usage`] while ashd or sessions
/// run.
pub async fn restore(args: RestoreArgs, data_dir: &Path, out: &Output) -> Result<(), CtlError> {
    let found = read::verify(&args.file).await?;
    if !args.verify {
        let kept = read::restore(&args.file, data_dir)?;
        if !out.json() {
            eprintln!("The old data is kept in {}; remove it when you no longer need it.", kept.display());
        }
    }
    if out.json() {
        return out.value(&json!({
            "file": args.file, "entries": found.entries, "bytes": found.bytes, "sessions": found.sessions, "restored": !args.verify,
        }));
    }
    let what = if args.verify { "is intact" } else { "is restored; start ashd" };
    out.line(&format!(
        "{} {what}: {} sessions, {} entries, {} bytes",
        args.file.display(),
        found.sessions,
        found.entries,
        found.bytes
    ))
}

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> CtlError {
    let path = what.into();
    move |source| CtlError::File { path, source }
}

fn database(what: &'static str) -> impl FnOnce(sqlx::Error) -> CtlError {
    move |error| CtlError::Answer(format!("{what}: {error}"))
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
