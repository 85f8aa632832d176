//! What a session has on the disk, and how often to look. The kernel counts it for nobody where the file system has no
//! project quota, so the directory is walked, as seldom as the bound of one second allows:
//!
//! ```text
//!   each tick (250 ms): free space of the file system, one system call for all sessions
//!      lost as much as half of what the session has left   -> walk now
//!      lost anything, and the last walk is long enough ago  -> walk   (at most 2 % of one core in walks, per session)
//!      nothing lost, but the session used the processor     -> the same: others may have freed as much meanwhile
//!      nothing lost for 10 s                                -> walk all the same
//! ```
//!
//! What was deleted and is still open has no name that a walk could find. When the disk has lost half of what a session has left,
//! and its files do not say where to, the launcher counts what its processes hold ([`held_is_due`], `kernel::held`).
//!
//! A walk stops at the limit, so a tree of ten million files costs no more than one that is just too large.

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

/// Directories in each other that are followed. A deeper tree could not be removed by path either.
const DEPTH: usize = 128;
/// Between two walks of one session at least.
const SHORTEST: Duration = Duration::from_millis(200);
const USUAL: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);
/// A walk may take this part of the time.
const SHARE: u32 = 50;
/// Bytes that come and go on any file system.
const NOISE: u64 = 64 << 10;

/// What a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes in allocated blocks: holes of sparse files are free, and a file of many names counts once.
    pub bytes: u64,
    /// Files, directories and whatever else has a name.
    pub files: u64,
    /// Something in it could not be looked at, so that nothing bounds it: nested too deep, or unreadable.
    pub hidden: bool,
    /// The part of `bytes` that has no name: deleted and still open. No walk finds it; the launcher counts it.
    pub held_bytes: u64,
    /// Processes hold what could not be counted, while the disk loses more than the session may have left.
    pub held_hidden: bool,
}

/// How much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub bytes: u64,
    pub files: u64,
}

impl DiskUse {
    pub fn is_over(&self, bound: Bound) -> bool {
        self.hidden || self.held_hidden || self.bytes > bound.bytes || self.files > bound.files
    }

    /// With what its processes hold without a name.
    #[must_use]
    pub fn and(self, held: Held) -> Self {
        let bytes = self.bytes.saturating_add(held.bytes);
        Self { bytes, files: self.files.saturating_add(held.files), held_bytes: held.bytes, ..self }
    }
}

/// Walks `root`. Stops early once `bound` is passed. Blocks: about a microsecond for each file in the cache.
///
/// # Errors
/// `root` itself cannot be opened. What vanishes meanwhile is not counted.
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

/// A directory on the way: it can be searched as long as `open` lives.
struct Level {
    entries: Dir,
    open: Opened,
}

impl Level {
    fn new(open: Opened) -> io::Result<Self> {
        Ok(Self { entries: Dir::read_from(open.as_fd())?, open })
    }
}

/// Opens a directory of the payload's, also one that it closed to itself, and so to its owner on the host: otherwise nothing would
/// bound what is in it. `None` when it is gone.
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

/// What the file system has left for an unprivileged user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Free {
    pub bytes: u64,
    /// Size of the whole file system in bytes.
    pub total_bytes: u64,
    /// Files that can still be made; the largest number where the file system makes them as needed.
    pub files: u64,
}

/// # Errors
/// What statvfs(3) answers.
pub fn free(path: &Path) -> io::Result<Free> {
    let vfs = statvfs(path)?;
    let files = if vfs.f_files == 0 { u64::MAX } else { vfs.f_favail };
    Ok(Free {
        bytes: vfs.f_bavail.saturating_mul(vfs.f_frsize),
        total_bytes: vfs.f_blocks.saturating_mul(vfs.f_frsize),
        files,
    })
}

/// A walk that was made.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub used: DiskUse,
    pub at: Instant,
    pub took: Duration,
    /// What was free when it began.
    pub free: Free,
}

/// Whether it is time to walk. Pure.
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

/// The last count of what a session's processes hold without a name, or the moment from which on it is reckoned.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub held: Held,
    pub at: Instant,
    pub took: Duration,
    /// What was free then, and what the walk of then had found.
    pub free: Free,
    pub walked: u64,
}

/// Whether it is time to count what has no name: the disk has lost half of what the session has left, and its files do not say
/// where to. Pure.
pub fn held_is_due(last: &Counted, walked: u64, bound: Bound, free: Free, busy: bool, now: Instant) -> bool {
    let since = now.saturating_duration_since(last.at);
    if since < SHORTEST.max(last.took * 2) {
        return false;
    }
    let lost = last.free.bytes.saturating_sub(free.bytes);
    let unexplained = lost.saturating_sub(walked.saturating_sub(last.walked));
    let left = bound.bytes.saturating_sub(walked.saturating_add(last.held.bytes));
    let close = unexplained > NOISE && unexplained.saturating_mul(2) >= left;
    // What was held may have been let go of; and what one session frees hides what another takes.
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
