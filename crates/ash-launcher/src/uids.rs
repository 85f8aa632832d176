//! Assigns uids to sandboxes: a pair that is unused on this host, and was free for as long as
//! possible.
//!
//! ```text
//!   /run/ash-uids/                     0700 root, shared by all launchers of the host
//!     1900000000, 1900000001           a reserved pair: "<sandbox's id>\n<run directory>\n"
//!     next-<base>-<count>              where the next search begins: pairs are assigned in turn
//! ```
//!
//! A pair is reserved by creating its two files, which fails if they exist, so launchers with
//! overlapping ranges never share one. It is released after the sandbox's groups, processes and run
//! directory are gone, never before. The reservations outlive the launcher. The directory is
//! removed with /run at the next boot, as are all processes with these uids.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use uuid::Uuid;

pub const SHARED: &str = "/run/ash-uids";
/// Most bytes of a file: an id and a path.
const MAX_FILE: u64 = 8192;

pub type Pair = (u32, u32);

#[derive(Debug)]
pub struct Uids {
    dir: OwnedFd,
    base: u32,
    pairs: u32,
    /// The number of the pair at which the next search begins.
    next: u32,
    run_dir: String,
    /// First uid of each pair reserved by this launcher, and its sandbox. `nil`: not yet assigned.
    held: BTreeMap<u32, Uuid>,
    /// First uids of pairs in use by processes of unknown origin.
    seen: BTreeSet<u32>,
}

impl Uids {
    /// # Errors
    /// `shared` cannot be used. A missing one is created.
    pub fn open(shared: &Path, base: u32, count: u32, run_dir: &Path) -> io::Result<Self> {
        match rustix::fs::mkdirat(CWD, shared, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, shared, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&dir)?;
        if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o022 != 0 {
            let why = format!("belongs to uid {}, mode {:o}, and must be root's alone", found.st_uid, found.st_mode);
            return Err(io::Error::other(why));
        }
        let run_dir = run_dir.to_string_lossy().into_owned();
        let mut all =
            Self { dir, base, pairs: count / 2, next: 0, run_dir, held: BTreeMap::new(), seen: BTreeSet::new() };
        all.next = all.read(&all.pointer()).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        for (uid, id, owner) in all.files()? {
            if owner == all.run_dir && all.number(uid).is_some() {
                all.held.insert(uid, id);
            }
        }
        Ok(all)
    }

    /// Reserves the next pair for `id`. `None`: all are in use.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn take(&mut self, id: Uuid) -> io::Result<Option<Pair>> {
        for number in round(self.next, self.pairs) {
            let uid = self.base + 2 * number;
            if self.held.contains_key(&uid) || self.seen.contains(&uid) || !self.claim(uid, id)? {
                continue;
            }
            self.held.insert(uid, id);
            self.next = (number + 1) % self.pairs;
            self.write(&self.pointer(), OFlags::TRUNC, &format!("{}\n", self.next))?;
            return Ok(Some((uid, uid + 1)));
        }
        Ok(None)
    }

    /// Assigns a prepared pair to `id`.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn assign(&mut self, pair: Pair, id: Uuid) -> io::Result<()> {
        for uid in [pair.0, pair.1] {
            // The same length as the old text, so it is never partly written.
            self.write(&uid.to_string(), OFlags::empty(), &self.text(id))?;
        }
        self.held.insert(pair.0, id);
        Ok(())
    }

    /// Reserves the pair of an existing sandbox, whichever launcher created it.
    pub fn keep(&mut self, uid: u32, id: Uuid) {
        let Some(first) = self.number(uid).map(|number| self.base + 2 * number) else { return };
        self.held.insert(first, id);
        for uid in [first, first + 1] {
            if let Err(error) = self.write(&uid.to_string(), OFlags::TRUNC, &self.text(id)) {
                tracing::error!(uid, %error, "this uid could not be reserved for other launchers");
            }
        }
    }

    /// Nothing of `id` is left: its uids can be assigned again, after all others.
    pub fn release(&mut self, id: Uuid) {
        let gone: Vec<u32> = self.held.iter().filter(|(_, of)| **of == id).map(|(uid, _)| *uid).collect();
        for uid in gone {
            self.held.remove(&uid);
            self.remove(uid);
        }
    }

    /// Releases a pair that was just reserved and never used. Other pairs of its sandbox stay.
    pub fn give_back(&mut self, pair: Pair) {
        self.held.remove(&pair.0);
        self.remove(pair.0);
    }

    pub fn holders(&self) -> BTreeSet<Uuid> {
        self.held.values().copied().collect()
    }

    /// Updates the reservations. `running`: uids in use by processes. Uids of processes of unknown
    /// origin are not assigned. Pairs of a launcher whose run directory no longer exists are
    /// released.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn sweep(&mut self, running: &BTreeSet<u32>) -> io::Result<()> {
        self.seen = running.iter().filter_map(|uid| Some(self.base + 2 * self.number(*uid)?)).collect();
        self.seen.retain(|uid| !self.held.contains_key(uid));
        for (uid, _, owner) in self.files()? {
            let gone = owner != self.run_dir && !Path::new(&owner).join("sandboxes").exists();
            // In this range both files of a pair, otherwise each file separately.
            let both = self.number(uid).is_some();
            if gone && !running.contains(&uid) && !(both && running.contains(&(uid + 1))) {
                self.unlink(uid);
                if both {
                    self.unlink(uid + 1);
                }
            }
        }
        Ok(())
    }

    /// The number of a uid's pair. `None` outside of the range.
    fn number(&self, uid: u32) -> Option<u32> {
        uid.checked_sub(self.base).map(|offset| offset / 2).filter(|number| *number < self.pairs)
    }

    fn pointer(&self) -> String {
        format!("next-{}-{}", self.base, self.pairs * 2)
    }

    fn text(&self, id: Uuid) -> String {
        format!("{id}\n{}\n", self.run_dir)
    }

    /// Creates both files or none. `false`: one of them exists.
    fn claim(&self, uid: u32, id: Uuid) -> io::Result<bool> {
        for (made, uid) in [uid, uid + 1].into_iter().enumerate() {
            match self.write(&uid.to_string(), OFlags::EXCL, &self.text(id)) {
                Ok(()) => {}
                Err(error) => {
                    if made == 1 {
                        self.unlink(uid - 1);
                    }
                    if error.kind() == io::ErrorKind::AlreadyExists {
                        return Ok(false);
                    }
                    // Created, but not written.
                    self.unlink(uid);
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    fn remove(&self, first: u32) {
        self.unlink(first);
        self.unlink(first + 1);
    }

    fn unlink(&self, uid: u32) {
        match unlinkat(&self.dir, uid.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // It stays reserved.
            Err(error) => tracing::error!(uid, %error, "a uid could not be released"),
        }
    }

    fn write(&self, name: &str, how: OFlags, text: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | how;
        let file = openat(&self.dir, name, flags, Mode::from_raw_mode(0o600))?;
        std::fs::File::from(file).write_all(text.as_bytes())
    }

    fn read(&self, name: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::empty()).ok()?;
        let mut text = String::new();
        std::fs::File::from(file).take(MAX_FILE).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Every reserved uid, its sandbox, and the run directory of its launcher.
    fn files(&self) -> io::Result<Vec<(u32, Uuid, String)>> {
        let mut all = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            let Some(uid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let text = self.read(&uid.to_string()).unwrap_or_default();
            let mut lines = text.lines();
            let id = lines.next().and_then(|id| id.parse().ok()).unwrap_or(Uuid::nil());
            all.push((uid, id, lines.next().unwrap_or_default().to_owned()));
        }
        // In this range only the first of each pair.
        all.retain(|(uid, ..)| self.number(*uid).is_none_or(|number| self.base + 2 * number == *uid));
        Ok(all)
    }
}

/// All pairs once, starting with `next`.
fn round(next: u32, pairs: u32) -> impl Iterator<Item = u32> {
    let next = if next < pairs { next } else { 0 };
    (next..pairs).chain(0..next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, base: u32, count: u32, run: &str) -> Uids {
        Uids::open(&dir.join("uids"), base, count, Path::new(run)).unwrap()
    }

    fn first(uids: &mut Uids, id: Uuid) -> Option<u32> {
        uids.take(id).unwrap().map(|(uid, init)| {
            assert_eq!(init, uid + 1);
            uid
        })
    }

    #[test]
    fn pairs_go_round_and_run_out() {
        assert_eq!(round(2, 4).collect::<Vec<_>>(), [2, 3, 0, 1]);
        assert_eq!(round(9, 2).collect::<Vec<_>>(), [0, 1]);
        let dir = tempfile::tempdir().unwrap();
        let mut uids = open(dir.path(), 1000, 7, "/run/a");
        let ids: Vec<Uuid> = (0..4).map(|_| Uuid::new_v4()).collect();
        assert_eq!(first(&mut uids, ids[0]), Some(1000));
        uids.release(ids[0]);
        // Half a pair is not usable: 1006 is not assigned.
        let got: Vec<_> = ids[1..].iter().map(|id| first(&mut uids, *id)).collect();
        assert_eq!(got, [Some(1002), Some(1004), Some(1000)], "the one that was free for the shortest time comes last");
        assert_eq!(first(&mut uids, ids[0]), None);
        uids.release(ids[2]);
        assert_eq!(first(&mut uids, ids[0]), Some(1004));
    }

    #[test]
    fn the_next_launcher_goes_on_where_this_one_was() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
        let mut uids = open(dir.path(), 1000, 8, "/run/a");
        assert_eq!((first(&mut uids, one), first(&mut uids, two)), (Some(1000), Some(1002)));
        uids.release(two);
        drop(uids);
        let mut uids = open(dir.path(), 1000, 8, "/run/a");
        assert_eq!(uids.holders(), [one].into());
        assert_eq!(
            (first(&mut uids, two), first(&mut uids, two), first(&mut uids, two)),
            (Some(1004), Some(1006), Some(1002))
        );
        assert_eq!(first(&mut uids, two), None);
    }

    #[test]
    fn launchers_with_overlapping_ranges_share_no_uid() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (open(dir.path(), 1000, 8, "/run/a"), open(dir.path(), 1003, 8, "/run/b"));
        let mut taken = BTreeSet::new();
        loop {
            let pairs = [a.take(Uuid::new_v4()).unwrap(), b.take(Uuid::new_v4()).unwrap()];
            for (uid, init) in pairs.iter().flatten() {
                assert!(taken.insert(*uid) && taken.insert(*init), "{uid} is given twice");
            }
            if pairs == [None, None] {
                break;
            }
        }
        // Each launcher gets every other pair, because the other launcher's pairs are shifted by
        // one uid.
        assert_eq!(taken, [1000, 1001, 1003, 1004, 1006, 1007, 1009, 1010].into());
        let files = std::fs::read_dir(dir.path().join("uids")).unwrap();
        let files: BTreeSet<u32> = files.filter_map(|file| file.unwrap().file_name().to_str()?.parse().ok()).collect();
        assert_eq!(files, taken, "half a pair that was tried is given back");
    }

    #[test]
    fn what_runs_is_not_given_and_what_is_gone_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir_all(run.join("sandboxes")).unwrap();
        let mut gone = open(dir.path(), 1000, 8, run.to_str().unwrap());
        first(&mut gone, Uuid::new_v4());
        first(&mut gone, Uuid::new_v4());
        drop(gone);
        let mut uids = open(dir.path(), 1000, 8, "/run/b");
        // A process of unknown origin has 1007, init's uid of the last pair.
        let running = [1007].into();
        uids.sweep(&running).unwrap();
        let id = Uuid::new_v4();
        assert_eq!((first(&mut uids, id), first(&mut uids, id)), (Some(1004), None));
        std::fs::remove_dir_all(&run).unwrap();
        uids.sweep(&[1002].into()).unwrap();
        assert_eq!((first(&mut uids, id), first(&mut uids, id), first(&mut uids, id)), (Some(1006), Some(1000), None));
        uids.sweep(&BTreeSet::new()).unwrap();
        assert_eq!(first(&mut uids, id), Some(1002));
    }

    #[test]
    fn what_is_found_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (id, other) = (Uuid::new_v4(), Uuid::new_v4());
        let mut uids = open(dir.path(), 1000, 4, "/run/a");
        uids.keep(1001, id);
        uids.keep(5000, id);
        assert_eq!((first(&mut uids, other), first(&mut uids, other)), (Some(1002), None));
        uids.release(id);
        assert_eq!(uids.take(Uuid::nil()).unwrap(), Some((1000, 1001)));
        uids.assign((1000, 1001), id).unwrap();
        assert_eq!(open(dir.path(), 1000, 4, "/run/a").holders(), [id, other].into());
    }
}
