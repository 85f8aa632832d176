//! Finds files without a name that processes hold: deleted and still open, deleted and still
//! mapped, or never named (`O_TMPFILE`). A directory walk does not find them.
//!
//! ```text
//!   processes of a group -> /proc/<pid>/fd          (also of threads with their own descriptors)
//!                           /proc/<pid>/map_files   mapped, with the descriptor closed
//!                           /proc/<pid>/fdinfo      of unix sockets: descriptors in transit
//!   each inode once -> blocks
//! ```
//!
//! Needs CAP_SYS_PTRACE over processes of other users, and CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE
//! for mapped files.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Stat, statat};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes in allocated blocks.
    pub bytes: u64,
    pub files: u64,
    /// Something was not examined: descriptors in a socket's queue, or the time was over.
    pub hidden: bool,
}

/// Scans `processes` for nameless files of the file system with the number `device`. Ends after
/// `within`.
pub fn scan(processes: &[i32], device: u64, within: Duration) -> Held {
    let until = Instant::now() + within;
    let mut scan = Scan { held: Held::default(), seen: HashSet::new(), device, until };
    for pid in processes {
        scan.process(*pid);
        if scan.is_late() {
            scan.held.hidden = true;
            break;
        }
    }
    scan.held
}

struct Scan {
    held: Held,
    seen: HashSet<u64>,
    device: u64,
    until: Instant,
}

impl Scan {
    fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    /// A process that has ended holds nothing.
    fn process(&mut self, pid: i32) {
        self.descriptors(&format!("/proc/{pid}"));
        for tid in numbers(&format!("/proc/{pid}/task")).into_iter().flatten().filter(|tid| *tid != pid) {
            if self.is_late() {
                return;
            }
            if !same_descriptors(pid, tid) {
                self.descriptors(&format!("/proc/{pid}/task/{tid}"));
            }
        }
        // A large process has some thousand lines.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for range in deleted_mappings(&maps) {
            if let Ok(stat) = statat(CWD, format!("/proc/{pid}/map_files/{range}"), AtFlags::empty()) {
                self.note(&stat);
            }
        }
    }

    fn descriptors(&mut self, of: &str) {
        let Some(all) = numbers(&format!("{of}/fd")) else {
            // Distinguishes a missing permission from an ended process, which has no directory.
            self.held.hidden |= std::fs::exists(of).unwrap_or(false) && !is_zombie(of);
            return;
        };
        for fd in all {
            if self.is_late() {
                return;
            }
            let Ok(stat) = statat(CWD, format!("{of}/fd/{fd}"), AtFlags::empty()) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
                let info = std::fs::read_to_string(format!("{of}/fdinfo/{fd}")).unwrap_or_default();
                self.held.hidden |= in_flight(&info) > 0;
            } else {
                self.note(&stat);
            }
        }
    }

    fn note(&mut self, stat: &Stat) {
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if regular && stat.st_nlink == 0 && stat.st_dev == self.device && self.seen.insert(stat.st_ino) {
            self.held.files += 1;
            self.held.bytes += u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        }
    }
}

/// The numeric names in a directory. `None` if it cannot be read.
fn numbers(dir: &str) -> Option<Vec<i32>> {
    let entries = std::fs::read_dir(dir).ok()?;
    Some(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn is_zombie(of: &str) -> bool {
    std::fs::read_to_string(format!("{of}/stat")).is_ok_and(|stat| stat.contains(") Z ") || stat.contains(") X "))
}

/// The names in `map_files` of mappings of deleted files, from the text of `maps`
/// (proc_pid_maps(5)).
fn deleted_mappings(maps: &str) -> Vec<String> {
    let parse = |line: &str| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        // `maps` pads the addresses with zeros, `map_files` does not.
        let number = |text| u64::from_str_radix(text, 16).ok();
        line.ends_with(" (deleted)").then_some(format!("{:x}-{:x}", number(from)?, number(to)?))
    };
    maps.lines().filter_map(parse).collect()
}

/// Descriptors waiting in a unix socket's queue, from the text of its `fdinfo` (Linux 5.10).
fn in_flight(fdinfo: &str) -> u64 {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("scm_fds:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Whether two threads share their descriptors (kcmp(2)). If unknown, both are scanned.
fn same_descriptors(one: i32, other: i32) -> bool {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: numbers only; the kernel compares and changes nothing.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0_usize, 0_usize) };
    answer == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_deleted_file_counts_once_and_a_named_one_not() {
        let dir = tempfile::tempdir().unwrap();
        let device = std::fs::metadata(dir.path()).unwrap().dev();
        let own = [i32::try_from(std::process::id()).unwrap()];
        // Other tests of this process may hold such files, so only the increase is checked.
        let before = scan(&own, device, Duration::from_secs(5));
        let path = dir.path().join("f");
        std::fs::write(&path, vec![1; 8 << 20]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let _twice = file.try_clone().unwrap();
        assert!(scan(&own, device, Duration::from_secs(5)).bytes < before.bytes + (8 << 20), "it has a name");
        std::fs::remove_file(&path).unwrap();
        let after = scan(&own, device, Duration::from_secs(5));
        assert!((8 << 20..16 << 20).contains(&(after.bytes - before.bytes)), "{before:?} {after:?}");
        assert_eq!(scan(&own, device + 1, Duration::from_secs(5)).bytes, 0, "another file system");
        assert!(scan(&own, device, Duration::ZERO).hidden, "no time");
    }

    #[test]
    fn texts() {
        let maps = "00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/a\n\
            7f0000000000-7f0000001000 rw-s 00000000 08:02 17 /workspace/big (deleted)\n";
        assert_eq!(deleted_mappings(maps), ["7f0000000000-7f0000001000"]);
        assert_eq!(deleted_mappings("00400000-00452000 rw-s 0 08:02 1 /x (deleted)\n"), ["400000-452000"]);
        assert_eq!((in_flight("pos:\t0\nscm_fds: 3\n"), in_flight("pos:\t0\n")), (3, 0));
        assert!(same_descriptors(std::process::id() as i32, std::process::id() as i32));
    }
}
