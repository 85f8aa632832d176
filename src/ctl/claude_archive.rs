//! The one file of npm's archive that is wanted, and its checksum.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::CtlError;

/// Bytes of the largest binary that is unpacked (2.1.330 has 381 MB).
const MAX_BINARY: u64 = 2 << 30;

/// Unpacks `package/claude` to `to`, mode 0755, and returns its SHA-256 in hexadecimal.
///
/// # Errors
/// [`CtlError::Install`] when the archive is damaged or does not hold it.
pub fn unpack(archive: &Path, to: &Path) -> Result<String, CtlError> {
    let damaged = |e: io::Error| CtlError::Install(format!("the archive {} is damaged: {e}", archive.display()));
    let file = File::open(archive).map_err(CtlError::file(archive))?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
    for entry in tar.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let is_it = entry.header().entry_type().is_file()
            && entry.path().map_err(damaged)?.as_ref() == Path::new("package/claude");
        if !is_it {
            continue;
        }
        let size = entry.size();
        if size > MAX_BINARY {
            return Err(CtlError::Install(format!("package/claude has {size} bytes, more than {MAX_BINARY}")));
        }
        eprintln!("  unpacking {} MB", size / 1_000_000);
        let mut out =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(to).map_err(CtlError::file(to))?;
        let sum = copy(entry, &mut out).map_err(CtlError::file(to))?;
        fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(CtlError::file(to))?;
        out.sync_all().map_err(CtlError::file(to))?;
        return Ok(sum);
    }
    Err(CtlError::Install(format!("the archive {} holds no package/claude", archive.display())))
}

/// SHA-256 of a file, in hexadecimal.
pub fn digest(path: &Path) -> Result<String, CtlError> {
    let file = File::open(path).map_err(CtlError::file(path))?;
    copy(file, &mut io::sink()).map_err(CtlError::file(path))
}

fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut piece)?;
        if n == 0 {
            return Ok(sum.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        sum.update(&piece[..n]);
        to.write_all(&piece[..n])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn archive(dir: &Path, entries: &[(&str, &str)]) -> io::Result<std::path::PathBuf> {
        let path = dir.join("a.tgz");
        let gzip = flate2::write::GzEncoder::new(File::create(&path)?, flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for (name, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, text.as_bytes())?;
        }
        tar.into_inner()?.finish()?;
        Ok(path)
    }

    #[test]
    fn only_the_binary_is_unpacked() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = archive(dir.path(), &[("package/package.json", "{}"), ("package/claude", "abc")])?;
        let to = dir.path().join("claude");
        // The test vector of FIPS 180-2 for "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(unpack(&path, &to)?, abc);
        assert_eq!(digest(&to)?, abc);
        assert_eq!(fs::metadata(&to)?.permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(dir.path())?.count(), 2);
        Ok(())
    }

    #[test]
    fn damaged_and_foreign_archives_are_refused() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let to = dir.path().join("claude");
        let path = archive(dir.path(), &[("package/other", "abc")])?;
        assert!(matches!(unpack(&path, &to), Err(CtlError::Install(t)) if t.contains("holds no package/claude")));
        fs::write(&path, b"not a gzip")?;
        assert!(matches!(unpack(&path, &to), Err(CtlError::Install(t)) if t.contains("damaged")));
        assert!(!to.exists());
        Ok(())
    }
}
