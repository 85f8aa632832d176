//! Extracts `package/claude` from npm's archive, with its checksum.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::CtlError;

/// Maximum size of the unpacked binary in bytes (2.1.330 has 381 MB).
pub const MAX_BINARY: u64 = 2 << 30;

/// Unpacks `package/claude` to `to`. Returns the SHA-256 of the written bytes, in hexadecimal.
///
/// # Errors
/// [`CtlError::Install`] when the archive is damaged or lacks the file.
pub fn unpack(archive: File, to: &mut impl Write) -> Result<String, CtlError> {
    let damaged = |e: io::Error| CtlError::Install(format!("npm's archive is damaged: {e}"));
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    for entry in tar.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let is_it = entry.header().entry_type().is_file()
            && entry.path().map_err(damaged)?.as_ref() == Path::new("package/claude");
        if !is_it {
            continue;
        }
        let size = entry.size();
        if size > MAX_BINARY {
            return Err(CtlError::Install(format!(
                "package/claude is too large ({size} of at most {MAX_BINARY} bytes)"
            )));
        }
        eprintln!("  unpacking {} MB", size / 1_000_000);
        return copy(entry, to).map_err(|e| CtlError::Install(format!("cannot unpack package/claude: {e}")));
    }
    Err(CtlError::Install("npm's archive holds no package/claude".to_owned()))
}

/// Copies everything. Returns the SHA-256 of the written bytes, in hexadecimal.
///
/// # Errors
/// A failed read or write; more than [`MAX_BINARY`] bytes.
pub fn copy(from: impl Read, to: &mut impl Write) -> io::Result<String> {
    let mut from = from.take(MAX_BINARY + 1);
    let (mut sum, mut total, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let n = from.read(&mut piece)?;
        if n == 0 {
            return Ok(sum.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        total += n as u64;
        if total > MAX_BINARY {
            return Err(io::Error::other(format!("more than {MAX_BINARY} bytes")));
        }
        sum.update(&piece[..n]);
        to.write_all(&piece[..n])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &str)]) -> io::Result<File> {
        let gzip = flate2::write::GzEncoder::new(tempfile::tempfile()?, flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for (name, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, text.as_bytes())?;
        }
        let mut file = tar.into_inner()?.finish()?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }

    #[test]
    fn only_the_binary_is_unpacked() -> Result<(), Box<dyn std::error::Error>> {
        let (file, mut to) = (archive(&[("package/package.json", "{}"), ("package/claude", "abc")])?, Vec::new());
        // Test vector of FIPS 180-2 for "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(unpack(file, &mut to)?, abc);
        assert_eq!(copy(&to[..], &mut io::sink())?, abc);
        assert_eq!(to, b"abc");
        Ok(())
    }

    #[test]
    fn damaged_and_foreign_archives_are_refused() -> Result<(), Box<dyn std::error::Error>> {
        let mut to = Vec::new();
        let file = archive(&[("package/other", "abc")])?;
        assert!(matches!(unpack(file, &mut to), Err(CtlError::Install(t)) if t.contains("holds no package/claude")));
        let mut file = tempfile::tempfile()?;
        file.write_all(b"not a gzip")?;
        io::Seek::rewind(&mut file)?;
        assert!(matches!(unpack(file, &mut to), Err(CtlError::Install(t)) if t.contains("damaged")));
        assert!(to.is_empty());
        Ok(())
    }
}
