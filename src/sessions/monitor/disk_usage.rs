//! Disk use of a session, and how often to measure it. Without project quotas the kernel does not
//! count it, so ashd walks the directory, as rarely as the detection time of one second permits:
//!
//! ```text
//!   each tick (250 ms): free space of the file system, one system call for all sessions
//!      lost half of what the session has left or more    -> walk now
//!      lost anything, last walk long enough ago          -> walk (2 % of a core per session)
//!      nothing lost, but the session used the processor  -> the same: others may have freed it
//!      nothing lost for 10 s                             -> walk
//! ```
//!
//! Deleted files that are still open have no name, so no walk finds them. When the disk lost half
//! of what a session has left and its files do not explain it, the launcher counts what its
//! processes hold ([`held_is_due`], `kernel::held`).
//!
//! A walk stops at the limit: a tree of ten million files costs no more than one just above the
//! limit.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ash_kernel::held::Held;
use ash_kernel::owned::{self, Opened};
use ash_kernel::walk::RESOLVE;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, statvfs};
use rustix::io::Errno;

/// Maximum directory depth. A deeper tree could not be removed by path either.
const DEPTH: usize = 128;
/// Minimum time between two walks of one session.
const SHORTEST: Duration = Duration::from_millis(200);
const USUAL: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);
/// Walks take at most 1/SHARE of the time.
const SHARE: u32 = 50;
/// Changes of free space below this are ignored.
const NOISE: u64 = 64 << 10;

/// Result of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes in allocated blocks: holes of sparse files are free, and hard links count once.
    pub bytes: u64,
    /// Directory entries of any type.
    pub files: u64,
    /// Something could not be measured (nested too deep, or unreadable), so nothing bounds it.
    pub hidden: bool,
    /// The part of `bytes` in deleted, open files, counted by the launcher.
    pub held_bytes: u64,
    /// Processes hold files that could not be counted, while the disk loses more than the session
    /// may have left.
    pub held_hidden: bool,
}

/// Upper bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub bytes: u64,
    pub files: u64,
}

impl DiskUse {
    pub fn is_over(&self, bound: Bound) -> bool {
        self.hidden || self.held_hidden || self.bytes > bound.bytes || self.files > bound.files
    }

    /// Adds what the session's processes hold in deleted files.
    #[must_use]
    pub fn and(self, held: Held) -> Self {
        let bytes = self.bytes.saturating_add(held.bytes);
        Self { bytes, files: self.files.saturating_add(held.files), held_bytes: held.bytes, ..self }
    }
}

/// Walks `root`. Stops early above `bound`. Blocks: about 1 µs for each cached file.
///
/// # Errors
/// `root` cannot be opened. Entries that vanish during the walk are not counted.
pub fn measure(root: &Path, bound: Bound) -> io::Result<DiskUse> {
    let mut used = DiskUse::default();
    let mut linked = HashSet::new();
    let top = openat(CWD, root, flags() | OFlags::PATH, Mode::empty())?;
    let top = owned::open(top, Path::new("."), flags(), Mode::empty(), RESOLVE)?;
    let mut open = vec![Level::new(top)?];
    loop {
        let depth = open.len();
        let Some(level) = open.last_mut() else { return Ok(used) };
        let entry = match level.entries.next() {
            None => {
                open.pop();
                continue;
            }
            Some(Err(_)) => {
                used.hidden = true;
                open.pop();
                continue;
            }
            Some(Ok(entry)) => entry,
        };
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let at = level.open.as_fd();
        let Ok(stat) = statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        used.files += 1;
        if is_dir || stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
            used.bytes += u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        }
        if used.is_over(bound) {
            return Ok(used);
        }
        if is_dir {
            match enter(at, name, depth) {
                Ok(Some(inner)) => open.push(inner),
                Ok(None) => {}
                Err(()) => used.hidden = true,
            }
        }
    }
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A directory on the path; it stays searchable while `open` lives.
struct Level {
    entries: Dir,
    open: Opened,
}

impl Level {
    fn new(open: Opened) -> io::Result<Self> {
        Ok(Self { entries: Dir::read_from(open.as_fd())?, open })
    }
}

/// Opens a directory of the payload, also one whose mode denies access to its owner (ashd on the
/// host): otherwise nothing would bound its content. `None` when it is gone.
fn enter(at: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<Option<Level>, ()> {
    if depth >= DEPTH {
        return Err(());
    }
    match owned::open(at, Path::new(OsStr::from_bytes(name.to_bytes())), flags(), Mode::empty(), RESOLVE) {
        Ok(open) => Level::new(open).map(Some).map_err(|_| ()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(_) => Err(()),
    }
}

/// Free space of a file system for an unprivileged user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Free {
    pub bytes: u64,
    /// Size of the file system in bytes.
    pub total_bytes: u64,
    /// Free inodes; the maximum where the file system allocates them dynamically.
    pub files: u64,
}

/// # Errors
/// Those of statvfs(3).
pub fn free(path: &Path) -> io::Result<Free> {
    let vfs = statvfs(path)?;
    let files = if vfs.f_files == 0 { u64::MAX } else { vfs.f_favail };
    Ok(Free {
        bytes: vfs.f_bavail.saturating_mul(vfs.f_frsize),
        total_bytes: vfs.f_blocks.saturating_mul(vfs.f_frsize),
        files,
    })
}

/// A completed walk.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub used: DiskUse,
    pub at: Instant,
    pub took: Duration,
    /// Free space when it began.
    pub free: Free,
}

/// Whether a walk is due. Pure.
pub fn is_due(seen: Option<&Seen>, bound: Bound, free: Free, busy: bool, now: Instant) -> bool {
    let Some(seen) = seen else { return true };
    let since = now.saturating_duration_since(seen.at);
    if since < SHORTEST.max(seen.took * 2) {
        return false;
    }
    let lost = (seen.free.bytes.saturating_sub(free.bytes), seen.free.files.saturating_sub(free.files));
    let left = (bound.bytes.saturating_sub(seen.used.bytes), bound.files.saturating_sub(seen.used.files));
    let close = lost.0.saturating_mul(2) >= left.0 || lost.1.saturating_mul(2) >= left.1;
    let patience = match busy || lost.0 > NOISE || lost.1 > 0 {
        _ if close => return true,
        true => USUAL,
        false => LONGEST,
    };
    since >= patience.max(seen.took * SHARE)
}

/// The last count of deleted, open files, or the start of the comparison.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub held: Held,
    pub at: Instant,
    pub took: Duration,
    /// Free space and result of the walk at that time.
    pub free: Free,
    pub walked: u64,
}

/// Whether a count of deleted, open files is due: the disk lost half of what the session has left,
/// and its files do not explain it. Pure.
pub fn held_is_due(last: &Counted, walked: u64, bound: Bound, free: Free, busy: bool, now: Instant) -> bool {
    let since = now.saturating_duration_since(last.at);
    if since < SHORTEST.max(last.took * 2) {
        return false;
    }
    let lost = last.free.bytes.saturating_sub(free.bytes);
    let unexplained = lost.saturating_sub(walked.saturating_sub(last.walked));
    let left = bound.bytes.saturating_sub(walked.saturating_add(last.held.bytes));
    let close = unexplained > NOISE && unexplained.saturating_mul(2) >= left;
    // Held files may have been released, and what one session frees hides what another takes.
    close || ((busy || last.held.bytes > 0) && since >= USUAL.max(last.took * SHARE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Bound = Bound { bytes: u64::MAX, files: u64::MAX };

    #[test]
    fn blocks_count_and_links_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/a"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(at("d/a"), at("b")).unwrap();
        std::os::unix::fs::symlink("/", at("l")).unwrap();
        let sparse = std::fs::File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let used = measure(dir.path(), ALL).unwrap();
        assert_eq!((used.files, used.hidden), (5, false));
        assert!((1 << 20..(1 << 20) + 65_536).contains(&used.bytes), "{used:?}");
    }

    #[test]
    fn a_walk_stops_at_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..100 {
            std::fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        let used = measure(dir.path(), Bound { files: 10, ..ALL }).unwrap();
        assert_eq!(used.files, 11);
        assert!(used.is_over(Bound { files: 10, ..ALL }) && !used.is_over(ALL));
    }

    #[test]
    fn what_cannot_be_seen_is_over_every_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..DEPTH + 5 {
            path.push("d");
        }
        std::fs::create_dir_all(&path).unwrap();
        let used = measure(dir.path(), ALL).unwrap();
        assert!(used.hidden && used.is_over(ALL));
        assert!(measure(&dir.path().join("nothing"), ALL).is_err());
    }

    #[test]
    fn cadence() {
        const MIB: u64 = 1 << 20;
        let now = Instant::now();
        let bound = Bound { bytes: 1000 * MIB, files: 1000 };
        let start = Free { bytes: 10_000 * MIB, total_bytes: 20_000 * MIB, files: 10_000 };
        let seen = |took_ms| Seen {
            used: DiskUse { bytes: 400 * MIB, files: 500, ..DiskUse::default() },
            at: now,
            took: Duration::from_millis(took_ms),
            free: start,
        };
        assert!(is_due(None, bound, start, false, now));
        // (milliseconds of the walk, since it, MiB lost, files lost) -> due
        for (took, since, bytes, files, due) in [
            (1, 100, 900, 0, false),
            (1, 250, 300, 0, true),
            (1, 250, 299, 0, false),
            (1, 500, 299, 0, true),
            (1, 250, 0, 250, true),
            (1, 500, 0, 1, true),
            (1, 9_999, 0, 0, false),
            (1, 10_000, 0, 0, true),
            (300, 500, 900, 0, false),
            (300, 600, 900, 0, true),
            (300, 14_000, 1, 0, false),
            (300, 15_000, 1, 0, true),
        ] {
            let free = Free { bytes: start.bytes - bytes * MIB, files: start.files - files, ..start };
            let at = now + Duration::from_millis(since);
            assert_eq!(is_due(Some(&seen(took)), bound, free, false, at), due, "{took} {since} {bytes} {files}");
        }
        let busy = |ms| is_due(Some(&seen(1)), bound, start, true, now + Duration::from_millis(ms));
        assert!(busy(500) && !busy(499));
    }

    #[test]
    fn what_the_files_do_not_explain_is_looked_for() {
        const MIB: u64 = 1 << 20;
        let now = Instant::now();
        let bound = Bound { bytes: 1000 * MIB, files: 1000 };
        let start = Free { bytes: 10_000 * MIB, total_bytes: 20_000 * MIB, files: 10_000 };
        // (MiB held, ms since, MiB lost, MiB that the files grew from 400) -> due
        for (held, since, lost, grown, due) in [
            (0, 250, 400, 0, true),
            (0, 250, 299, 0, false),
            (0, 100, 400, 0, false),
            (0, 250, 400, 400, false),
            (0, 250, 500, 200, true),
            (0, 60_000, 0, 0, false),
            (100, 60_000, 0, 0, true),
            (100, 250, 0, 0, false),
            (100, 250, 250, 0, true),
        ] {
            let held = Held { bytes: held * MIB, ..Held::default() };
            let last = Counted { held, at: now, took: Duration::from_millis(5), free: start, walked: 400 * MIB };
            let free = Free { bytes: start.bytes - lost * MIB, ..start };
            let at = now + Duration::from_millis(since);
            let got = held_is_due(&last, (400 + grown) * MIB, bound, free, false, at);
            assert_eq!(got, due, "{held:?} {since} {lost} {grown}");
        }
        let last = Counted { held: Held::default(), at: now, took: Duration::ZERO, free: start, walked: 0 };
        let busy = |ms| held_is_due(&last, 0, bound, start, true, now + Duration::from_millis(ms));
        assert!(busy(500) && !busy(499));
    }
}
