//! Errors of the database, with texts for clients and admins.

use std::path::PathBuf;

use uuid::Uuid;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database error: {0}")]
    Sqlx(sqlx::Error),
    #[error("cannot migrate the database: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// Written by a newer ashd.
    #[error("{0}")]
    Newer(String),
    /// Another process has the database open.
    #[error(
        "{path} is in use by another ashd; stop it (`ashd stop`, `systemctl stop ashd`), or use another data directory (ASH_DATA_DIR)"
    )]
    InUse { path: PathBuf },
    /// The disk, or the data directory's quota, is full; nothing was written.
    #[error("the disk that holds the database is full")]
    Full,
    /// The change is made, but a power failure may undo it: writing to the disk failed.
    #[error("the disk of the database failed, the change may be lost: {0}")]
    NotOnDisk(String),
    /// The tenant has the maximum number of such rows.
    #[error("limit reached: {} {}; {}", .0.rows, .0.what, .0.way_out)]
    TooMany(super::Most),
    /// A commit for a session that the tenant does not have.
    #[error("session {0} is not in the database")]
    NoSession(Uuid),
    /// A stored value that this version cannot read.
    #[error("unreadable value in the database: {what}: {why}")]
    Unreadable { what: &'static str, why: String },
    #[error("the database's writer has stopped")]
    Closed,
    /// No free connection for 30 s.
    #[error("the database is busy; try again")]
    Busy,
}

/// SQLITE_FULL, and SQLITE_IOERR_SHMSIZE, which a full disk causes when the shared-memory file
/// grows (<https://www.sqlite.org/rescode.html>).
const FULL: [&str; 2] = ["13", "4874"];

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let full = error.as_database_error().and_then(|e| e.code()).is_some_and(|code| FULL.contains(&code.as_ref()));
        match error {
            _ if full => Self::Full,
            sqlx::Error::PoolClosed => Self::Closed,
            sqlx::Error::PoolTimedOut => Self::Busy,
            other => Self::Sqlx(other),
        }
    }
}
