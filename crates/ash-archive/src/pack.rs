//! Packs a directory tree into an archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::Stat;

use super::Time;
use super::write::{Meta, Writer, pieces};
use ash_kernel::walk::{self, Entry, Visit, Why};
use ash_model::Skipped;

/// Writes everything below `root`. Omitted entries are returned, and written to the archive as
/// comments.
///
/// # Errors
/// As for the output and the disk.
pub fn pack<W: Write>(root: BorrowedFd<'_>, out: W) -> io::Result<(W, Skipped)> {
    let mut pack = Pack { out: Writer::new(out), skipped: Skipped::default() };
    walk::walk(root, &mut pack)?;
    let Pack { mut out, skipped } = pack;
    for entry in &skipped.entries {
        out.comment(&format!("not kept: {}: {}", entry.path, entry.reason))?;
    }
    Ok((out.finish()?, skipped))
}

/// The entries that [`pack`] would omit now. The tree may change before it is packed.
///
/// # Errors
/// As for the disk.
pub fn would_skip(root: BorrowedFd<'_>) -> io::Result<Skipped> {
    let mut look = Look(Skipped::default());
    walk::walk(root, &mut look)?;
    Ok(look.0)
}

struct Pack<W> {
    out: Writer<W>,
    skipped: Skipped,
}

/// Mode and time. No owner, since ids mean nothing on another host.
fn meta(mode: u32, stat: &Stat, path: &Path, skipped: &mut Skipped) -> Meta {
    note_bits(mode, path, skipped);
    Meta { mode: mode & 0o777, modified: Time::of(stat) }
}

fn note_bits(mode: u32, path: &Path, skipped: &mut Skipped) {
    if mode & 0o7000 != 0 {
        skipped.add(path, "is kept without its setuid, setgid and sticky bits");
    }
}

impl<W: Write> Visit for Pack<W> {
    type Error = io::Error;

    fn directory(&mut self, entry: &Entry<'_>) -> io::Result<bool> {
        let meta = meta(entry.mode, &entry.stat, entry.path, &mut self.skipped);
        self.out.directory(entry.path, meta).map(|()| true)
    }

    fn leave(&mut self, _: &Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, file: Option<File>) -> io::Result<bool> {
        let Some(file) = file else { return Ok(false) };
        let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
        let pieces = match pieces(&file, size) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                self.skipped.add(entry.path, "a sparse file of more than 262,144 pieces");
                return Ok(false);
            }
            other => other?,
        };
        let meta = meta(entry.mode, &entry.stat, entry.path, &mut self.skipped);
        self.out.file(entry.path, meta, &file, size, pieces.as_ref(), &mut |_| {}).map(|()| true)
    }

    fn hard_link(&mut self, entry: &Entry<'_>, first: &Path) -> io::Result<()> {
        let meta = Meta { mode: entry.mode & 0o777, modified: Time::of(&entry.stat) };
        self.out.hard_link(entry.path, first, meta)
    }

    fn symlink(&mut self, entry: &Entry<'_>, target: &OsStr) -> io::Result<()> {
        let meta = Meta { mode: 0o777, modified: Time::of(&entry.stat) };
        self.out.symlink(entry.path, target.as_bytes(), meta)
    }

    fn skipped(&mut self, path: &Path, why: Why) -> io::Result<()> {
        self.skipped.add(path, why.text());
        Ok(())
    }
}

struct Look(Skipped);

impl Visit for Look {
    type Error = io::Error;

    fn directory(&mut self, entry: &Entry<'_>) -> io::Result<bool> {
        note_bits(entry.mode, entry.path, &mut self.0);
        Ok(true)
    }
    fn leave(&mut self, _: &Entry<'_>) -> io::Result<()> {
        Ok(())
    }
    fn reads(&self) -> bool {
        false
    }
    fn file(&mut self, entry: &Entry<'_>, _: Option<File>) -> io::Result<bool> {
        note_bits(entry.mode, entry.path, &mut self.0);
        Ok(true)
    }
    fn hard_link(&mut self, _: &Entry<'_>, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn symlink(&mut self, _: &Entry<'_>, _: &OsStr) -> io::Result<()> {
        Ok(())
    }
    fn skipped(&mut self, path: &Path, why: Why) -> io::Result<()> {
        self.0.add(path, why.text());
        Ok(())
    }
}
