//! Unpacks an archive into a workspace. Reads it twice: first to check all of it, then to write.
//!
//! [`super::write`] writes every entry, beneath the root and through no link. An archive that
//! creates a link and then a file below it gets an error. Links are created unchanged; the sandbox
//! resolves them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::super::error::ApiError;
use super::beneath::{self, Refused};
use super::path;
use super::write::{self, Bits};
use crate::sessions::api::limits::Room;
use ash_archive::Time;
use ash_archive::coding::decoder;
use ash_archive::read::{Content, Entries, Head};
use ash_kernel::walk::path_of;
use ash_model::{Skipped, names};

/// Most entries of an archive.
const MAX_ENTRIES: usize = 200_000;
/// Longest target of a link, in bytes.
const MAX_TARGET: usize = 4095;

/// The result of unpacking.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub files: usize,
    /// Devices, named pipes, setuid bits.
    pub skipped: Skipped,
}

impl Report {
    pub fn in_words(&self) -> String {
        let files = match self.files {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        match self.skipped.count() {
            0 => format!("Workspace restored: {files}"),
            n => format!("Workspace restored: {files}; skipped or changed: {n}"),
        }
    }
}

/// Permission bits, time, and the bytes without holes.
#[derive(Clone, Copy, Debug)]
struct Meta {
    mode: u32,
    modified: Time,
    stored: u64,
}

enum Item {
    Directory(PathBuf),
    /// With its size, holes included.
    File(PathBuf, u64),
    Link(PathBuf, PathBuf),
    /// Another name of an existing file.
    HardLink(PathBuf, PathBuf),
    LeftOut(PathBuf, &'static str),
}

impl Item {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path)
            | Self::File(path, _)
            | Self::Link(path, _)
            | Self::HardLink(path, _)
            | Self::LeftOut(path, _) => path,
        }
    }
}

/// Unpacks beneath `root`. Each call of `archive` opens it from its beginning.
pub fn unpack<R: Read>(root: &File, archive: impl Fn() -> R, room: Room) -> Result<Report, ApiError> {
    let mut growth = Growth { root, added: 0, freed: 0, seen: HashSet::new() };
    each(archive(), room.most, |item, meta, _| growth.check(&item, meta.stored, room.left))?;
    let mut work = Work { root, report: Report::default(), way: Vec::new() };
    each(archive(), room.most, |item, meta, content| {
        work.leave_all_but(item.path())?;
        let path = item.path().to_owned();
        work.write(item, meta, content).map_err(|why| why.for_client(&names::shown(&path)))
    })?;
    work.leave_all_but(Path::new(""))?;
    Ok(work.report)
}

/// How much larger the workspace becomes: new files, less those that they replace.
struct Growth<'a> {
    root: &'a File,
    added: u64,
    freed: u64,
    /// Inodes that are counted in `freed`: an archive may name a file many times.
    seen: HashSet<u64>,
}

impl Growth<'_> {
    fn check(&mut self, item: &Item, stored: u64, left: u64) -> Result<(), ApiError> {
        let Item::File(path, _) = item else { return Ok(()) };
        self.added = self.added.saturating_add(stored);
        if let Some((inode, bytes)) = beneath::replaced(self.root, path)
            && self.seen.insert(inode)
        {
            self.freed = self.freed.saturating_add(bytes);
        }
        let growth = self.added.saturating_sub(self.freed);
        if growth > left {
            return Err(ApiError::too_large(format!(
                "bundle needs more than the {left} bytes that the session has left on its disk: delete files, or raise \
                 diskBytes (PATCH .../limits)"
            )));
        }
        Ok(())
    }
}

struct Work<'a> {
    root: &'a File,
    report: Report,
    /// Directories being filled. They get their modes and times when the archive has left them.
    way: Vec<(PathBuf, Meta)>,
}

impl Work<'_> {
    fn write(&mut self, item: Item, meta: Meta, content: &mut dyn Pieces) -> Result<(), Refused> {
        let root = self.root;
        if meta.mode & 0o7000 != 0 && !matches!(item, Item::Link(..) | Item::LeftOut(..)) {
            self.report.skipped.add(item.path(), "is kept without its setuid, setgid and sticky bits");
        }
        match item {
            Item::Directory(path) => {
                write::make_directory(root, &path)?;
                if !path.as_os_str().is_empty() {
                    self.way.push((path, meta));
                }
            }
            Item::File(path, size) => {
                self.report.files += 1;
                write::put_with(root, &path, Bits::Set(meta.mode), |file| {
                    content.write_to(file)?;
                    file.set_len(size)?;
                    Ok(rustix::fs::futimens(file, &meta.modified.stamps())?)
                })?;
            }
            Item::Link(path, target) => write::link(root, &path, &target, meta.modified.stamps())?,
            Item::HardLink(path, first) => {
                self.report.files += 1;
                write::hard_link(root, &path, &first)?;
            }
            Item::LeftOut(path, why) => self.report.skipped.add(&path, why),
        }
        Ok(())
    }

    /// Finishes the directories that do not lead to `path`.
    fn leave_all_but(&mut self, path: &Path) -> Result<(), ApiError> {
        while let Some((directory, _)) = self.way.last() {
            if path.starts_with(directory) && path != directory {
                return Ok(());
            }
            let Some((directory, meta)) = self.way.pop() else { return Ok(()) };
            write::finish_directory(self.root, &directory, meta.mode & 0o777, meta.modified.stamps())
                .map_err(|why| why.for_client(&names::shown(&directory)))?;
        }
        Ok(())
    }
}

/// The content of an entry, from any source.
trait Pieces {
    fn write_to(&mut self, file: &mut File) -> io::Result<()>;
}

impl<R: Read> Pieces for Content<'_, R> {
    fn write_to(&mut self, file: &mut File) -> io::Result<()> {
        while let Some((offset, _)) = self.piece()? {
            file.seek(SeekFrom::Start(offset))?;
            io::copy(self, file)?;
        }
        Ok(())
    }
}

/// Walks the archive with all its checks.
fn each(
    archive: impl Read,
    max_bytes: u64,
    mut visit: impl FnMut(Item, Meta, &mut dyn Pieces) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let broken = |why: io::Error| {
        ApiError::bad_request(format!("bundle is not a readable tar archive (gzip, zstd or plain): {why}"))
    };
    // Headers and padding count too: without this bound a small bomb would keep ashd unpacking for
    // hours.
    let bound = max_bytes.saturating_add(MAX_ENTRIES as u64 * 2048);
    let mut tar = Entries::new(decoder(archive).map_err(broken)?.take(bound));
    let (mut entries, mut bytes) = (0, 0_u64);
    while let Some((head, mut content)) = tar.next_entry().map_err(broken)? {
        entries += 1;
        bytes = bytes.saturating_add(head.stored);
        if entries > MAX_ENTRIES {
            return Err(ApiError::too_large(format!("bundle has more than {MAX_ENTRIES} entries")));
        }
        if bytes > max_bytes {
            return Err(ApiError::too_large(format!(
                "bundle unpacks to more than the session's disk limit of {max_bytes} bytes"
            )));
        }
        let meta = Meta { mode: head.mode & 0o7777, modified: head.modified, stored: head.stored };
        visit(judge(head)?, meta, &mut content)?;
    }
    Ok(())
}

fn judge(head: Head) -> Result<Item, ApiError> {
    let wrong = |why: String| ApiError::bad_request(format!("bundle: {why}"));
    let relative = |name: &[u8]| path::relative(name).map_err(wrong);
    let name = head.path.as_slice();
    Ok(match head.kind {
        EntryType::Directory => Item::Directory(path::directory(name).map_err(wrong)?),
        // The directory format of the oldest tar programs.
        EntryType::Regular if name.ends_with(b"/") => Item::Directory(path::directory(name).map_err(wrong)?),
        EntryType::Regular | EntryType::Continuous => Item::File(relative(name)?, head.size),
        EntryType::Symlink => match head.link {
            Some(target) if (1..=MAX_TARGET).contains(&target.len()) && !target.contains(&0) => {
                Item::Link(relative(name)?, path_of(target))
            }
            _ => Item::LeftOut(relative(name)?, "a link with an invalid target"),
        },
        EntryType::Link => Item::HardLink(relative(name)?, relative(&head.link.unwrap_or_default())?),
        EntryType::Fifo => Item::LeftOut(relative(name)?, "a named pipe"),
        EntryType::Char | EntryType::Block => Item::LeftOut(relative(name)?, "a device"),
        _ => Item::LeftOut(path_of(head.path), "an entry of an unknown type"),
    })
}

#[cfg(test)]
#[path = "unbundle_tests.rs"]
mod tests;
