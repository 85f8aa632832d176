//! Collects entries of the ledgers for ashd, and removes ledgers that ashd has stored.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

use super::{Collected, Entry, FULL, Ledger, LedgerError, Marks};

const SUFFIX: &str = ".jsonl";
/// Maximum bytes read of a ledger's file; above the writer's limit.
const MAX_FILE: u64 = FULL + (1 << 20);
/// Entries in one answer to ashd after which no further ledger is read.
const ENOUGH: usize = 1000;

pub(super) fn path(directory: &Path, id: Uuid) -> PathBuf {
    directory.join(format!("{id}{SUFFIX}"))
}

fn list(directory: &Path) -> Result<Vec<Uuid>, LedgerError> {
    let failed = |source| LedgerError::Directory { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|id| Uuid::try_parse(id).ok());
        found.extend(id);
    }
    // UUID version 7 sorts by time.
    found.sort_unstable();
    Ok(found)
}

/// Size of all ledgers in bytes.
pub(super) fn size(directory: &Path) -> Result<u64, LedgerError> {
    let sizes = list(directory)?.into_iter().filter_map(|id| fs::metadata(path(directory, id)).ok());
    Ok(sizes.map(|found| found.len()).sum())
}

/// Removes empty ledgers of ended processes. A gateway that fails at every start would otherwise
/// leave one per start.
pub(super) fn tidy(directory: &Path) -> Result<(), LedgerError> {
    for id in list(directory)? {
        let path = path(directory, id);
        let failed = |source| LedgerError::File { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let empty = file.metadata().map_err(failed)?.len() == 0;
        if empty && Flock::lock(file, FlockArg::LockSharedNonblock).is_ok() {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

impl Ledger {
    /// The entries after `marks`. Removes ledgers that are complete and fully acknowledged. The
    /// removal is on the disk when this returns, because ashd then forgets their marks. Blocks for
    /// the disk.
    ///
    /// # Errors
    /// The directory or a ledger cannot be read.
    pub fn collect(&self, marks: &Marks) -> Result<Collected, LedgerError> {
        let directory = self.directory.as_path();
        let own = *self.state.newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut out = Collected::default();
        let (mut removed, mut unread) = (false, 0);
        for id in list(directory)? {
            let mark = marks.get(&id).copied().unwrap_or(0);
            if own == (id, mark) || out.entries.len() >= ENOUGH {
                out.more |= own != (id, mark);
                out.ledgers.push(id);
                unread += fs::metadata(path(directory, id)).map_or(0, |found| found.len());
                continue;
            }
            let path = path(directory, id);
            let failed = |source| LedgerError::File { path: path.clone(), source };
            let file = File::open(&path).map_err(failed)?;
            // Before the read: the holder of the lock may append meanwhile.
            let (file, complete) = match Flock::lock(file, FlockArg::LockSharedNonblock) {
                Ok(held) => (held.unlock().map_err(|(_, why)| failed(why.into()))?, true),
                Err((file, _)) => (file, false),
            };
            let mut bytes = Vec::new();
            (&file).take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
            let before = out.entries.len();
            out.entries.extend(entries(&bytes, mark).map(|entry| (id, entry)));
            if complete && out.entries.len() == before {
                fs::remove_file(&path).map_err(failed)?;
                removed = true;
                continue;
            }
            out.ledgers.push(id);
            unread += bytes.len() as u64;
        }
        if removed {
            let failed = |source| LedgerError::Directory { path: directory.to_owned(), source };
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        }
        self.state.unread.store(unread, Ordering::Relaxed);
        Ok(out)
    }
}

/// The entries after `mark`. Skips a truncated or damaged line (power failure) and numbers that
/// occurred before.
fn entries(bytes: &[u8], mark: u64) -> impl Iterator<Item = Entry> {
    let mut newest = mark;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).filter_map(move |line| {
        let entry: Entry = match serde_json::from_slice(line) {
            Ok(entry) => entry,
            Err(why) => {
                tracing::warn!(%why, "skipped a damaged line of the ledger");
                return None;
            }
        };
        (entry.n > newest).then(|| {
            newest = entry.n;
            entry
        })
    })
}
