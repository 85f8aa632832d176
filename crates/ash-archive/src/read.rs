//! Reads a tar archive entry by entry, in bounded memory.
//!
//! Names, links and sparse maps can precede an entry in extra headers that state their own size.
//! All of them are bounded, whatever an archive claims. Supported: ustar, GNU (long names, sparse
//! files) and pax (names, sizes, sparse files 0.0, 0.1 and 1.0).

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header, PaxExtensions};

use super::{MAX_PIECES, Pieces, Time};

/// Most bytes of a long name or link, and of the pax fields of an entry.
const MAX_NAME: u64 = 64 << 10;
const MAX_FIELDS: u64 = 4 << 20;
const MAX_HEADERS: usize = 16;
const BLOCK: u64 = 512;

#[derive(Debug)]
pub struct Head {
    pub kind: EntryType,
    pub path: Vec<u8>,
    pub link: Option<Vec<u8>>,
    pub mode: u32,
    pub modified: Time,
    /// Size of the file in bytes, including holes.
    pub size: u64,
    /// Bytes stored in the archive.
    pub stored: u64,
    pub sparse: bool,
}

/// Reads an archive once, from its beginning.
#[derive(Debug)]
pub struct Entries<R> {
    from: R,
    /// Unread bytes of the current entry, including padding.
    left: u64,
}

/// The content of an entry, piece by piece. [`Content::piece`] moves to the next piece, and reading
/// stops at its end. A file without holes is one piece.
#[derive(Debug)]
pub struct Content<'a, R> {
    from: &'a mut R,
    /// Unread bytes of the entry, including padding.
    left: &'a mut u64,
    pieces: std::vec::IntoIter<(u64, u64)>,
    /// Unread bytes of the current piece.
    here: u64,
}

/// Fields of an entry from extra headers.
#[derive(Default)]
struct Fields {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<Time>,
    sparse: Sparse,
}

#[derive(Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    real: Option<u64>,
    /// Version 1.0: the content begins with the map.
    in_content: bool,
    pieces: Option<Pieces>,
    offset: Option<u64>,
}

fn wrong(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<R: Read> Entries<R> {
    pub fn new(from: R) -> Self {
        Self { from, left: 0 }
    }

    /// The next entry, or `None` at the end of the archive. Skips unread content of the current
    /// entry.
    pub fn next_entry(&mut self) -> io::Result<Option<(Head, Content<'_, R>)>> {
        let mut fields = Fields::default();
        for _ in 0..MAX_HEADERS {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            match header.entry_type() {
                EntryType::GNULongName => fields.path = Some(name(self.held(size, MAX_NAME)?)),
                EntryType::GNULongLink => fields.link = Some(name(self.held(size, MAX_NAME)?)),
                EntryType::XHeader => read_pax(&self.held(size, MAX_FIELDS)?, &mut fields)?,
                EntryType::XGlobalHeader => drop(self.held(size, MAX_FIELDS)?),
                _ => return self.entry(&header, fields).map(Some),
            }
        }
        Err(wrong(format!("an entry has more than {MAX_HEADERS} headers")))
    }

    fn entry(&mut self, header: &Header, fields: Fields) -> io::Result<(Head, Content<'_, R>)> {
        let stored = fields.size.unwrap_or(header.entry_size()?);
        let mut kind = header.entry_type();
        let Sparse { name, real, in_content, mut pieces, .. } = fields.sparse;
        let mut size = real.unwrap_or(stored);
        if kind == EntryType::GNUSparse {
            let (of_header, real) = self.gnu_sparse(header)?;
            (pieces, size, kind) = (Some(of_header), real, EntryType::Regular);
        }
        self.left = padded(stored)?;
        let mut data = stored;
        if in_content {
            let (map, read) = self.map_in_content(stored)?;
            data -= read;
            pieces = Some(map);
        }
        if let Some(pieces) = &pieces {
            check(pieces, size, data)?;
        } else if size != stored {
            return Err(wrong("a sparse file without a map"));
        }
        let path = name.or(fields.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = fields.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let mode = header.mode().unwrap_or(0o644);
        let seconds = || header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
        let modified = fields.modified.unwrap_or_else(|| Time { seconds: seconds(), nanoseconds: 0 });
        let head = Head { kind, path, link, mode, modified, size, stored: data, sparse: pieces.is_some() };
        let pieces = pieces.unwrap_or_else(|| vec![(0, size)]).into_iter();
        Ok((head, Content { from: &mut self.from, left: &mut self.left, pieces, here: 0 }))
    }

    /// The next header block. Two blocks of zeros, or the end of the input, end the archive.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK as usize];
        for _ in 0..2 {
            let mut have = 0;
            while have < block.len() {
                match self.from.read(&mut block[have..]) {
                    Ok(0) if have == 0 => return Ok(None),
                    Ok(0) => return Err(wrong("the archive ends within a header")),
                    Ok(n) => have += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            if block.iter().any(|&byte| byte != 0) {
                let header = Header::from_byte_slice(&block).clone();
                let sum: u32 = block[..148].iter().chain(&block[156..]).map(|&b| u32::from(b)).sum::<u32>() + 8 * 32;
                return if header.cksum()? == sum {
                    Ok(Some(header))
                } else {
                    Err(wrong("a header has a wrong checksum"))
                };
            }
        }
        Ok(None)
    }

    /// Reads the content of a header entry.
    fn held(&mut self, size: u64, most: u64) -> io::Result<Vec<u8>> {
        if size > most {
            return Err(wrong(format!("a header of {size} bytes is longer than {most}")));
        }
        let mut bytes = vec![0; size as usize];
        self.from.read_exact(&mut bytes)?;
        self.left = padded(size)? - size;
        Ok(bytes)
    }

    fn skip(&mut self) -> io::Result<()> {
        let skipped = io::copy(&mut self.from.by_ref().take(self.left), &mut io::sink())?;
        if skipped < self.left {
            return Err(wrong("the archive ends within a file"));
        }
        self.left = 0;
        Ok(())
    }

    /// The map of an old GNU sparse file, in its header and the blocks after it.
    fn gnu_sparse(&mut self, header: &Header) -> io::Result<(Pieces, u64)> {
        let gnu = header.as_gnu().ok_or_else(|| wrong("a sparse file without a GNU header"))?;
        let mut pieces = Vec::new();
        let mut take = |list: &[tar::GnuSparseHeader]| -> io::Result<()> {
            for piece in list.iter().filter(|piece| !piece.is_empty()) {
                if pieces.len() == MAX_PIECES {
                    return Err(wrong(format!("a sparse file has more than {MAX_PIECES} pieces")));
                }
                pieces.push((piece.offset()?, piece.length()?));
            }
            Ok(())
        };
        take(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.from.read_exact(block.as_mut_bytes())?;
            take(block.sparse())?;
            more = block.is_extended();
        }
        Ok((pieces, gnu.real_size()?))
    }

    /// The map of a pax 1.0 sparse file: decimal lines at the beginning of its content, padded to a
    /// block.
    fn map_in_content(&mut self, stored: u64) -> io::Result<(Pieces, u64)> {
        let (mut block, mut at, mut read) = ([0; BLOCK as usize], BLOCK as usize, 0);
        let mut number = || -> io::Result<u64> {
            let mut value: u64 = 0;
            loop {
                if at == block.len() {
                    if read + BLOCK > stored {
                        return Err(wrong("the map of a sparse file has no end"));
                    }
                    self.from.read_exact(&mut block)?;
                    (at, read) = (0, read + BLOCK);
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return Ok(value),
                    b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(too_large)?;
                    }
                    _ => return Err(wrong("the map of a sparse file contains a non-number")),
                }
            }
        };
        let count = number()?;
        if count > MAX_PIECES as u64 {
            return Err(wrong(format!("a sparse file has more than {MAX_PIECES} pieces")));
        }
        let pieces = (0..count).map(|_| Ok((number()?, number()?))).collect::<io::Result<Vec<_>>>()?;
        self.left -= read;
        Ok((pieces, read))
    }
}

fn too_large() -> io::Error {
    wrong("a number in the archive is too large")
}

fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK).ok_or_else(too_large)
}

/// Checks that the pieces are in order and within the file, and that their total is `stored`.
fn check(pieces: &[(u64, u64)], size: u64, stored: u64) -> io::Result<()> {
    if pieces.len() > MAX_PIECES {
        return Err(wrong(format!("a sparse file has more than {MAX_PIECES} pieces")));
    }
    let (mut end, mut sum) = (0_u64, 0_u64);
    for &(offset, length) in pieces {
        if offset < end {
            return Err(wrong("the pieces of a sparse file are not in order"));
        }
        end = offset.checked_add(length).ok_or_else(too_large)?;
        sum = sum.checked_add(length).ok_or_else(too_large)?;
    }
    if end > size || sum != stored {
        return Err(wrong("the pieces of a sparse file do not fit its size"));
    }
    Ok(())
}

/// A long name ends with a NUL.
fn name(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn read_pax(bytes: &[u8], fields: &mut Fields) -> io::Result<()> {
    let sparse = &mut fields.sparse;
    for field in PaxExtensions::new(bytes) {
        let field = field?;
        let value = field.value_bytes();
        let number = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse::<u64>().ok())
                .ok_or_else(|| wrong("a pax field is not a number"))
        };
        match field.key_bytes() {
            b"path" => fields.path = Some(value.to_vec()),
            b"linkpath" => fields.link = Some(value.to_vec()),
            b"size" => fields.size = Some(number()?),
            b"mtime" => {
                let time = std::str::from_utf8(value).ok().and_then(Time::parse);
                fields.modified = Some(time.ok_or_else(|| wrong("the time of an entry is not a number"))?);
            }
            b"GNU.sparse.major" => sparse.in_content = number()? == 1,
            b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => sparse.real = Some(number()?),
            b"GNU.sparse.map" => sparse.pieces = Some(read_map(value)?),
            b"GNU.sparse.offset" => sparse.offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = sparse.offset.take().ok_or_else(|| wrong("a piece of a sparse file has no offset"))?;
                sparse.pieces.get_or_insert_default().push((offset, number()?));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_map(value: &[u8]) -> io::Result<Pieces> {
    let text = std::str::from_utf8(value).map_err(|_| wrong("the map of a sparse file is not text"))?;
    let numbers =
        text.split(',').map(|n| n.parse::<u64>().map_err(|_| wrong("the map of a sparse file contains a non-number")));
    let numbers = numbers.collect::<io::Result<Vec<_>>>()?;
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

impl<R> Content<'_, R> {
    pub fn pieces(&self) -> &[(u64, u64)] {
        self.pieces.as_slice()
    }
}

impl<R: Read> Content<'_, R> {
    /// Moves to the next piece. Returns its offset in the file and its length.
    ///
    /// # Errors
    /// The archive ends early.
    pub fn piece(&mut self) -> io::Result<Option<(u64, u64)>> {
        let rest = self.here;
        let skipped = io::copy(&mut self.by_ref().take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(wrong("the archive ends within a file"));
        }
        let next = self.pieces.next();
        self.here = next.map_or(0, |(_, length)| length);
        Ok(next)
    }
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.here).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut out[..most])?;
        if read == 0 {
            return Err(wrong("the archive ends within a file"));
        }
        *self.left -= read as u64;
        self.here -= read as u64;
        Ok(read)
    }
}
