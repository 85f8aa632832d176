//! Reserves space for the database on a full disk: changes that end or remove something can still
//! be written, which frees the disk.
//!
//! ```text
//!   log   [ frames ............ | ROOM: allocated, unused ]  SQLite appends without new blocks
//!   disk  less than LEAST is free --> only changes that end or remove something (`Write::frees`)
//! ```
//!
//! The blocks after the end of the log already belong to it: a process that fills the disk cannot
//! take them, and changes that store something are refused before they use them up.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Bytes allocated after the end of the log. A stop uses about 40 KiB of them.
const ROOM: u64 = 4 << 20;
/// Free bytes of the disk below which nothing else is written.
const LEAST: u64 = 1 << 20;
/// Bytes per block in `st_blocks`.
const BLOCK: u64 = 512;

#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    log: PathBuf,
}

impl Room {
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.to_owned(), log: data_dir.join("ashd.db-wal") }
    }

    /// Whether only changes that end or remove something may be written. Otherwise reserves space
    /// for them.
    pub fn is_short(&self) -> bool {
        let Ok(disk) = statvfs(&self.dir) else { return false };
        if disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST {
            return true;
        }
        // Without it, SQLite reports a full disk only later. There is no log before the first
        // change.
        if let Err(error) = self.reserve() {
            tracing::debug!(%error, "cannot reserve disk space for the database");
        }
        false
    }

    fn reserve(&self) -> io::Result<()> {
        let log = OpenOptions::new().write(true).open(&self.log)?;
        let meta = log.metadata()?;
        if meta.blocks() * BLOCK < meta.size() + ROOM {
            fallocate(&log, FallocateFlags::KEEP_SIZE, meta.size(), ROOM)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_behind_the_log_and_its_size_stays() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path());
        assert!(!room.is_short(), "without a log");
        std::fs::write(dir.path().join("ashd.db-wal"), [1; 10_000]).unwrap();
        for _ in 0..2 {
            assert!(!room.is_short());
            let meta = std::fs::metadata(dir.path().join("ashd.db-wal")).unwrap();
            assert_eq!(meta.size(), 10_000);
            assert!((ROOM..ROOM + (1 << 20)).contains(&(meta.blocks() * BLOCK)), "{} blocks", meta.blocks());
        }
    }
}
