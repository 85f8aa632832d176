//! Making a backup.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use sqlx::{ConnectOptions, Connection};

use super::manifest::{Exactly, Kind, Line, Manifest};
use super::{DATABASE, KEPT, KEY, MANIFEST, database, failed};
use crate::ctl::CtlError;

type Archive = tar::Builder<GzEncoder<File>>;

/// What was written.
#[derive(Debug)]
pub struct Done {
    pub entries: u64,
    pub bytes: u64,
    pub skipped: Vec<String>,
}

/// Removes what is unfinished, unless it is told that all is well.
struct Unfinished(Vec<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for path in &self.0 {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// # Errors
/// See [`super::backup`].
pub async fn write(data_dir: &Path, file: &Path, with_key: bool) -> Result<Done, CtlError> {
    if file.exists() {
        return Err(CtlError::Usage(format!("{} is there already; name another file", file.display())));
    }
    let mut name: OsString = file.as_os_str().to_owned();
    name.push(format!(".unfinished-{}", std::process::id()));
    let unfinished = PathBuf::from(name);
    let copy = unfinished.with_extension(format!("db-{}", std::process::id()));
    let mut cleanup = Unfinished(vec![unfinished.clone(), copy.clone()]);
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished);
    let to = to.map_err(CtlError::file(&unfinished))?;
    copy_database(&data_dir.join(DATABASE), &copy).await?;

    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::fast()));
    let mut manifest = Manifest::new().map_err(failed("temporary file"))?;
    let mut skipped = Vec::new();
    let told = std::io::IsTerminal::is_terminal(&io::stderr()).then(Instant::now);
    let mut walk = Walk { archive: &mut archive, manifest: &mut manifest, skipped: &mut skipped, told };
    let whole = File::open(&copy).map_err(CtlError::file(&copy))?;
    walk.file(DATABASE, whole).map_err(CtlError::file(&copy))?;
    let root = rustix::fs::open(data_dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|e| CtlError::file(data_dir)(e.into()))?;
    for name in KEPT.into_iter().chain(with_key.then_some(KEY)) {
        walk.entry(&root, name).map_err(|(path, error)| CtlError::file(data_dir.join(path))(error))?;
    }
    let done = Done { entries: manifest.entries, bytes: manifest.bytes, skipped };
    let finish = || -> io::Result<()> {
        let (text, length) = manifest.finish()?;
        archive.append_data(&mut header(tar::EntryType::Regular, length, 0o600), MANIFEST, text)?;
        let mut to = archive.into_inner()?.finish()?;
        to.flush()?;
        to.sync_all()
    };
    finish().map_err(CtlError::file(&unfinished))?;
    std::fs::rename(&unfinished, file).map_err(CtlError::file(file))?;
    cleanup.0.remove(0);
    Ok(done)
}

/// A consistent copy, also while ashd writes.
async fn copy_database(from: &Path, to: &Path) -> Result<(), CtlError> {
    if !from.exists() {
        let source = io::Error::new(io::ErrorKind::NotFound, "not there: is this ashd's data directory (--data-dir)?");
        return Err(CtlError::File { path: from.display().to_string(), source });
    }
    let what = "the database cannot be copied";
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(from).read_only(true);
    let options = options.busy_timeout(Duration::from_secs(30));
    let mut db = options.connect().await.map_err(database(what))?;
    let text = to.to_str().ok_or_else(|| CtlError::Usage(format!("{} is not UTF-8", to.display())))?;
    sqlx::query("VACUUM INTO ?").bind(text).execute(&mut db).await.map_err(database(what))?;
    db.close().await.map_err(database(what))
}

struct Walk<'a> {
    archive: &'a mut Archive,
    manifest: &'a mut Manifest,
    skipped: &'a mut Vec<String>,
    /// When the person at the terminal was last told how far it is; `None` when nobody is there.
    told: Option<Instant>,
}

/// Between two lines of progress.
const TELL: Duration = Duration::from_secs(2);

type Failed = (String, io::Error);

impl Walk<'_> {
    /// One entry and all below it. Never through a symbolic link: agents own these trees, and this program may be root.
    /// What goes away while it is read is left out.
    fn entry(&mut self, root: &OwnedFd, path: &str) -> Result<(), Failed> {
        let failed = |error: rustix::io::Errno| (path.to_owned(), error.into());
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let looked = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat2(root, path, looked, Mode::empty(), how) {
            Ok(found) => found,
            // The last part may be a link, which is kept as one.
            Err(rustix::io::Errno::LOOP) => return self.symlink(root, path),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let stat = rustix::fs::fstat(&found).map_err(failed)?;
        let open = |flags: OFlags| {
            rustix::fs::openat2(root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), how)
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => match open(OFlags::RDONLY | OFlags::NONBLOCK) {
                Ok(file) => self.file(path, file.into()).map_err(|e| (path.to_owned(), e)),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => Ok(()),
                Err(error) => Err(failed(error)),
            },
            FileType::Directory => match open(OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(dir) => self.directory(root, path, dir, stat.st_mode),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Ok(()),
                Err(error) => Err(failed(error)),
            },
            FileType::Symlink => self.symlink(root, path),
            _ => {
                self.skipped.push(format!("{path}: neither file, directory nor link"));
                Ok(())
            }
        }
    }

    fn directory(&mut self, root: &OwnedFd, path: &str, dir: OwnedFd, mode: u32) -> Result<(), Failed> {
        let failed = |error: io::Error| (path.to_owned(), error);
        let mut head = header(tar::EntryType::Directory, 0, mode & 0o7777);
        self.archive.append_data(&mut head, path, io::empty()).map_err(failed)?;
        let line = Line { path: path.to_owned(), kind: Kind::Directory, bytes: 0, sha256: None, target: None };
        self.manifest.add(&line).map_err(failed)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(dir).map_err(|e| failed(e.into()))? {
            let entry = entry.map_err(|e| failed(e.into()))?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_owned()),
                Err(_) => self.skipped.push(format!("{path}/{}: not UTF-8", entry.file_name().to_string_lossy())),
            }
        }
        names.sort();
        for name in names {
            self.entry(root, &format!("{path}/{name}"))?;
        }
        Ok(())
    }

    fn file(&mut self, path: &str, file: File) -> io::Result<()> {
        if self.told.is_some_and(|told| told.elapsed() > TELL) {
            self.told = Some(Instant::now());
            eprintln!("  {} entries, {} MB", self.manifest.entries, self.manifest.bytes / 1_000_000);
        }
        let meta = file.metadata()?;
        let mut head =
            header(tar::EntryType::Regular, meta.len(), std::os::unix::fs::MetadataExt::mode(&meta) & 0o7777);
        head.set_mtime(
            meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |t| t.as_secs()),
        );
        // The sum is that of the bytes in the archive, whatever happens to the file meanwhile.
        let mut reader = Exactly::new(file, meta.len());
        self.archive.append_data(&mut head, path, &mut reader)?;
        let sha256 = Some(reader.sum());
        self.manifest.add(&Line { path: path.to_owned(), kind: Kind::File, bytes: meta.len(), sha256, target: None })
    }

    fn symlink(&mut self, root: &OwnedFd, path: &str) -> Result<(), Failed> {
        let failed = |error: io::Error| (path.to_owned(), error);
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::openat2(root, parent, flags, Mode::empty(), how)
            .and_then(|dir| rustix::fs::readlinkat(&dir, name, Vec::new()));
        let Ok(target) = target else { return Ok(()) };
        let Ok(target) = target.into_string() else {
            self.skipped.push(format!("{path}: a link whose target is not UTF-8"));
            return Ok(());
        };
        let mut head = header(tar::EntryType::Symlink, 0, 0o777);
        self.archive.append_link(&mut head, path, &target).map_err(failed)?;
        let line = Line { path: path.to_owned(), kind: Kind::Symlink, bytes: 0, sha256: None, target: Some(target) };
        self.manifest.add(&line).map_err(failed)
    }
}

/// The path is set by whoever appends it, in an extension header where it is long.
fn header(kind: tar::EntryType, length: u64, mode: u32) -> tar::Header {
    let mut head = tar::Header::new_gnu();
    head.set_entry_type(kind);
    head.set_size(length);
    head.set_mode(mode);
    head
}
