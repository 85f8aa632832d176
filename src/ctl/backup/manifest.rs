//! What is in an archive, one JSON line an entry, in the archive's order. Kept in a file without a name: an archive may hold
//! more entries than fit memory comfortably.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Raised when an older ashctl could not read the archive.
pub const FORMAT: u32 = 1;

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub format: u32,
    /// Of the ashctl that wrote it.
    pub version: String,
    pub entries: u64,
    pub bytes: u64,
}

/// One entry. A directory and a symbolic link have no sum; a link's target is part of the tar header.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub path: String,
    pub kind: Kind,
    pub bytes: u64,
    pub sha256: Option<String>,
    pub target: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

/// A manifest while it is written.
#[derive(Debug)]
pub struct Manifest {
    file: BufWriter<File>,
    pub entries: u64,
    pub bytes: u64,
}

impl Manifest {
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: BufWriter::new(nameless()?), entries: 0, bytes: 0 })
    }

    pub fn add(&mut self, line: &Line) -> io::Result<()> {
        self.entries += 1;
        self.bytes += line.bytes;
        serde_json::to_writer(&mut self.file, line)?;
        self.file.write_all(b"\n")
    }

    /// The whole text, from its beginning, with its length.
    pub fn finish(mut self) -> io::Result<(File, u64)> {
        let summary = Summary {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            entries: self.entries,
            bytes: self.bytes,
        };
        serde_json::to_writer(&mut self.file, &summary)?;
        self.file.write_all(b"\n")?;
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let length = file.stream_position()?;
        file.seek(SeekFrom::Start(0))?;
        Ok((file, length))
    }
}

/// A file that is gone when it is closed.
pub fn nameless() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("ashctl-{}-{}", std::process::id(), uuid::Uuid::new_v4()));
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The first line in which two manifests differ, as the first one has it; `None` when they say the same. The version of the
/// program in the summary does not count.
pub fn difference(written: impl Read, found: impl Read) -> io::Result<Option<String>> {
    let (written, mut found) = (BufReader::new(written).lines(), BufReader::new(found).lines());
    for line in written {
        let line = line?;
        let other = found.next().transpose()?.unwrap_or_default();
        if line == other {
            continue;
        }
        let same = match (serde_json::from_str::<Summary>(&line), serde_json::from_str::<Summary>(&other)) {
            (Ok(a), Ok(b)) => (a.format, a.entries, a.bytes) == (b.format, b.entries, b.bytes),
            _ => false,
        };
        if !same {
            return Ok(Some(line));
        }
    }
    found.next().transpose()
}

/// Reads exactly so many bytes, whatever becomes of the file meanwhile: what is missing is filled with zeros, what is more is
/// left. Sums what it reads.
#[derive(Debug)]
pub struct Exactly<R> {
    from: R,
    left: u64,
    sum: Sha256,
}

impl<R: Read> Exactly<R> {
    pub fn new(from: R, length: u64) -> Self {
        Self { from, left: length, sum: Sha256::new() }
    }

    /// SHA-256 in hexadecimal.
    pub fn sum(self) -> String {
        self.sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let mut got = self.from.read(&mut buffer[..wanted])?;
        if got == 0 {
            // It shrank while it was read; the archive's header has its length already.
            buffer[..wanted].fill(0);
            got = wanted;
        }
        self.sum.update(&buffer[..got]);
        self.left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_is_filled_up_and_one_that_grows_is_cut() {
        let read = |from: &[u8], length| {
            let (mut reader, mut out) = (Exactly::new(from, length), Vec::new());
            reader.read_to_end(&mut out).unwrap();
            (out, reader.sum())
        };
        assert_eq!(read(b"abc", 5).0, b"abc\0\0");
        // The test vector of FIPS 180-2 for "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(read(b"abcdef", 3), (b"abc".to_vec(), abc.to_owned()));
    }

    #[test]
    fn differences() {
        let text = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let end = |version: &str| format!(r#"{{"format":1,"version":"{version}","entries":1,"bytes":2}}"#);
        let a = text(&["x", &end("1")]);
        for (other, want) in [
            (text(&["x", &end("2")]), None),
            (text(&["y", &end("1")]), Some("x".to_owned())),
            (text(&["x"]), Some(end("1"))),
            (text(&["x", &end("1"), "more"]), Some("more".to_owned())),
        ] {
            assert_eq!(difference(a.as_bytes(), other.as_bytes()).unwrap(), want, "{other}");
        }
    }
}
