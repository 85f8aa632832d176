//! Gives read parts of the stdout file back to the disk.
//!
//! ```text
//! 0            floor                                      watermark
//! | given back | kept for clients that reconnect (window) |
//! ```
//!
//! Offsets do not change: the range becomes a hole. The driver calls [`found_floor`] when it begins
//! and [`trim`] after each turn. The new floor is published first; a reader that meets zeros checks
//! the floor again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use tokio::sync::watch;

use super::published::Published;
use super::tail::LINE_BYTES;

/// Minimum bytes of output that stay replayable.
pub const WINDOW_BYTES: u64 = 64 << 20;

const LOOK_BYTES: u64 = 64 * 1024;
/// Holes consist of whole blocks; a common block size.
const BLOCK_BYTES: u64 = 4096;

/// Gives back what lies more than `window` bytes before the watermark, if it is enough. Reads and
/// writes a few blocks; after an error nothing is lost, and the next call retries.
pub fn trim(stdout: &Path, published: &watch::Sender<Published>, window: u64) -> io::Result<()> {
    let (floor, watermark) = {
        let now = published.borrow();
        (now.floor, now.watermark)
    };
    let Some(floor) = next_floor(stdout, floor, watermark, window)? else { return Ok(()) };
    published.send_modify(|p| p.floor = floor);
    give_back(stdout, floor)
}

/// The floor of a file that an earlier daemon trimmed: the start of the first whole line after its
/// leading hole; 0 when it has none.
pub fn found_floor(stdout: &Path) -> io::Result<u64> {
    let file = File::open(stdout)?;
    let length = file.metadata()?.len();
    let mut at = match seek(&file, SeekFrom::Data(0)) {
        Ok(0) => return Ok(0),
        Ok(data) => data,
        // Only a hole, or empty.
        Err(rustix::io::Errno::NXIO) => return Ok(length),
        Err(e) => return Err(e.into()),
    };
    while at < length {
        let mut bytes = vec![0; LOOK_BYTES.min(length - at) as usize];
        file.read_exact_at(&mut bytes, at)?;
        if let Some(newline) = memchr::memchr(b'\n', &bytes) {
            return Ok(at + newline as u64 + 1);
        }
        at += bytes.len() as u64;
    }
    Ok(length)
}

/// The new floor; `None` while the current one suffices. It moves in steps of a window, so that a
/// busy session does this once per window of output. It is always the start of a line.
fn next_floor(stdout: &Path, floor: u64, watermark: u64, window: u64) -> io::Result<Option<u64>> {
    if watermark.saturating_sub(floor) < window.saturating_mul(2).max(BLOCK_BYTES) {
        return Ok(None);
    }
    let file = File::open(stdout)?;
    let mut to = watermark - window;
    let least = floor.max(to.saturating_sub(LINE_BYTES));
    while to > least {
        let from = to.saturating_sub(LOOK_BYTES).max(least);
        let mut bytes = vec![0; (to - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        if let Some(newline) = memchr::memrchr(b'\n', &bytes) {
            return Ok(Some(from + newline as u64 + 1).filter(|new| *new > floor));
        }
        to = from;
    }
    Ok(None)
}

/// Makes a hole below the floor, except for the newline just before it, by which
/// [`super::tail::Tail`] recognises the file. A repeated call does nothing.
fn give_back(stdout: &Path, floor: u64) -> io::Result<()> {
    let length = floor.saturating_sub(1) / BLOCK_BYTES * BLOCK_BYTES;
    if length == 0 {
        return Ok(());
    }
    let file = File::options().write(true).open(stdout)?;
    Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, length)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::sessions::stream::inotify::Hub;
    use crate::sessions::stream::read_lines::{Piece, begins_line, whole_lines};
    use crate::sessions::stream::tail::Tail;

    #[tokio::test]
    async fn the_disk_gets_it_back_and_what_is_kept_stays_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("stdout");
        let mut file = File::create(&path).expect("created");
        file.write_all("a line of output\n".repeat(100_000).as_bytes()).expect("written");
        let (end, window) = (1_700_000, 100_000);
        let blocks = || path.metadata().expect("its size").blocks() * 512;
        let before = blocks();

        assert_eq!(found_floor(&path).expect("readable"), 0);
        let published = watch::Sender::new(Published { watermark: end, ..Published::default() });
        trim(&path, &published, window).expect("trimmed");
        let floor = published.borrow().floor;
        assert!(floor <= end - window && floor > end - window - 17, "{floor}");
        assert!(begins_line(&File::open(&path).expect("opened"), floor).expect("readable"));
        trim(&path, &published, window).expect("twice is no harm");
        assert_eq!(published.borrow().floor, floor);
        give_back(&path, floor).expect("twice is no harm");
        assert!(before - blocks() >= 1_500_000, "{before} -> {}", blocks());
        assert_eq!(path.metadata().expect("its size").len(), end);

        // A newly started daemon finds a position at or before the floor where lines are whole.
        let found = found_floor(&path).expect("readable");
        assert!(found <= floor && found > floor - BLOCK_BYTES - 17 && found.is_multiple_of(17), "{found}");

        let piece = whole_lines(&File::open(&path).expect("opened"), floor, end).expect("lines");
        let Piece::Lines(kept) = piece else { panic!("short lines") };
        assert_eq!(kept, "a line of output\n".repeat(kept.len() / 17).as_bytes());
        let mut tail = Tail::open(dir.path(), floor, &Hub::start().expect("a hub")).expect("a tail");
        assert!(tail.drain().expect("the file is the same").is_some());
    }

    #[test]
    fn a_file_of_nothing_but_a_hole_has_its_floor_at_its_end() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        assert_eq!(found_floor(file.path()).expect("readable"), 0);
        file.as_file().set_len(1 << 20).expect("extended");
        assert_eq!(found_floor(file.path()).expect("readable"), 1 << 20);
    }

    #[test]
    fn it_moves_in_steps_and_only_to_lines() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let long = "x".repeat(200_000);
        file.write_all(format!("a\n{long}\nb\n").as_bytes()).expect("written");
        let next = |floor, watermark, window| next_floor(file.path(), floor, watermark, window).expect("readable");
        assert_eq!(next(0, 200_005, 200_000), None, "less than two windows");
        assert_eq!(next(0, 200_005, 50_000), Some(2), "a long line is kept whole");
        assert_eq!(next(2, 200_005, 50_000), None, "there is nothing to give");
        assert_eq!(next(0, 200_005, 2), Some(200_003));
        assert_eq!(next(0, 0, 0), None);
    }
}
