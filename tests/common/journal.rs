//! journald as a program started by systemd sees it: a socket for entries, and a stderr connected
//! to the journal.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

pub type Entry = BTreeMap<String, String>;

/// Reads entries at once, because the queue of such a socket is short and its writers block.
pub struct Journal {
    dir: tempfile::TempDir,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Journal {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("ashd-journal-").tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("socket")).unwrap();
        for (path, mode) in [(dir.path().to_owned(), 0o755), (dir.path().join("socket"), 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let entries = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&entries);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(length) = socket.recv(&mut buffer) {
                taken.lock().unwrap().push(entry(&buffer[..length]));
            }
        });
        Self { dir, entries }
    }

    /// Shell code that puts the socket where programs look for it, in a mount namespace of its own,
    /// and makes the file of stderr appear as connected by journald.
    pub fn prelude(&self) -> String {
        format!(
            "mount --make-rprivate /\nmount -t tmpfs tmpfs /run\nmkdir -p /run/systemd/journal\n\
             mount --bind {} /run/systemd/journal\nexport JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2)",
            self.dir.path().display()
        )
    }

    /// Waits for a matching entry. Returns all entries so far.
    pub fn with(&self, what: &str, like: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let start = Instant::now();
        loop {
            let all = self.entries.lock().unwrap().clone();
            if all.iter().any(&like) {
                return all;
            }
            assert!(start.elapsed() < PATIENCE, "no {what} in {all:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The fields of one entry in journald's own format
/// (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
fn entry(mut bytes: &[u8]) -> Entry {
    let mut fields = Entry::new();
    while let Some(end) = memchr::memchr(b'\n', bytes) {
        let line = std::str::from_utf8(&bytes[..end]).unwrap();
        bytes = &bytes[end + 1..];
        match line.split_once('=') {
            Some((name, value)) => drop(fields.insert(name.to_owned(), value.to_owned())),
            None => {
                let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
                let value = String::from_utf8_lossy(&bytes[8..8 + length]).into_owned();
                fields.insert(line.to_owned(), value);
                bytes = &bytes[8 + length + 1..];
            }
        }
    }
    fields
}
