//! The tail of a session's stdout file: whole lines from an offset on, woken by inotify.
//!
//! ```text
//!            offset             scanned                 length of the file
//!  | consumed | no newline in here | not looked at yet    |
//!  +----------+--------------------+----------------------+
//!             next_batch() returns [offset, one past the last newline):
//!             at most 256 KiB, or one longer line
//! ```
//!
//! The payload holds that file's descriptor and is hostile. Between two batches only the two
//! numbers are kept and, of a line longer than [`WHOLE_BYTES`], what [`super::abridge`] keeps of
//! it. An endless line costs the payload's disk and no memory here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::abridge::{Abridger, Bounds};
use super::inotify::{Hub, Watch};
use crate::sessions::claude::omitted::LONG_LINE;

/// Bytes of one batch, unless a single line is longer.
pub const BATCH_BYTES: u64 = 256 << 10;
/// Bytes of the longest line that is held in memory, parsed and stored unchanged. The longest seen
/// from claude is 1.34 MB (a picture). A longer one is abridged for the history and the timeline;
/// streams carry all of it.
pub const WHOLE_BYTES: u64 = 4 << 20;
/// Bytes of the longest accepted line. The API takes messages of up to 50 MiB, but claude does not
/// repeat them. Above it: [`TailError::TooLong`].
pub const LINE_BYTES: u64 = 32 << 20;

/// Why a session's output cannot be followed further. Caused by the payload or the disk.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("the output file {path} cannot be {act}: {source}")]
    Io { path: PathBuf, act: &'static str, source: io::Error },
    #[error("the output file was truncated to {length} bytes after {offset} were read")]
    Truncated { length: u64, offset: u64 },
    #[error("the output file was overwritten: no line ends at byte {offset} any more")]
    Overwritten { offset: u64 },
    #[error(
        "a line of claude's output is longer than {} MiB (it begins at byte {offset} of the output file), so its process was \
         ended. Resume the session to start a new one, and limit the output of each tool call.",
        LINE_BYTES >> 20
    )]
    TooLong { offset: u64 },
}

/// Whole lines of the file, contiguous, or one abridged line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Offset of the first byte in the file.
    pub start: u64,
    /// Offset one past the last byte.
    end: u64,
    /// Ends with a newline.
    pub bytes: Bytes,
    /// One abridged line; `bytes` is empty when it was not one JSON object.
    pub abridged: bool,
}

impl Batch {
    /// Offset one past the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Each line without its newline, with the offsets of its first byte and of the next line.
    pub fn lines(&self) -> impl Iterator<Item = (u64, u64, &[u8])> {
        let abridged = self.abridged.then_some(self.end);
        lines(self.start, &self.bytes).map(move |(at, line)| (at, abridged.unwrap_or(at + line.len() as u64 + 1), line))
    }
}

/// The lines of a piece of the file that begins at `start` and ends with a newline.
pub fn lines(start: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut from = 0;
    memchr::memchr_iter(b'\n', bytes).map(move |newline| {
        let line = (start + from as u64, &bytes[from..newline]);
        from = newline + 1;
        line
    })
}

/// Result of one read.
enum Look {
    Batch(Batch),
    /// A piece of a longer line.
    More,
    /// No new bytes.
    Nothing,
}

/// Follows one file. Reads the page cache in bounded pieces, so async code calls it directly.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: File,
    offset: u64,
    scanned: u64,
    /// What is kept so far of a line that is too long.
    long: Option<Box<Abridger>>,
    watch: Watch,
}

impl Tail {
    /// Follows `<dir>/stdout` from `offset`, which must be the start of a line.
    pub fn open(dir: &Path, offset: u64, hub: &Hub) -> Result<Self, TailError> {
        let path = dir.join("stdout");
        let failed = |act| {
            let path = path.clone();
            move |source| TailError::Io { path, act, source }
        };
        let file = File::open(&path).map_err(failed("opened"))?;
        // Watched before the first read, so that no write in between is missed.
        let watch = hub.watch(&path).map_err(failed("watched"))?;
        Ok(Self { path, file, offset, scanned: offset, long: None, watch })
    }

    /// Offset of the next line.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next whole lines, as soon as there are some. Cancel safe.
    pub async fn next_batch(&mut self) -> Result<Batch, TailError> {
        loop {
            match self.look()? {
                Look::Batch(batch) => return Ok(batch),
                // Other tasks run between the pieces of a long line.
                Look::More => tokio::task::yield_now().await,
                Look::Nothing => self.watch.changed().await,
            }
        }
    }

    /// The next whole lines that exist now. Call it until `None` after a process ended.
    pub fn drain(&mut self) -> Result<Option<Batch>, TailError> {
        loop {
            match self.look()? {
                Look::Batch(batch) => return Ok(Some(batch)),
                Look::More => {}
                Look::Nothing => return Ok(None),
            }
        }
    }

    /// Reads one piece.
    fn look(&mut self) -> Result<Look, TailError> {
        let length = self.file.metadata().map_err(|e| self.io("examined", e))?.len();
        if length < self.scanned {
            return Err(TailError::Truncated { length, offset: self.scanned });
        }
        if self.scanned == length {
            return Ok(Look::Nothing);
        }
        let fresh = self.read(self.scanned, length.min(self.scanned + BATCH_BYTES))?;
        let known = self.scanned - self.offset;
        let Some(first) = memchr::memchr(b'\n', &fresh) else {
            return self.goes_on(&fresh);
        };
        if known + first as u64 > LINE_BYTES {
            return Err(TailError::TooLong { offset: self.offset });
        }
        self.check_join()?;
        if known + first as u64 > WHOLE_BYTES {
            let mut long = self.abridge()?;
            long.feed(&fresh[..first]);
            let mut kept = long.finish(self.offset, LONG_LINE).unwrap_or_default();
            kept.push(b'\n');
            return Ok(Look::Batch(self.taken(self.scanned + first as u64 + 1, kept.into(), true)));
        }
        // One long line by itself; of short ones as many as there are.
        let last = if known > 0 { first } else { memchr::memrchr(b'\n', &fresh).unwrap_or(first) };
        let end = self.scanned + last as u64 + 1;
        let bytes =
            if known == 0 { Bytes::from(fresh).slice(..=last) } else { Bytes::from(self.read(self.offset, end)?) };
        // The payload may have rewritten the beginning between two reads.
        if bytes.last() != Some(&b'\n') {
            return Err(TailError::Overwritten { offset: end });
        }
        Ok(Look::Batch(self.taken(end, bytes, false)))
    }

    /// No line ends in `fresh`.
    fn goes_on(&mut self, fresh: &[u8]) -> Result<Look, TailError> {
        let known = self.scanned + fresh.len() as u64 - self.offset;
        if known > LINE_BYTES {
            return Err(TailError::TooLong { offset: self.offset });
        }
        if known > WHOLE_BYTES {
            let mut long = self.abridge()?;
            long.feed(fresh);
            self.long = Some(long);
        }
        self.scanned += fresh.len() as u64;
        Ok(Look::More)
    }

    /// What is kept of the long line, up to what was scanned.
    fn abridge(&mut self) -> Result<Box<Abridger>, TailError> {
        if let Some(long) = self.long.take() {
            return Ok(long);
        }
        let mut long = Box::new(Abridger::new(Bounds::LINE));
        let mut from = self.offset;
        while from < self.scanned {
            let to = self.scanned.min(from + BATCH_BYTES);
            long.feed(&self.read(from, to)?);
            from = to;
        }
        Ok(long)
    }

    fn taken(&mut self, end: u64, bytes: Bytes, abridged: bool) -> Batch {
        let batch = Batch { start: self.offset, end, bytes, abridged };
        (self.offset, self.scanned, self.long) = (end, end, None);
        batch
    }

    /// Truncated and refilled between two reads, the file is long enough again, but its lines end
    /// elsewhere.
    fn check_join(&self) -> Result<(), TailError> {
        let Some(before) = self.offset.checked_sub(1) else { return Ok(()) };
        // Ranges given back to the file system read as zeros; the byte before the offset is never
        // one of them.
        match self.read(before, self.offset)?.as_slice() {
            [b'\n'] => Ok(()),
            _ => Err(TailError::Overwritten { offset: self.offset }),
        }
    }

    fn read(&self, from: u64, to: u64) -> Result<Vec<u8>, TailError> {
        let mut bytes = vec![0; (to - from) as usize];
        match self.file.read_exact_at(&mut bytes, from) {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                let length = self.file.metadata().map_err(|e| self.io("examined", e))?.len();
                Err(TailError::Truncated { length, offset: to })
            }
            Err(e) => Err(self.io("read", e)),
        }
    }

    fn io(&self, act: &'static str, source: io::Error) -> TailError {
        TailError::Io { path: self.path.clone(), act, source }
    }
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
