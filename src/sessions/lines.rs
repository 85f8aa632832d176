//! The tail of a session's stdout file: whole lines from an offset on, woken by inotify.
//!
//! ```text
//!            offset             scanned                 length of the file
//!  | consumed | no newline in here | not looked at yet    |
//!  +----------+--------------------+----------------------+
//!             next_batch() returns [offset, one past the last newline), at most 1 MiB of it, or one longer line
//! ```
//!
//! The payload holds the descriptor of that file and is hostile. Between two batches nothing is kept but the two
//! numbers, so a line that never ends costs its bytes on the payload's disk and no memory here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::hub::{Hub, Watch};

/// Bytes of one batch, unless a single line is longer.
pub const BATCH_BYTES: u64 = 1 << 20;
/// Bytes of the longest line that is taken. claude's longest seen is 1.34 MB (a picture that was read); the API takes
/// messages of up to 50 MiB, but claude does not repeat them. Past it: [`TailError::TooLong`].
pub const LINE_BYTES: u64 = 32 << 20;

/// Why a session's output can be followed no further. Each is the payload's doing or the disk's.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("the output file {path} cannot be {act}: {source}")]
    Io { path: PathBuf, act: &'static str, source: io::Error },
    #[error("the output file was cut short: {length} bytes are left where {offset} were read")]
    Truncated { length: u64, offset: u64 },
    #[error("the output file was overwritten: no line ends at byte {offset} any more")]
    Overwritten { offset: u64 },
    #[error("a line of the output is longer than {LINE_BYTES} bytes (it begins at byte {offset})")]
    TooLong { offset: u64 },
}

/// Whole lines of the file, in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Offset of the first byte in the file.
    pub start: u64,
    /// Ends with a newline.
    pub bytes: Bytes,
}

impl Batch {
    /// Offset one past the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Each line with the offset of its first byte, without its newline.
    pub fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        lines(self.start, &self.bytes)
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

/// Follows one file. Reads the page cache in bounded pieces, so it is called from async code directly.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: File,
    offset: u64,
    scanned: u64,
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
        // Watched before the first look, so that nothing is written in between unnoticed.
        let watch = hub.watch(&path).map_err(failed("watched"))?;
        Ok(Self { path, file, offset, scanned: offset, watch })
    }

    /// Offset of the next line to come.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next whole lines, as soon as there are some. Dropping the future loses nothing.
    pub async fn next_batch(&mut self) -> Result<Batch, TailError> {
        loop {
            if let Some(batch) = self.drain()? {
                return Ok(batch);
            }
            self.watch.changed().await;
        }
    }

    /// The next whole lines if they are there now. Called until `None`, it has everything: for a process that ended.
    pub fn drain(&mut self) -> Result<Option<Batch>, TailError> {
        let length = self.file.metadata().map_err(|e| self.io("examined", e))?.len();
        if length < self.scanned {
            return Err(TailError::Truncated { length, offset: self.scanned });
        }
        while self.scanned < length {
            let fresh = self.read(self.scanned, length.min(self.scanned + BATCH_BYTES))?;
            let Some(newline) = memchr::memrchr(b'\n', &fresh) else {
                self.scanned += fresh.len() as u64;
                if self.scanned - self.offset > LINE_BYTES {
                    return Err(TailError::TooLong { offset: self.offset });
                }
                continue;
            };
            if self.scanned - self.offset + newline as u64 > LINE_BYTES + BATCH_BYTES {
                return Err(TailError::TooLong { offset: self.offset });
            }
            self.check_join()?;
            let end = self.scanned + newline as u64 + 1;
            let bytes = if self.scanned == self.offset {
                Bytes::from(fresh).slice(..=newline)
            } else {
                Bytes::from(self.read(self.offset, end)?)
            };
            // The payload may have rewritten the beginning between the two looks.
            if bytes.last() != Some(&b'\n') {
                return Err(TailError::Overwritten { offset: end });
            }
            let batch = Batch { start: self.offset, bytes };
            self.offset = end;
            self.scanned = end;
            return Ok(Some(batch));
        }
        Ok(None)
    }

    /// Cut short and refilled between two looks, the file is long enough again; but then its lines end elsewhere.
    fn check_join(&self) -> Result<(), TailError> {
        let Some(before) = self.offset.checked_sub(1) else { return Ok(()) };
        // Ranges given back to the file system read as zeros; the byte before the offset is never among them.
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
#[path = "lines_tests.rs"]
mod tests;
