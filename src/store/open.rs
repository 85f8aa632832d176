//! Opens the database: lock, connections, migrations.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};

use super::StoreError;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Concurrent read connections; further reads wait.
const READERS: u32 = 4;
/// After which an unused one of them is closed: each has a cache and prepared statements.
const UNUSED: Duration = Duration::from_secs(60);
/// Timeout for a lock of SQLite. Only a backup tool can hold one: ashd has one writer.
const BUSY: Duration = Duration::from_secs(10);
/// How long a starting ashd waits for an ending one to release the database.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// KiB of pages cached per connection, as SQLite writes it (its default is 2000). The kernel's page
/// cache holds the used pages as well; a larger cache would only let ashd grow.
const CACHE: &str = "-256";
/// Maximum bytes of the WAL file after a checkpoint.
const WAL_BYTES: &str = "16777216";

pub(super) struct Opened {
    pub readers: SqlitePool,
    pub writer: SqliteConnection,
    pub lock: Flock<std::fs::File>,
}

pub(super) async fn open(data_dir: &Path) -> Result<Opened, StoreError> {
    let path = data_dir.join("ashd.db");
    let lock = lock(data_dir.join("ashd.lock")).await?;
    // Created here, so that only ashd can read it and the files SQLite creates with the same mode.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| StoreError::Io { path: path.clone(), source })?;

    let options = SqliteConnectOptions::new()
        .filename(&path)
        .foreign_keys(true)
        .busy_timeout(BUSY)
        .journal_mode(SqliteJournalMode::Wal)
        // `durable` waits for the disk, not COMMIT.
        .synchronous(SqliteSynchronous::Normal)
        .pragma("cache_size", CACHE)
        .pragma("journal_size_limit", WAL_BYTES)
        .log_slow_statements(tracing::log::LevelFilter::Off, Duration::MAX)
        .log_statements(tracing::log::LevelFilter::Off);
    let mut writer = options.clone().connect().await?;
    migrate(&mut writer, &path, &MIGRATIONS).await?;

    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        .idle_timeout(UNUSED)
        .test_before_acquire(false)
        .connect_with(options.read_only(true))
        .await?;
    Ok(Opened { readers, writer, lock })
}

async fn lock(path: PathBuf) -> Result<Flock<std::fs::File>, StoreError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| StoreError::Io { path: path.clone(), source })?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < until => file = back,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(StoreError::InUse { path }),
            Err((_, errno)) => return Err(StoreError::Io { path, source: errno.into() }),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Migrates the database to the newest schema. Forward only: refuses an unknown version before it
/// writes anything.
pub(super) async fn migrate(conn: &mut SqliteConnection, path: &Path, migrations: &Migrator) -> Result<(), StoreError> {
    let known = migrations.iter().map(|m| m.version).max().unwrap_or(0);
    let has_table: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations')")
            .fetch_one(&mut *conn)
            .await?;
    if has_table {
        let found: i64 =
            sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations").fetch_one(&mut *conn).await?;
        if found > known {
            return Err(StoreError::Newer(format!(
                "{} has schema {found}, written by a newer ashd; this one knows schemas up to {known}. Install the newer \
                 ashd again, or put back the copy it made before it migrated ({}.before-{}); nothing was changed",
                path.display(),
                path.display(),
                known + 1,
            )));
        }
        if 0 < found && found < known {
            copy(conn, path, found + 1).await?;
        }
    }
    Ok(migrations.run_direct(None, conn, false).await?)
}

/// `<db>.before-<version>`: a copy from before the migration to that version. Replaces a copy of an
/// earlier failed attempt.
async fn copy(conn: &mut SqliteConnection, path: &Path, version: i64) -> Result<(), StoreError> {
    let to = PathBuf::from(format!("{}.before-{version}", path.display()));
    let unfinished = PathBuf::from(format!("{}.unfinished", to.display()));
    let io = |path: &Path, source| StoreError::Io { path: path.to_owned(), source };
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&unfinished, error)),
        _ => {}
    }
    sqlx::query("VACUUM INTO ?1").bind(unfinished.display().to_string()).execute(&mut *conn).await?;
    std::fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).map_err(|e| io(&unfinished, e))?;
    std::fs::File::open(&unfinished).and_then(|f| f.sync_all()).map_err(|e| io(&unfinished, e))?;
    std::fs::rename(&unfinished, &to).map_err(|e| io(&to, e))?;
    tracing::info!(copy = %to.display(), "copied the database before its migration");
    Ok(())
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

/// Moves the write-ahead log into the database and syncs it; returns whether all of it was moved.
pub(super) async fn move_log(conn: &mut SqliteConnection) -> bool {
    // One row: busy, frames in the log, frames moved
    // (<https://www.sqlite.org/pragma.html#pragma_wal_checkpoint>).
    match sqlx::query_as::<_, (i64, i64, i64)>("PRAGMA wal_checkpoint(FULL)").fetch_one(conn).await {
        Ok((busy, frames, moved)) => busy == 0 && frames == moved,
        Err(error) => {
            tracing::debug!(%error, "cannot move the log into the database");
            false
        }
    }
}

/// Closes a connection after the writer's last commit; SQLite moves the rest of the log. `false`
/// when the next start must do that.
pub(super) async fn close(conn: SqliteConnection) -> bool {
    let closed = conn.close().await;
    if let Err(error) = &closed {
        tracing::warn!(%error, "the database was not closed cleanly; the next start recovers it");
    }
    closed.is_ok()
}
