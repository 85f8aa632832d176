//! `ashctl backup` and `ashctl restore`: the database and the files of all sessions in one archive that proves itself.
//!
//! ```text
//!   backup, while ashd runs:   VACUUM INTO a copy --> ashd.db, then agents/, attachments/, sessions/ --> FILE (tar, gzip)
//!                              the manifest (path, size, SHA-256 of each) comes last: a cut archive has none
//!   restore --verify FILE:     every sum again, the database's own check; nothing is written
//!   restore FILE:              verified, unpacked beside the old data, exchanged for it by rename; the old data is kept
//! ```
//!
//! The database is copied first, so it never knows of output that the copied files lack: what came after it is read again
//! from the session's own file. Files that an agent is writing just then are copied as they are at that moment.

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

/// What is below the data directory and belongs into a backup. Versions of Claude Code do not: they are installed again.
const KEPT: [&str; 4] = ["agents", "attachments", "initial-api-key", "sessions"];
/// Seals the credentials of tenants; only on request.
const KEY: &str = "credential-key";
const DATABASE: &str = "ashd.db";
/// Name of the manifest in the archive.
const MANIFEST: &str = "manifest.jsonl";

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to write it (default: ashd-<time>.tar.gz here). It is readable by its owner alone.
    pub file: Option<PathBuf>,
    /// Also the key that credentials of tenants are sealed with, for a restore on another host.
    #[arg(long)]
    pub with_key: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    pub file: PathBuf,
    /// Only check the archive: every checksum, and the database in it. Needs no ashd and changes nothing.
    #[arg(long)]
    pub verify: bool,
}

/// # Errors
/// [`CtlError::Usage`] when the file is there already; otherwise what could not be read or written. Nothing is left then.
pub async fn backup(args: BackupArgs, data_dir: &Path, out: &Output) -> Result<(), CtlError> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let file = args.file.unwrap_or_else(|| PathBuf::from(format!("ashd-{stamp}.tar.gz")));
    let done = write::write(data_dir, &file, args.with_key).await?;
    if out.json() {
        return out
            .value(&json!({ "file": file, "entries": done.entries, "bytes": done.bytes, "skipped": done.skipped }));
    }
    for skipped in &done.skipped {
        eprintln!("left out: {}", printable(skipped));
    }
    out.line(&format!(
        "{}: {} entries, {} bytes of them, {} in the archive",
        file.display(),
        done.entries,
        done.bytes,
        done.size
    ))?;
    if !args.with_key && done.has_key {
        eprintln!("Credentials of tenants stay sealed to this host; --with-key takes their key along.");
    }
    Ok(())
}

/// Copies the database of one path to another, as the user of this process. [`backup`] starts it as the owner of the data directory.
#[derive(Debug, Args)]
pub struct CopyDatabaseArgs {
    from: PathBuf,
    to: PathBuf,
}

/// # Errors
/// What SQLite says.
pub async fn copy_database(args: CopyDatabaseArgs) -> Result<(), CtlError> {
    write::copy_as_this_user(&args.from, &args.to).await
}

/// # Errors
/// [`CtlError::Answer`] names the first entry that is not as it was written; [`CtlError::Usage`] while ashd or sessions run.
pub async fn restore(args: RestoreArgs, data_dir: &Path, out: &Output) -> Result<(), CtlError> {
    let found = read::verify(&args.file).await?;
    if !args.verify {
        let kept = read::restore(&args.file, data_dir)?;
        if !out.json() {
            eprintln!("What was there is kept in {}; remove it when you are content.", kept.display());
        }
    }
    if out.json() {
        return out.value(&json!({
            "file": args.file, "entries": found.entries, "bytes": found.bytes, "sessions": found.sessions, "restored": !args.verify,
        }));
    }
    let what = if args.verify { "is whole" } else { "is restored; start ashd again" };
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
