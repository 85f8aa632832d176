//! Checking a backup, and putting it back.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::read::GzDecoder;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sqlx::{ConnectOptions, Connection};

use super::manifest::{Exactly, FORMAT, Kind, Line, Manifest, Summary, difference, nameless};
use super::{DATABASE, KEPT, KEY, MANIFEST, database, failed};
use crate::ctl::CtlError;

/// What an archive holds.
#[derive(Debug)]
pub struct Found {
    pub entries: u64,
    pub bytes: u64,
    pub sessions: i64,
}

fn open(file: &Path) -> Result<tar::Archive<GzDecoder<File>>, CtlError> {
    Ok(tar::Archive::new(GzDecoder::new(File::open(file).map_err(CtlError::file(file))?)))
}

/// Reads it all, compares every sum, and has the database check itself.
///
/// # Errors
/// [`CtlError::Answer`] with the first entry that is not as it was written.
pub async fn verify(file: &Path) -> Result<Found, CtlError> {
    let damaged = |error: io::Error| CtlError::Answer(format!("{} is damaged: {error}", file.display()));
    let broken = |what: String| CtlError::Answer(format!("{}: {what}", file.display()));
    let mut found = Manifest::new().map_err(failed("temporary file"))?;
    let mut written = None;
    let copy = Temporary::new()?;
    for entry in open(file)?.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.to_str().map(|path| path.trim_end_matches('/').to_owned());
        let path = path.ok_or_else(|| broken("a name that is not UTF-8".to_owned()))?;
        let length = entry.size();
        if path == MANIFEST {
            let mut text = nameless().map_err(failed("temporary file"))?;
            io::copy(&mut entry, &mut text).map_err(damaged)?;
            text.seek(SeekFrom::Start(0)).map_err(damaged)?;
            written = Some(text);
            continue;
        }
        let kind = entry.header().entry_type();
        let target = entry.link_name().map_err(damaged)?.map(|target| target.to_string_lossy().into_owned());
        let (kind, sha256) = if kind.is_dir() {
            (Kind::Directory, None)
        } else if kind.is_symlink() {
            (Kind::Symlink, None)
        } else {
            let mut reader = Exactly::new(&mut entry, length);
            if path == DATABASE {
                let mut to = File::create(&copy.0).map_err(CtlError::file(&copy.0))?;
                io::copy(&mut reader, &mut to).map_err(damaged)?;
            } else {
                io::copy(&mut reader, &mut io::sink()).map_err(damaged)?;
            }
            (Kind::File, Some(reader.sum()))
        };
        found.add(&Line { path, kind, bytes: length, sha256, target }).map_err(damaged)?;
    }
    let written =
        written.ok_or_else(|| broken("there is no manifest in it: it was cut off, or is no backup".to_owned()))?;
    let (entries, bytes) = (found.entries, found.bytes);
    check_format(&written).map_err(broken)?;
    let (found, _) = found.finish().map_err(damaged)?;
    if let Some(line) = difference(&written, found).map_err(damaged)? {
        let path = serde_json::from_str::<Line>(&line).map_or(line, |line| line.path);
        return Err(broken(format!("{path} is not as it was written")));
    }
    Ok(Found { entries, bytes, sessions: check_database(&copy.0).await? })
}

/// The last line of a manifest says of which kind it is. Leaves the file at its beginning.
fn check_format(mut manifest: &File) -> Result<(), String> {
    let last = BufReader::new(manifest).lines().map_while(Result::ok).last().unwrap_or_default();
    manifest.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
    match serde_json::from_str::<Summary>(&last) {
        Ok(summary) if summary.format == FORMAT => Ok(()),
        Ok(Summary { format, version, .. }) => {
            Err(format!("it has format {format}, written by ashctl {version}; this one reads {FORMAT}"))
        }
        Err(_) => Err("its manifest has no end".to_owned()),
    }
}

/// How many sessions a whole database has.
async fn check_database(path: &Path) -> Result<i64, CtlError> {
    let what = "the database in the archive";
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut db = options.connect().await.map_err(database(what))?;
    let said: String =
        sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(&mut db).await.map_err(database(what))?;
    if said != "ok" {
        return Err(CtlError::Answer(format!("{what}: {said}")));
    }
    let sessions =
        sqlx::query_scalar("SELECT COUNT(*) FROM sessions").fetch_one(&mut db).await.map_err(database(what))?;
    db.close().await.map_err(database(what))?;
    Ok(sessions)
}

/// A directory entry of `$TMPDIR`, removed with what SQLite puts beside it.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self, CtlError> {
        let dir = std::env::temp_dir().join(format!("ashctl-verify-{}", uuid::Uuid::new_v4()));
        std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(CtlError::file(&dir))?;
        Ok(Self(dir.join(DATABASE)))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(dir) = self.0.parent() {
            // What stays is in a directory that is emptied at the next boot.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Unpacks a verified archive in place of what is below `data_dir`. Answers where the old data is.
///
/// # Errors
/// [`CtlError::Usage`] while ashd or a session's processes run; otherwise what failed, with the old data in its place.
pub fn restore(file: &Path, data_dir: &Path) -> Result<PathBuf, CtlError> {
    let own = std::fs::metadata(data_dir).map_err(CtlError::file(data_dir))?;
    let _lock = lock(data_dir)?;
    let live = running(&data_dir.join("sessions"), Path::new("/proc"));
    if live > 0 {
        let (what, end) = ("still run, with the files that would be put aside", "systemctl stop ash-launcher");
        return Err(CtlError::Usage(format!(
            "processes of sessions ({live}) {what}; end them first: {end} (or `ashd stop`)"
        )));
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    // On the same file system, so that the exchange is one rename an entry.
    let (new, old) = (data_dir.join(".restoring"), data_dir.join(format!("before-restore-{stamp}")));
    match std::fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(CtlError::file(&new)(error)),
        _ => {}
    }
    let make = |dir: &Path| std::fs::DirBuilder::new().mode(0o700).create(dir).map_err(CtlError::file(dir));
    make(&new)?;
    let unpacked = unpack(file, &new, (own.uid(), own.gid()));
    if unpacked.is_err() {
        // Its own error is less than the one that is told.
        let _ = std::fs::remove_dir_all(&new);
    }
    unpacked?;
    make(&old)?;
    let here = |name: &str| data_dir.join(name);
    // All that the archive replaces: what SQLite keeps beside the database belongs to the old one.
    let beside = [format!("{DATABASE}-wal"), format!("{DATABASE}-shm")];
    let mut names: Vec<&str> = beside.iter().map(String::as_str).chain([DATABASE]).chain(KEPT).collect();
    if new.join(KEY).exists() {
        names.push(KEY);
    }
    let exchange = || -> io::Result<()> {
        for name in &names {
            if here(name).symlink_metadata().is_ok() {
                std::fs::rename(here(name), old.join(name))?;
            }
            if new.join(name).symlink_metadata().is_ok() {
                std::fs::rename(new.join(name), here(name))?;
            }
        }
        Ok(())
    };
    exchange().map_err(|error| {
        let (old, new) = (old.display(), new.display());
        CtlError::Answer(format!("the exchange stopped half-way: {error}; the old data is in {old}, the new in {new}"))
    })?;
    std::fs::remove_dir_all(&new).map_err(CtlError::file(&new))?;
    Ok(old)
}

/// The lock that ashd holds while it runs.
fn lock(data_dir: &Path) -> Result<Flock<File>, CtlError> {
    let path = data_dir.join("ashd.lock");
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    Flock::lock(file.map_err(CtlError::file(&path))?, FlockArg::LockExclusiveNonblock).map_err(|_| {
        CtlError::Usage("ashd runs; end it first: systemctl stop ashd.socket ashd (or `ashd stop`)".to_owned())
    })
}

/// How many sessions of `sessions` have processes: sandboxes outlive ashd, and their cgroups bear the names of their sessions.
fn running(sessions: &Path, proc: &Path) -> usize {
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<BTreeSet<String>>()
    };
    let known = names(sessions);
    let mut live = BTreeSet::new();
    for process in names(proc).iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        // One that ended meanwhile runs no more.
        let groups = std::fs::read_to_string(proc.join(process).join("cgroup")).unwrap_or_default();
        live.extend(groups.split(['/', '\n']).filter(|part| known.contains(*part)).map(str::to_owned));
    }
    live.len()
}

fn unpack(file: &Path, to: &Path, owner: (u32, u32)) -> Result<(), CtlError> {
    let damaged = |error: io::Error| CtlError::Answer(format!("{}: {error}", file.display()));
    let mut directories = Vec::new();
    let root = rustix::fs::open(to, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|e| CtlError::file(to)(e.into()))?;
    for entry in open(file)?.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        if path == Path::new(MANIFEST) {
            continue;
        }
        // Never outside of `to`, whatever the archive says; see `tar::Entry::unpack_in`, and openat2 below.
        if entry.header().entry_type().is_file() {
            let (length, mode) = (entry.size(), entry.header().mode().map_err(damaged)?);
            let time = UNIX_EPOCH + Duration::from_secs(entry.header().mtime().map_err(damaged)?);
            sparse(&root, &path, &mut entry, length, mode, time).map_err(CtlError::file(to.join(&path)))?;
        } else if !entry.unpack_in(to).map_err(damaged)? {
            return Err(CtlError::Answer(format!("{}: {} leads out of it", file.display(), path.display())));
        }
        let made = to.join(&path);
        if owner != (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()) {
            lchown(&made, Some(owner.0), Some(owner.1)).map_err(CtlError::file(&made))?;
        }
        if entry.header().entry_type().is_dir() {
            directories.push((made, entry.header().mode().map_err(damaged)?));
        }
    }
    for (path, mode) in directories.into_iter().rev() {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode & 0o777);
        std::fs::set_permissions(&path, mode).map_err(CtlError::file(&path))?;
    }
    Ok(())
}

/// Writes a file without the blocks that are nothing but zeros: what was a hole (what a session said long ago is given back to
/// the disk) is one again.
fn sparse(
    root: &OwnedFd,
    path: &Path,
    from: &mut impl io::Read,
    length: u64,
    mode: u32,
    time: SystemTime,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let made = rustix::fs::openat2(root, path, flags, Mode::RUSR | Mode::WUSR, how)?;
    let file = File::from(made);
    let (mut at, mut block) = (0, vec![0; BLOCK]);
    while at < length {
        let wanted = usize::try_from(length - at).unwrap_or(BLOCK).min(BLOCK);
        from.read_exact(&mut block[..wanted])?;
        if block[..wanted].iter().any(|byte| *byte != 0) {
            file.write_all_at(&block[..wanted], at)?;
        }
        at += wanted as u64;
    }
    file.set_len(length)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode & 0o777))?;
    file.set_modified(time)
}

/// A hole has at least one of them.
const BLOCK: usize = 64 << 10;
