//! The contents of an archive: one JSON line per entry, in the archive's order. It is kept in an
//! unnamed file, because the entries of a large archive may not fit memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use ash_model::names;

/// Format 2: names of any bytes, hard links, sparse files. Raised when an older ashctl cannot read
/// the archive.
pub const FORMAT: u32 = 2;
/// The format whose paths and targets are not encoded ([`names`]).
const PLAIN: u32 = 1;

pub fn reads(format: u32) -> bool {
    [PLAIN, FORMAT].contains(&format)
}

/// The last line of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub format: u32,
    /// Version of the ashctl that wrote it.
    pub version: String,
    pub entries: u64,
    pub bytes: u64,
}

/// One entry. Only files have a checksum; the tar header covers the target of a link.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Encoded as text ([`names`]).
    pub path: String,
    pub kind: Kind,
    /// Bytes in the archive, without holes.
    pub bytes: u64,
    pub sha256: Option<String>,
    /// For a symbolic link its target, encoded; for a hard link the path of the first name.
    pub target: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
}

/// A manifest that is being written.
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

    /// The whole text and its length.
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

/// A file that exists until it is closed.
pub fn nameless() -> io::Result<File> {
    ash_kernel::private::nameless()
}

/// The first line in which two manifests differ, from the first manifest; `None` when they are
/// equal. `format` is that of the first. The summary's version and format are not compared.
pub fn difference(written: impl Read, found: impl Read, format: u32) -> io::Result<Option<String>> {
    let (written, mut found) = (BufReader::new(written).lines(), BufReader::new(found).lines());
    for line in written {
        let line = line?;
        let other = found.next().transpose()?.unwrap_or_default();
        if line != other && !say_the_same(&line, &other, format) {
            return Ok(Some(line));
        }
    }
    found.next().transpose()
}

fn say_the_same(line: &str, other: &str, format: u32) -> bool {
    let of = |text: &str| serde_json::from_str::<Line>(text).ok();
    if let (Some(a), Some(b)) = (of(line), of(other)) {
        let shown = |text: &String| names::shown(Path::new(text));
        let (path, target) = (shown(&a.path), a.target.as_ref().map(shown));
        return format == PLAIN && Line { path, target, ..a } == b;
    }
    let of = |text: &str| serde_json::from_str::<Summary>(text).ok();
    matches!((of(line), of(other)), (Some(a), Some(b)) if (a.entries, a.bytes) == (b.entries, b.bytes))
}

/// Checksum of a file's bytes in the archive.
#[derive(Debug)]
pub struct Sum {
    sum: Sha256,
    bytes: u64,
}

impl Sum {
    /// For a sparse file, its size and the positions of its pieces are summed first.
    pub fn new(sparse: Option<(u64, &[(u64, u64)])>) -> Self {
        let mut sum = Sha256::new();
        if let Some((size, pieces)) = sparse {
            sum.update(format!("{size}\n"));
            for (offset, length) in pieces {
                sum.update(format!("{offset} {length}\n"));
            }
        }
        Self { sum, bytes: 0 }
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Byte count, and SHA-256 in hexadecimal.
    pub fn done(self) -> (u64, String) {
        (self.bytes, self.sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums() {
        let sum = |sparse, bytes: &[u8]| {
            let mut sum = Sum::new(sparse);
            sum.add(bytes);
            sum.done()
        };
        // Test vector of FIPS 180-2 for "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sum(None, b"abc"), (3, abc.to_owned()));
        assert_ne!(sum(Some((9, &[(0, 3)])), b"abc"), sum(Some((9, &[(1, 3)])), b"abc"), "the position counts");
    }

    #[test]
    fn paths_of_the_first_format_are_not_encoded() {
        let line =
            |path: &str| format!(r#"{{"path":"{path}","kind":"directory","bytes":0,"sha256":null,"target":null}}"#);
        for (format, written, found, same) in [
            (1, "caf%E9", "caf%25E9", true),
            (2, "caf%E9", "caf%25E9", false),
            (2, "caf%E9", "caf%E9", true),
            (1, "a", "b", false),
        ] {
            let difference = difference(line(written).as_bytes(), line(found).as_bytes(), format).unwrap();
            assert_eq!(difference.is_none(), same, "{format} {written} {found}");
        }
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
            assert_eq!(difference(a.as_bytes(), other.as_bytes(), 1).unwrap(), want, "{other}");
        }
    }
}
