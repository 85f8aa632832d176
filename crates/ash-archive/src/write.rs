//! Writes a tar archive.
//!
//! Headers are GNU's. Names of more than 100 bytes get entries of their own, can contain any bytes,
//! and sparse files use the old GNU map, which GNU tar, bsdtar and Python support best. Subseconds
//! of times are written to a pax header before the entry.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{MAX_PIECES, Pieces, Time};
use ash_kernel::walk::next_piece;

const BLOCK: usize = 512;
/// Bytes of a name in a header.
const NAME: usize = 100;
/// Pieces in a header, and in each extension block.
const FIRST: usize = 4;
const FURTHER: usize = 21;
const BUFFER: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub struct Meta {
    pub mode: u32,
    pub modified: Time,
}

#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

struct Head<'a> {
    kind: u8,
    path: &'a [u8],
    link: &'a [u8],
    size: u64,
    meta: Meta,
    /// Pieces of a sparse file, and its size including holes.
    sparse: Option<(&'a [(u64, u64)], u64)>,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// # Errors
    /// As for the output.
    pub fn directory(&mut self, path: &Path, meta: Meta) -> io::Result<()> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        name.push(b'/');
        self.head(&Head { kind: b'5', path: &name, link: b"", size: 0, meta, sparse: None })
    }

    /// # Errors
    /// As for the output.
    pub fn symlink(&mut self, path: &Path, target: &[u8], meta: Meta) -> io::Result<()> {
        let path = path.as_os_str().as_bytes();
        self.head(&Head { kind: b'2', path, link: target, size: 0, meta, sparse: None })
    }

    /// A hard link to the file at `first`, which must be an earlier entry.
    ///
    /// # Errors
    /// As for the output.
    pub fn hard_link(&mut self, path: &Path, first: &Path, meta: Meta) -> io::Result<()> {
        let (path, link) = (path.as_os_str().as_bytes(), first.as_os_str().as_bytes());
        self.head(&Head { kind: b'1', path, link, size: 0, meta, sparse: None })
    }

    /// A file of `size` bytes, of which only `pieces` are stored if there are any. The stored size
    /// is exact even if the file changes meanwhile: missing bytes become zeros. `tap` receives the
    /// stored data.
    ///
    /// # Errors
    /// As for the output and the file.
    pub fn file(
        &mut self,
        path: &Path,
        meta: Meta,
        file: &File,
        size: u64,
        pieces: Option<&Pieces>,
        tap: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let path = path.as_os_str().as_bytes();
        let Some(pieces) = pieces else {
            self.head(&Head { kind: b'0', path, link: b"", size, meta, sparse: None })?;
            self.stored(file, 0, size, tap)?;
            return self.pad(size);
        };
        let stored = pieces.iter().map(|(_, length)| length).sum();
        self.head(&Head { kind: b'S', path, link: b"", size: stored, meta, sparse: Some((pieces, size)) })?;
        for (offset, length) in pieces {
            self.stored(file, *offset, *length, tap)?;
        }
        self.pad(stored)
    }

    /// A small file with this content.
    ///
    /// # Errors
    /// As for the output.
    pub fn bytes(&mut self, path: &Path, meta: Meta, content: &[u8]) -> io::Result<()> {
        let (path, size) = (path.as_os_str().as_bytes(), content.len() as u64);
        self.head(&Head { kind: b'0', path, link: b"", size, meta, sparse: None })?;
        self.out.write_all(content)?;
        self.pad(size)
    }

    /// A comment for human readers. Programs ignore it.
    ///
    /// # Errors
    /// As for the output.
    pub fn comment(&mut self, text: &str) -> io::Result<()> {
        let record = record("comment", text);
        self.extension(b'g', b"ash/comment", record.as_bytes())
    }

    /// Writes the end of the archive.
    ///
    /// # Errors
    /// As for the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn stored(&mut self, file: &File, offset: u64, length: u64, tap: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(BUFFER).min(BUFFER)];
        let mut at = 0;
        while at < length {
            let most = usize::try_from(length - at).unwrap_or(BUFFER).min(BUFFER);
            let got = match file.read_at(&mut buffer[..most], offset + at) {
                Ok(0) => {
                    buffer[..most].fill(0);
                    most
                }
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            tap(&buffer[..got]);
            self.out.write_all(&buffer[..got])?;
            at += got as u64;
        }
        Ok(())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        self.out.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
    }

    fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        let Time { seconds, nanoseconds } = head.meta.modified;
        if nanoseconds != 0 || seconds < 0 {
            let record = record("mtime", &head.meta.modified.decimal());
            self.extension(b'x', b"ash/pax", record.as_bytes())?;
        }
        for (kind, text) in [(b'K', head.link), (b'L', head.path)] {
            if text.len() > NAME {
                // With a terminating NUL.
                self.extension(kind, b"././@LongLink", &[text, &[0]].concat())?;
            }
        }
        self.out.write_all(&block(head))?;
        if let Some((pieces, _)) = head.sparse {
            let mut rest = pieces.get(FIRST..).unwrap_or_default();
            while !rest.is_empty() {
                let (these, after) = rest.split_at(rest.len().min(FURTHER));
                let mut block = [0; BLOCK];
                put_pieces(&mut block, these);
                block[504] = u8::from(!after.is_empty());
                self.out.write_all(&block)?;
                rest = after;
            }
        }
        Ok(())
    }

    /// An entry with metadata of the next entry.
    fn extension(&mut self, kind: u8, name: &[u8], content: &[u8]) -> io::Result<()> {
        let meta = Meta { mode: 0o644, modified: Time::default() };
        let size = content.len() as u64;
        self.out.write_all(&block(&Head { kind, path: name, link: b"", size, meta, sparse: None }))?;
        self.out.write_all(content)?;
        self.pad(size)
    }
}

/// A pax record starts with its own length, including the digits of that number.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

fn block(head: &Head<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut text = |at: usize, most: usize, text: &[u8]| {
        let length = text.len().min(most);
        block[at..at + length].copy_from_slice(&text[..length]);
    };
    text(0, NAME, head.path);
    text(157, NAME, head.link);
    text(257, 8, b"ustar  \0");
    block[156] = head.kind;
    number(&mut block[100..108], head.meta.mode.into());
    // Ids mean nothing on another host.
    number(&mut block[108..116], 0);
    number(&mut block[116..124], 0);
    number(&mut block[124..136], head.size);
    number(&mut block[136..148], u64::try_from(head.meta.modified.seconds).unwrap_or(0));
    if let Some((pieces, size)) = head.sparse {
        put_pieces(&mut block[386..482], &pieces[..pieces.len().min(FIRST)]);
        block[482] = u8::from(pieces.len() > FIRST);
        number(&mut block[483..495], size);
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put_pieces(to: &mut [u8], pieces: &[(u64, u64)]) {
    for (slot, (offset, length)) in to.chunks_exact_mut(24).zip(pieces) {
        number(&mut slot[..12], *offset);
        number(&mut slot[12..], *length);
    }
}

/// Octal with a terminating NUL, or base 256 for a larger value.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits) {
        let text = format!("{value:0digits$o}");
        field[..digits].copy_from_slice(text.as_bytes());
        field[digits] = 0;
        return;
    }
    field.fill(0);
    field[0] = 0x80;
    let bytes = value.to_be_bytes();
    let at = field.len() - bytes.len();
    field[at..].copy_from_slice(&bytes);
}

/// The data pieces of a file with holes, or `None` for a file without.
///
/// # Errors
/// As lseek(2); [`io::ErrorKind::FileTooLarge`] when there are more than [`MAX_PIECES`].
pub fn pieces(file: &File, size: u64) -> io::Result<Option<Pieces>> {
    let mut pieces = Pieces::new();
    let mut at = 0;
    while let Some((offset, length)) = next_piece(file, at, size)? {
        if pieces.len() + 1 >= MAX_PIECES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        pieces.push((offset, length));
        at = offset + length;
    }
    if size == 0 || pieces == [(0, size)] {
        return Ok(None);
    }
    if at < size {
        // Readers take the file size from this piece.
        pieces.push((size, 0));
    }
    Ok(Some(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_in_base_256() {
        let field = |value| {
            let mut field = [b'?'; 12];
            number(&mut field, value);
            field
        };
        assert_eq!(&field(0o755), b"00000000755\0");
        assert_eq!(&field((8 << 30) - 1), b"77777777777\0");
        assert_eq!(field(8 << 30), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn a_record_counts_its_own_digits() {
        assert_eq!(record("a", "b"), "6 a=b\n");
        assert_eq!(record("path", &"x".repeat(89)).split_once(' ').unwrap().0, "98");
        for length in 80..120 {
            let record = record("path", &"x".repeat(length));
            assert_eq!(record.split_once(' ').unwrap().0.parse::<usize>().unwrap(), record.len());
        }
    }
}
