//! Giving read parts of the stdout file back to the disk.
//!
//! ```text
//! 0           floor                                     watermark
//! | given back | kept for readers that come back (window) |
//! ```
//!
//! Offsets stay what they are: the range becomes a hole. The order matters: publish the new floor
//! ([`super::reader::Published`]), then call [`give_back`]; a reader that meets zeros looks at the floor again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::lines::LINE_BYTES;

/// Bytes of output that stay replayable at least.
pub const WINDOW_BYTES: u64 = 64 << 20;

const LOOK_BYTES: u64 = 64 * 1024;
/// Holes are made of whole blocks; the common size of one.
const BLOCK_BYTES: u64 = 4096;

/// Where the floor should be now; `None` while it is fine where it is. It moves in steps of a window, so that a busy
/// session does this once in a window's worth of output. The new floor is the start of a line.
pub fn next_floor(stdout: &Path, floor: u64, watermark: u64, window: u64) -> io::Result<Option<u64>> {
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

/// Makes a hole of what lies below the floor, but for the newline just before it, by which [`super::lines::Tail`]
/// knows that nobody exchanged the file. Called again with the same floor it does nothing.
pub fn give_back(stdout: &Path, floor: u64) -> io::Result<()> {
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
    use crate::sessions::hub::Hub;
    use crate::sessions::lines::Tail;
    use crate::sessions::piece::{begins_line, whole_lines};

    #[tokio::test]
    async fn the_disk_gets_it_back_and_what_is_kept_stays_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("stdout");
        let mut file = File::create(&path).expect("created");
        file.write_all("a line of output\n".repeat(100_000).as_bytes()).expect("written");
        let (end, window) = (1_700_000, 100_000);
        let blocks = || path.metadata().expect("its size").blocks() * 512;
        let before = blocks();

        let floor = next_floor(&path, 0, end, window).expect("readable").expect("a new floor");
        assert!(floor <= end - window && floor > end - window - 17, "{floor}");
        assert!(begins_line(&File::open(&path).expect("opened"), floor).expect("readable"));
        give_back(&path, floor).expect("given back");
        give_back(&path, floor).expect("twice is no harm");
        assert!(before - blocks() >= 1_500_000, "{before} -> {}", blocks());
        assert_eq!(path.metadata().expect("its size").len(), end);

        let kept = whole_lines(&File::open(&path).expect("opened"), floor, end).expect("lines");
        assert_eq!(kept, "a line of output\n".repeat(kept.len() / 17).as_bytes());
        let mut tail = Tail::open(dir.path(), floor, &Hub::start().expect("a hub")).expect("a tail");
        assert!(tail.drain().expect("nobody exchanged the file").is_some());
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
