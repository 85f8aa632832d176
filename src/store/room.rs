//! Room for the database on a disk that others have filled: what ends or removes something is still written, and the disk gets free.
//!
//! ```text
//!   log   [ frames ............ | ROOM: allocated, not used yet ]    SQLite appends there without asking the disk for blocks
//!   disk  less than LEAST is free --> only changes that end or remove something are written (`Write::frees`)
//! ```
//!
//! The blocks behind the end of the log are the log's already: a process that fills the disk cannot take them, however often it tries,
//! and changes that store something are refused before they use them up.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Bytes that are allocated behind the end of the log. A stop takes about 40 KiB of them.
const ROOM: u64 = 4 << 20;
/// Free bytes of the disk below which nothing else is written.
const LEAST: u64 = 1 << 20;
/// Bytes of a block as `st_blocks` counts them.
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

    /// Whether only what ends or removes something may be written. As long as it is not so, room for that is kept.
    pub fn is_short(&self) -> bool {
        let Ok(disk) = statvfs(&self.dir) else { return false };
        if disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST {
            return true;
        }
        // Without it a full disk is only told later, by SQLite. There is no log before the first change.
        if let Err(error) = self.reserve() {
            tracing::debug!(%error, "no room is kept for the database");
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
