//! The compression of an archive: detected on reading, chosen by the client on writing.

use std::io::{self, BufReader, Cursor, Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

/// Window size of zstd, sufficient for levels up to 19. The window determines the memory use.
const WINDOW_LOG: u32 = 23;
/// Fast, with about the ratio of gzip's default.
const ZSTD_LEVEL: i32 = 3;
/// The same for [`Encoder::small`]: 128 KiB of history.
const SMALL_LEVEL: i32 = 1;
const SMALL_WINDOW_LOG: u32 = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    /// The name in `Content-Encoding` and `Accept-Encoding`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// The decompressed content of `from`: gzip (also several members), zstd, or uncompressed data as
/// it is.
///
/// # Errors
/// As for `from`, and an unsupported compression.
pub fn decoder<'a>(mut from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    from.by_ref().take(6).read_to_end(&mut start)?;
    let kind = start.clone();
    let whole = Cursor::new(start).chain(from);
    Ok(match kind.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(whole)),
        // A frame, or a skippable frame, which parallel compressors write first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut zstd = zstd::Decoder::with_buffer(BufReader::new(whole))?;
            zstd.window_log_max(WINDOW_LOG)?;
            Box::new(zstd)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(other("xz")),
        [b'B', b'Z', b'h', ..] => return Err(other("bzip2")),
        [b'P', b'K', 3, 4, ..] => return Err(other("zip")),
        _ => Box::new(whole),
    })
}

fn other(kind: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it is {kind}, which is not supported: use gzip, zstd or no compression"),
    )
}

pub enum Encoder<W: Write> {
    Gzip(GzEncoder<W>),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl<W: Write> Encoder<W> {
    /// # Errors
    /// Out of memory.
    pub fn new(out: W, coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(GzEncoder::new(out, Compression::fast())),
            Coding::Zstd => Self::Zstd(Box::new(zstd::Encoder::new(out, ZSTD_LEVEL)?)),
        })
    }

    /// An encoder for many small outputs at once: it needs less than 1 MiB, where zstd with the level
    /// of [`Encoder::new`] needs several.
    ///
    /// # Errors
    /// Out of memory.
    pub fn small(out: W, coding: Coding) -> io::Result<Self> {
        let mut encoder = Self::new(out, coding)?;
        if let Self::Zstd(zstd) = &mut encoder {
            zstd.set_parameter(zstd::zstd_safe::CParameter::CompressionLevel(SMALL_LEVEL))?;
            zstd.set_parameter(zstd::zstd_safe::CParameter::WindowLog(SMALL_WINDOW_LOG))?;
        }
        Ok(encoder)
    }

    /// The output. It does not include data still in the encoder.
    pub fn get_mut(&mut self) -> &mut W {
        match self {
            Self::Gzip(gzip) => gzip.get_mut(),
            Self::Zstd(zstd) => zstd.get_mut(),
        }
    }

    /// Writes the end of the compressed stream.
    ///
    /// # Errors
    /// As for the output.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(zstd) => zstd.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Zstd(zstd) => zstd.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(gzip) => gzip.flush(),
            Self::Zstd(zstd) => zstd.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_is_read_by_what_it_begins_with() {
        let text = b"a text that is longer than six bytes".repeat(1000);
        let compressed = |coding| {
            let mut encoder = Encoder::new(Vec::new(), coding).unwrap();
            encoder.write_all(&text).unwrap();
            encoder.finish().unwrap()
        };
        let (gzip, zstd) = (compressed(Coding::Gzip), compressed(Coding::Zstd));
        assert!(zstd.len() < text.len() / 10 && gzip.len() < text.len() / 10);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2][..], &zstd].concat();
        for (bytes, times) in
            [(&gzip, 1), (&zstd, 1), (&text, 1), (&skippable, 1), (&gzip.repeat(3), 3), (&zstd.repeat(2), 2)]
        {
            let mut read = Vec::new();
            decoder(&bytes[..]).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == text.repeat(times));
        }
        for (bytes, word) in [(&b"\xfd7zXZ\0..."[..], "xz"), (b"BZh91AY", "bzip2"), (b"PK\x03\x04..", "zip")] {
            assert!(decoder(bytes).err().unwrap().to_string().contains(word));
        }
        let mut short = Vec::new();
        decoder(&b"ab"[..]).unwrap().read_to_end(&mut short).unwrap();
        assert_eq!(short, b"ab");
    }

    #[test]
    fn a_window_that_costs_much_memory_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(decoder(&bytes[..]).unwrap().read_to_end(&mut Vec::new()).is_err());
    }
}
