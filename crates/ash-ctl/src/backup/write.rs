//! Writing a backup.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{FileType, Mode, OFlags};
use sqlx::{ConnectOptions, Connection};

use super::manifest::{Kind, Line, Manifest, Sum};
use super::{DATABASE, KEPT, KEY, MANIFEST, database, failed};
use crate::CtlError;
use ash_archive::Time;
use ash_archive::write::{Meta, Writer, pieces};
use ash_kernel::beneath::{self, Refused};
use ash_kernel::private::Private;
use ash_kernel::tree::Tree;
use ash_kernel::unprivileged;
use ash_kernel::walk::{self, Entry, Visit, Why};
use ash_model::names;

type Archive = Writer<GzEncoder<File>>;

#[derive(Debug)]
pub struct Done {
    pub entries: u64,
    pub bytes: u64,
    pub skipped: Vec<String>,
    /// Size of the archive in bytes.
    pub size: u64,
    /// The data directory has a credential key.
    pub has_key: bool,
}

/// The archive while it is written; removed unless it gets its final name.
struct Unfinished {
    dir: Tree,
    name: OsString,
    done: bool,
}

impl Unfinished {
    fn new(file: &Path) -> Result<(Self, File), CtlError> {
        let failed = |error: io::Error| CtlError::file(file)(error);
        let wanted =
            file.file_name().ok_or_else(|| CtlError::Usage(format!("{} is not a file name", file.display())))?;
        let above = file.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = Tree::of_caller(above).map_err(failed)?;
        if dir.has(wanted) {
            return Err(CtlError::Usage(format!("{} already exists; name another file", file.display())));
        }
        let mut name = wanted.to_owned();
        name.push(format!(".unfinished-{}", std::process::id()));
        let to = dir.create_file(&name).map_err(|e| failed(e.into()))?;
        Ok((Self { dir, name, done: false }, to))
    }

    fn finish(mut self, file: &Path) -> Result<(), CtlError> {
        let wanted = file.file_name().unwrap_or_default();
        self.dir.rename(&self.name, &self.dir, wanted).map_err(|e| CtlError::file(file)(e.into()))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            // The first error matters more.
            let _ = self.dir.remove(&self.name);
        }
    }
}

/// # Errors
/// See [`super::backup`].
pub async fn write(data_dir: &Path, file: &Path, with_key: bool) -> Result<Done, CtlError> {
    let data = Tree::open(data_dir).map_err(|why| CtlError::file(data_dir)(why.into()))?;
    let (unfinished, to) = Unfinished::new(file)?;
    let private = Private::new(None, "ashctl-backup", 0o711).map_err(CtlError::file("temporary directory"))?;
    let whole = copy_database(&data, &private).await?;

    let told = std::io::IsTerminal::is_terminal(&io::stderr()).then(Instant::now);
    let mut pack = Pack {
        archive: Writer::new(GzEncoder::new(to, Compression::fast())),
        manifest: Manifest::new().map_err(failed("temporary file"))?,
        skipped: Vec::new(),
        told,
        within: PathBuf::new(),
        owner: data.owner().uid,
    };
    let stat = rustix::fs::fstat(&whole).map_err(|e| CtlError::file(data_dir.join(DATABASE))(e.into()))?;
    let made = Entry { path: Path::new(DATABASE), name: DATABASE.as_ref(), stat, mode: 0o600 };
    pack.file(&made, Some(whole)).map_err(CtlError::file(data_dir.join(DATABASE)))?;
    for name in KEPT.into_iter().chain(with_key.then_some(KEY)) {
        pack.top(&data, name).map_err(CtlError::file(data_dir.join(name)))?;
    }
    let Pack { mut archive, manifest, skipped, .. } = pack;
    let (entries, bytes, has_key) = (manifest.entries, manifest.bytes, data.has(KEY));
    let finish = || -> io::Result<u64> {
        let (text, length) = manifest.finish()?;
        let meta = Meta { mode: 0o600, modified: Time::default() };
        archive.file(Path::new(MANIFEST), meta, &text, length, None, &mut |_| {})?;
        let mut to = archive.finish()?.finish()?;
        to.flush()?;
        to.sync_all()?;
        Ok(to.metadata()?.len())
    };
    let size = finish().map_err(CtlError::file(file))?;
    unfinished.finish(file)?;
    Ok(Done { entries, bytes, skipped, size, has_key })
}

/// A consistent copy of the database, open for reading, also while ashd writes. SQLite opens files
/// beside the database by name, in a directory that ashd can write. Root therefore starts a process
/// with the ids of the directory's owner for it.
async fn copy_database(data: &Tree, private: &Private) -> Result<File, CtlError> {
    let from = data.path().join(DATABASE);
    if !data.has(DATABASE) {
        let source = io::Error::new(io::ErrorKind::NotFound, "not found: is this ashd's data directory (--data-dir)?");
        return Err(CtlError::File { path: from.display().to_string(), source });
    }
    let failed = |error: io::Error| CtlError::file(&from)(error);
    let (own, owner) = (rustix::process::geteuid().as_raw(), data.owner());
    let other = own == 0 && owner.uid != 0;
    let copy = private.tree().make_dir("copy", 0o700, other.then_some(owner)).map_err(|e| failed(e.into()))?;
    let to = copy.path().join(DATABASE);
    if other {
        // By descriptor: the program may be in a directory that only root can enter.
        let image = inherited_image().map_err(failed)?;
        let mut command = unprivileged::command(format!("/proc/self/fd/{}", image.as_raw_fd()), owner);
        command.arg("copy-database").arg(&from).arg(&to);
        let answer = unprivileged::answer(&mut command, COPY_WITHIN, 4096).map_err(failed)?;
        if !answer.status.success() {
            let why = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
            return Err(CtlError::Answer(format!(
                "the database cannot be copied as its owner, uid {}: {why} ({})",
                owner.uid, answer.status
            )));
        }
    } else {
        copy_as_this_user(&from, &to).await?;
    }
    let made = copy.open_file(DATABASE).map_err(|e| failed(e.into()))?;
    // The owner could put a hard link to another user's file there.
    beneath::owned_by(&made, copy.owner().uid).map_err(|e| failed(e.into()))?;
    Ok(made)
}

/// This program, open across an exec.
fn inherited_image() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/self/exe", OFlags::RDONLY, Mode::empty())?)
}

/// Implements `ashctl copy-database`.
///
/// # Errors
/// The error of SQLite.
pub async fn copy_as_this_user(from: &Path, to: &Path) -> Result<(), CtlError> {
    let what = "the database cannot be copied";
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(from).read_only(true);
    let options = options.busy_timeout(Duration::from_secs(30));
    let mut db = options.connect().await.map_err(database(what))?;
    let text = to.to_str().ok_or_else(|| CtlError::Usage(format!("{} is not UTF-8", to.display())))?;
    sqlx::query("VACUUM INTO ?").bind(text).execute(&mut db).await.map_err(database(what))?;
    db.close().await.map_err(database(what))
}

/// Time limit for the copy of the database.
const COPY_WITHIN: Duration = Duration::from_secs(3600);

/// Interval between progress lines.
const TELL: Duration = Duration::from_secs(2);
/// Maximum bytes of a path; a longer one could not be restored.
const MAX_PATH: usize = 4000;

/// Adds what a walk finds to the archive and its manifest. Skips what disappears meanwhile.
struct Pack {
    archive: Archive,
    manifest: Manifest,
    skipped: Vec<String>,
    /// Time of the last progress line; `None` without a terminal.
    told: Option<Instant>,
    /// The tree that is being walked, relative to the data directory.
    within: PathBuf,
    /// Owner of the data directory.
    owner: u32,
}

impl Pack {
    /// One entry of the data directory and everything below it. Never follows a symbolic link:
    /// agents own these trees, and this program may be root.
    fn top(&mut self, data: &Tree, name: &str) -> io::Result<()> {
        let open = |flags: OFlags| beneath::open(data, Path::new(name), flags);
        self.within = PathBuf::new();
        let found = match open(OFlags::PATH) {
            Err(Refused::NotFound) => return Ok(()),
            Err(Refused::Link) => {
                self.skipped.push(format!("{name}: a symbolic link in the data directory"));
                return Ok(());
            }
            found => found?,
        };
        let stat = rustix::fs::fstat(&found)?;
        let entry = Entry { path: Path::new(name), name: OsStr::new(name), stat, mode: stat.st_mode & 0o7777 };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let dir = open(OFlags::RDONLY | OFlags::DIRECTORY)?;
                self.directory(&entry)?;
                self.within = PathBuf::from(name);
                walk::walk(dir.as_fd(), self)
            }
            FileType::RegularFile => self.file(&entry, Some(data.open_file(name)?)).map(drop),
            _ => self.skipped(entry.path, Why::Device),
        }
    }

    fn meta(&mut self, entry: &Entry<'_>) -> Meta {
        if entry.mode & 0o7000 != 0 {
            let path = names::shown(&self.within.join(entry.path));
            self.skipped.push(format!("{path}: is kept without its setuid, setgid and sticky bits"));
        }
        Meta { mode: entry.mode & 0o777, modified: Time::of(&entry.stat) }
    }

    /// The path in the archive, if it can be restored.
    fn path(&mut self, entry: &Entry<'_>) -> Option<PathBuf> {
        let path = self.within.join(entry.path);
        if path.as_os_str().len() <= MAX_PATH {
            return Some(path);
        }
        let start: String = names::shown(&path).chars().take(120).collect();
        self.skipped.push(format!("{start}...: the path is longer than {MAX_PATH} bytes"));
        None
    }

    fn line(
        &mut self,
        path: &Path,
        kind: Kind,
        bytes: u64,
        sha256: Option<String>,
        target: Option<&OsStr>,
    ) -> io::Result<()> {
        let target = target.map(|target| names::shown(Path::new(target)));
        self.manifest.add(&Line { path: names::shown(path), kind, bytes, sha256, target })
    }
}

impl Visit for Pack {
    type Error = io::Error;

    fn directory(&mut self, entry: &Entry<'_>) -> io::Result<bool> {
        let Some(path) = self.path(entry) else { return Ok(false) };
        let meta = self.meta(entry);
        self.archive.directory(&path, meta)?;
        self.line(&path, Kind::Directory, 0, None, None).map(|()| true)
    }

    fn leave(&mut self, _: &Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, file: Option<File>) -> io::Result<bool> {
        if self.told.is_some_and(|told| told.elapsed() > TELL) {
            self.told = Some(Instant::now());
            eprintln!("  {} entries, {} MB", self.manifest.entries, self.manifest.bytes / 1_000_000);
        }
        let (Some(file), Some(path)) = (file, self.path(entry)) else { return Ok(false) };
        let mut skip = |why: &str| {
            self.skipped.push(format!("{}: {why}", names::shown(&path)));
            Ok(false)
        };
        // The owner could create a hard link to another user's file here.
        if entry.stat.st_nlink > 1 && entry.stat.st_uid != self.owner {
            return skip(&format!("a hard link to a file of uid {}", entry.stat.st_uid));
        }
        let size = entry.stat.st_size.unsigned_abs();
        let pieces = match pieces(&file, size) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return skip("a sparse file of more than 262,144 pieces");
            }
            other => other?,
        };
        // The checksum covers the bytes in the archive, even when the file changes meanwhile.
        let mut sum = Sum::new(pieces.as_ref().map(|pieces| (size, pieces.as_slice())));
        let meta = self.meta(entry);
        self.archive.file(&path, meta, &file, size, pieces.as_ref(), &mut |bytes| sum.add(bytes))?;
        let (bytes, sha256) = sum.done();
        self.line(&path, Kind::File, bytes, Some(sha256), None).map(|()| true)
    }

    fn hard_link(&mut self, entry: &Entry<'_>, first: &Path) -> io::Result<()> {
        let Some(path) = self.path(entry) else { return Ok(()) };
        let first = self.within.join(first);
        let meta = Meta { mode: entry.mode & 0o777, modified: Time::of(&entry.stat) };
        self.archive.hard_link(&path, &first, meta)?;
        self.line(&path, Kind::Hardlink, 0, None, Some(first.as_os_str()))
    }

    fn symlink(&mut self, entry: &Entry<'_>, target: &OsStr) -> io::Result<()> {
        let Some(path) = self.path(entry) else { return Ok(()) };
        let meta = Meta { mode: 0o777, modified: Time::of(&entry.stat) };
        self.archive.symlink(&path, target.as_bytes(), meta)?;
        self.line(&path, Kind::Symlink, 0, None, Some(target))
    }

    fn skipped(&mut self, path: &Path, why: Why) -> io::Result<()> {
        self.skipped.push(format!("{}: {}", names::shown(&self.within.join(path)), why.text()));
        Ok(())
    }
}
