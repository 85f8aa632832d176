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

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::CtlError;
use super::output::Output;

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
        eprintln!("left out: {skipped}");
    }
    let size = std::fs::metadata(&file).map_or(0, |meta| meta.len());
    out.line(&format!(
        "{}: {} entries, {} bytes of them, {size} in the archive",
        file.display(),
        done.entries,
        done.bytes
    ))?;
    if !args.with_key && data_dir.join(KEY).exists() {
        eprintln!("Credentials of tenants stay sealed to this host; --with-key takes their key along.");
    }
    Ok(())
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
mod tests {
    use super::*;
    use sqlx::{ConnectOptions, Connection, Executor};
    use std::os::unix::fs::{PermissionsExt, symlink};

    async fn data(dir: &Path) {
        std::fs::create_dir_all(dir.join("sessions/s1/workspace/deep")).unwrap();
        std::fs::write(dir.join("sessions/s1/workspace/deep/x.txt"), "hello").unwrap();
        std::fs::write(dir.join("sessions/s1/stdout"), vec![b'y'; 3 << 20]).unwrap();
        // What was said long ago is a hole.
        let output = std::fs::File::create(dir.join("sessions/s1/output")).unwrap();
        output.set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&output, b"newest", (8 << 20) - 6).unwrap();
        symlink("/etc/passwd", dir.join("sessions/s1/workspace/link")).unwrap();
        nix::unistd::mkfifo(&dir.join("sessions/s1/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::fs::create_dir_all(dir.join("claude/1")).unwrap();
        std::fs::write(dir.join("claude/1/claude"), "not this").unwrap();
        std::fs::write(dir.join(KEY), "seal").unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join(DATABASE)).create_if_missing(true);
        let mut db = options.connect().await.unwrap();
        db.execute("PRAGMA journal_mode = WAL; CREATE TABLE sessions (id TEXT PRIMARY KEY) STRICT").await.unwrap();
        db.execute("INSERT INTO sessions VALUES ('s1'), ('s2')").await.unwrap();
        db.close().await.unwrap();
    }

    #[tokio::test]
    async fn there_and_back_again() {
        let base = tempfile::tempdir().unwrap();
        let (old, new, file) = (base.path().join("old"), base.path().join("new"), base.path().join("b.tar.gz"));
        std::fs::create_dir_all(&new).unwrap();
        data(&old).await;
        let done = write::write(&old, &file, false).await.unwrap();
        assert_eq!(done.skipped.len(), 1, "{:?}", done.skipped);
        assert!(done.skipped[0].contains("sessions/s1/fifo"), "{:?}", done.skipped);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(write::write(&old, &file, false).await, Err(CtlError::Usage(_))), "never over another one");
        let found = read::verify(&file).await.unwrap();
        assert_eq!((found.sessions, found.entries), (2, done.entries));

        std::fs::create_dir_all(new.join("sessions/older")).unwrap();
        std::fs::write(new.join(KEY), "own").unwrap();
        let kept = read::restore(&file, &new).unwrap();
        assert_eq!(std::fs::read_to_string(new.join("sessions/s1/workspace/deep/x.txt")).unwrap(), "hello");
        assert_eq!(std::fs::metadata(new.join("sessions/s1/stdout")).unwrap().len(), 3 << 20);
        assert_eq!(std::fs::read_link(new.join("sessions/s1/workspace/link")).unwrap(), Path::new("/etc/passwd"));
        let output = std::fs::metadata(new.join("sessions/s1/output")).unwrap();
        let allocated = std::os::unix::fs::MetadataExt::blocks(&output) * 512;
        assert!(output.len() == 8 << 20 && allocated < 1 << 20, "{} bytes on the disk", allocated);
        assert!(!new.join("sessions/older").exists() && kept.join("sessions/older").exists());
        assert!(!new.join("claude").exists() && !new.join(MANIFEST).exists());
        assert_eq!(std::fs::read_to_string(new.join(KEY)).unwrap(), "own", "this host's key stays");
        let left = std::fs::read_dir(base.path()).unwrap().count();
        assert_eq!(left, 3, "nothing but old, new and the archive");
    }

    #[tokio::test]
    async fn what_is_damaged_is_named_and_never_restored() {
        let base = tempfile::tempdir().unwrap();
        let (old, new, file) = (base.path().join("old"), base.path().join("new"), base.path().join("b.tar.gz"));
        data(&old).await;
        std::fs::create_dir_all(new.join("sessions/older")).unwrap();
        write::write(&old, &file, true).await.unwrap();
        let whole = std::fs::read(&file).unwrap();
        // Cut in the middle, cut before the manifest, one bit of the contents turned over.
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&whole[..]), &mut tar).unwrap();
        let at = memchr::memmem::find(&tar, b"hello").unwrap();
        tar[at] ^= 1;
        let pack = |tar: &[u8]| {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gz, tar).unwrap();
            gz.finish().unwrap()
        };
        let manifest = memchr::memmem::rfind(&tar, MANIFEST.as_bytes()).unwrap();
        let table = [
            (whole[..whole.len() / 2].to_vec(), "b.tar.gz"),
            (pack(&[&tar[..manifest - manifest % 512], &[0; 1024]].concat()), "no manifest"),
            (pack(&tar), "sessions/s1/workspace/deep/x.txt"),
        ];
        for (bytes, word) in table {
            std::fs::write(&file, bytes).unwrap();
            let error = read::verify(&file).await.unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(new.join("sessions/older").exists());
    }

    #[tokio::test]
    async fn not_while_ashd_runs() {
        let base = tempfile::tempdir().unwrap();
        let (old, file) = (base.path().join("old"), base.path().join("b.tar.gz"));
        data(&old).await;
        write::write(&old, &file, false).await.unwrap();
        let lock = std::fs::File::create(old.join("ashd.lock")).unwrap();
        let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        let error = read::restore(&file, &old).unwrap_err();
        assert!(matches!(&error, CtlError::Usage(text) if text.contains("systemctl stop")), "{error}");
        assert!(old.join("sessions/s1").exists());
    }
}
