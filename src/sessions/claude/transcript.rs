//! claude's own record of a conversation: `<home>/.claude/projects/-workspace/<session id>.jsonl`.
//! It is all that a resume needs, so its presence decides how a new process starts.
//!
//! The payload can replace it or any directory above it: no link is ever followed to it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use memchr::memmem;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use uuid::Uuid;

/// claude names the directory after the working directory, with `/` as `-`.
const PROJECT: [&str; 3] = [".claude", "projects", "-workspace"];

/// Whether this session's conversation can be resumed.
pub fn exists(home: &Path, id: Uuid) -> bool {
    open(home, id).is_ok()
}

/// Syncs the conversation to the disk, which claude does not do; `first`: also its new directories.
/// Blocks.
pub fn sync(home: &Path, id: Uuid, first: bool) -> io::Result<()> {
    let dirs = dirs(home)?;
    record(dirs.last().expect("home at least").as_fd(), id)?.sync_data()?;
    // Later they do not change. A sync of clean data still flushes the disk's cache.
    for dir in dirs.iter().filter(|_| first) {
        rustix::fs::fsync(dir)?;
    }
    Ok(())
}

/// The home and the directories below it, up to the record's.
fn dirs(home: &Path) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dirs = vec![rustix::fs::openat(CWD, home, flags, Mode::empty())?];
    for name in PROJECT {
        dirs.push(rustix::fs::openat(&dirs[dirs.len() - 1], name, flags, Mode::empty())?);
    }
    Ok(dirs)
}

pub(in crate::sessions) fn project(home: &Path) -> io::Result<OwnedFd> {
    Ok(dirs(home)?.pop().expect("home at least"))
}

fn open(home: &Path, id: Uuid) -> io::Result<File> {
    record(project(home)?.as_fd(), id)
}

fn record(dir: BorrowedFd<'_>, id: Uuid) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, format!("{id}.jsonl"), flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file with content"));
    }
    Ok(file.into())
}

/// Changes the id of the conversation in `home`, a copy that no process uses: writes a new record
/// with the id replaced in every line, and removes the old one. `Ok(false)` when there is none.
pub fn rename(home: &Path, old: Uuid, new: Uuid) -> io::Result<bool> {
    let source = match open(home, old) {
        Ok(source) => source,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let dir = project(home)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(dir.as_fd(), format!("{new}.jsonl"), flags, Mode::RUSR | Mode::WUSR)?;
    rewrite(source, BufWriter::new(File::from(target)), old, new)?;
    // Large tool outputs lie in a directory named after the session. The record refers to it by
    // path, so it stays.
    rustix::fs::unlinkat(dir.as_fd(), format!("{old}.jsonl"), rustix::fs::AtFlags::empty())?;
    Ok(true)
}

/// Bytes copied at a time.
const PIECE: usize = 256 << 10;

/// Copies whole lines and replaces `"sessionId":"<old>"`. JSON escapes quotes inside texts, so the
/// pattern matches fields only. Lines may have any length; they are not held.
fn rewrite(mut from: impl Read + Seek, mut to: impl Write, old: Uuid, new: Uuid) -> io::Result<()> {
    let pattern = format!("\"sessionId\":\"{old}\"");
    let replacement = format!("\"sessionId\":\"{new}\"");
    let finder = memmem::Finder::new(&pattern);
    // A partial last line belongs to no finished turn.
    let end = last_line_end(&mut from)?;
    from.seek(SeekFrom::Start(0))?;
    let mut from = from.take(end);
    let mut held = Vec::with_capacity(2 * PIECE);
    loop {
        let read = from.by_ref().take(PIECE as u64).read_to_end(&mut held)?;
        let mut at = 0;
        for found in finder.find_iter(&held) {
            to.write_all(&held[at..found])?;
            to.write_all(replacement.as_bytes())?;
            at = found + pattern.len();
        }
        if read == 0 {
            to.write_all(&held[at..])?;
            return to.flush();
        }
        // A pattern may begin at the end of this piece.
        let sure = at.max(held.len().saturating_sub(pattern.len() - 1));
        to.write_all(&held[at..sure])?;
        held.drain(..sure);
    }
}

/// The offset after the last newline.
fn last_line_end(from: &mut (impl Read + Seek)) -> io::Result<u64> {
    let mut end = from.seek(SeekFrom::End(0))?;
    let mut piece = vec![0; PIECE];
    while end > 0 {
        let start = end.saturating_sub(PIECE as u64);
        let piece = &mut piece[..(end - start) as usize];
        from.seek(SeekFrom::Start(start))?;
        from.read_exact(piece)?;
        if let Some(newline) = memchr::memrchr(b'\n', piece) {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_field_changes_and_half_a_line_is_left_out() {
        let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
        let input = format!(
            "{{\"sessionId\":\"{old}\",\"text\":\"say \\\"sessionId\\\":\\\"{old}\\\"\"}}\n{{\"type\":\"summary\"}}\n{{\"sessionId\":\"{old}\",\"ha"
        );
        let mut output = Vec::new();
        rewrite(io::Cursor::new(&input), &mut output, old, new).unwrap();
        let text = String::from_utf8(output).unwrap();
        let want = format!(
            "{{\"sessionId\":\"{new}\",\"text\":\"say \\\"sessionId\\\":\\\"{old}\\\"\"}}\n{{\"type\":\"summary\"}}\n"
        );
        assert_eq!(text, want);
    }

    #[test]
    fn lines_of_any_length_are_rewritten_wherever_the_id_lies() {
        let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
        let field = |id: Uuid| format!("\"sessionId\":\"{id}\"");
        for before in [0, 1, PIECE - 60, PIECE - 30, PIECE - 1, PIECE, 3 * PIECE - 20] {
            let line = |id: Uuid| format!("{{\"x\":\"{}\",{f},{f}}}\n{{{f}}}\n", "x".repeat(before), f = field(id));
            let input = line(old) + &"y".repeat(2 * PIECE) + &field(old);
            let mut output = Vec::new();
            rewrite(io::Cursor::new(&input), &mut output, old, new).unwrap();
            assert!(output == line(new).as_bytes(), "{before}");
        }
        let mut output = Vec::new();
        rewrite(io::Cursor::new("no line end"), &mut output, old, new).unwrap();
        assert!(output.is_empty());
    }

    #[test]
    fn a_record_reached_by_a_link_does_not_exist() {
        let temp = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        let dir = temp.path().join(".claude/projects/-workspace");
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join(format!("{id}.jsonl"));
        assert!(!exists(temp.path(), id));
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        assert!(!exists(temp.path(), id));
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        assert!(!exists(temp.path(), id), "an empty record is none");
        std::fs::write(&file, "{}\n").unwrap();
        assert!(exists(temp.path(), id));
        let new = Uuid::new_v4();
        assert!(rename(temp.path(), id, new).unwrap());
        assert!(exists(temp.path(), new) && !exists(temp.path(), id));
        assert!(!rename(temp.path(), id, new).unwrap());
    }
}
