//! Verifying and restoring a backup.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use nix::fcntl::{Flock, FlockArg};
use sqlx::{ConnectOptions, Connection};

use super::manifest::{FORMAT, Kind, Line, Manifest, Sum, Summary, difference, nameless, reads};
use super::{DATABASE, KEPT, KEY, MANIFEST, database, failed};
use crate::CtlError;
use ash_archive::read::{Content, Entries, Head};
use ash_kernel::beneath::Refused;
use ash_kernel::private::Private;
use ash_kernel::tree::{Owner, Tree, give};
use ash_kernel::walk::path_of;
use ash_model::names;

#[derive(Debug)]
pub struct Found {
    pub entries: u64,
    pub bytes: u64,
    pub sessions: i64,
}

fn open(file: &Path) -> Result<Entries<GzDecoder<File>>, CtlError> {
    Ok(Entries::new(GzDecoder::new(File::open(file).map_err(CtlError::file(file))?)))
}

/// A path of the archive and its text. The text of a directory ends with a slash.
fn path_in(head: &Head) -> (PathBuf, String) {
    let end = head.path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let path = path_of(head.path[..end].to_vec());
    let shown = names::shown(&path);
    (path, shown)
}

/// Reads the whole archive, compares every checksum and checks the database.
///
/// # Errors
/// [`CtlError::Answer`] with the first damaged entry.
pub async fn verify(file: &Path) -> Result<Found, CtlError> {
    let damaged = |error: io::Error| CtlError::Answer(format!("{} is damaged: {error}", file.display()));
    let broken = |what: String| CtlError::Answer(format!("{}: {what}", file.display()));
    let mut found = Manifest::new().map_err(failed("temporary file"))?;
    let mut written = None;
    let private = Private::new(None, "ashctl-verify", 0o700).map_err(CtlError::file("temporary directory"))?;
    let mut archive = open(file)?;
    while let Some((head, mut content)) = archive.next_entry().map_err(damaged)? {
        let (path, shown) = path_in(&head);
        if path == Path::new(MANIFEST) {
            let mut text = nameless().map_err(failed("temporary file"))?;
            content.piece().and_then(|_| io::copy(&mut content, &mut text)).map_err(damaged)?;
            text.seek(SeekFrom::Start(0)).map_err(damaged)?;
            written = Some(text);
            continue;
        }
        let target = head.link.clone().filter(|_| head.kind.is_symlink() || head.kind.is_hard_link());
        let target = target.map(|target| names::shown(&path_of(target)));
        let (kind, bytes, sha256) = if head.kind.is_dir() {
            (Kind::Directory, 0, None)
        } else if head.kind.is_symlink() {
            (Kind::Symlink, 0, None)
        } else if head.kind.is_hard_link() {
            (Kind::Hardlink, 0, None)
        } else {
            let mut sum = Sum::new(head.sparse.then(|| (head.size, content.pieces())));
            let mut to = None;
            if path == Path::new(DATABASE) {
                to = Some(private.tree().create_file(DATABASE).map_err(|e| damaged(e.into()))?);
            }
            summed(&mut content, &mut sum, to.as_mut()).map_err(damaged)?;
            let (bytes, sha256) = sum.done();
            (Kind::File, bytes, Some(sha256))
        };
        found.add(&Line { path: shown, kind, bytes, sha256, target }).map_err(damaged)?;
    }
    let written = written.ok_or_else(|| broken("it has no manifest: it is truncated, or not a backup".to_owned()))?;
    let (entries, bytes) = (found.entries, found.bytes);
    let format = check_format(&written).map_err(broken)?;
    let (found, _) = found.finish().map_err(damaged)?;
    if let Some(line) = difference(&written, found, format).map_err(damaged)? {
        let path = serde_json::from_str::<Line>(&line).map_or(line, |line| line.path);
        return Err(broken(format!("{path} differs from the manifest")));
    }
    Ok(Found { entries, bytes, sessions: check_database(&private.path().join(DATABASE)).await? })
}

/// Computes the checksum of a file, and copies it to `to`.
fn summed(content: &mut Content<'_, GzDecoder<File>>, sum: &mut Sum, mut to: Option<&mut File>) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    while let Some((offset, _)) = content.piece()? {
        if let Some(to) = &mut to {
            to.seek(SeekFrom::Start(offset))?;
        }
        loop {
            let got = content.read(&mut buffer)?;
            if got == 0 {
                break;
            }
            sum.add(&buffer[..got]);
            if let Some(to) = &mut to {
                to.write_all(&buffer[..got])?;
            }
        }
    }
    Ok(())
}

/// Reads the format from the last line of a manifest, and rewinds the file.
fn check_format(mut manifest: &File) -> Result<u32, String> {
    let last = BufReader::new(manifest).lines().map_while(Result::ok).last().unwrap_or_default();
    manifest.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
    match serde_json::from_str::<Summary>(&last) {
        Ok(summary) if reads(summary.format) => Ok(summary.format),
        Ok(Summary { format, version, .. }) => Err(format!(
            "it has format {format}, written by ashctl {version}; this ashctl reads formats up to {FORMAT}"
        )),
        Err(_) => Err("its manifest is incomplete".to_owned()),
    }
}

/// Checks the database and returns its number of sessions.
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

/// Replaces the data below `data_dir` by a verified archive. Returns where the old data is.
///
/// # Errors
/// [`CtlError::Usage`] while ashd or processes of sessions run; otherwise what failed. The old data
/// is then in its place.
pub fn restore(file: &Path, data_dir: &Path) -> Result<PathBuf, CtlError> {
    let failed = |name: &str| {
        let path = data_dir.join(name);
        move |error: Refused| CtlError::file(path)(error.into())
    };
    let data = Tree::open(data_dir).map_err(|why| CtlError::file(data_dir)(why.into()))?;
    let _lock = lock(&data)?;
    let live = running(&data, Path::new("/proc"));
    if live > 0 {
        let (what, end) = ("still run and use the files that restore would move", "systemctl stop ash-launcher");
        return Err(CtlError::Usage(format!(
            "processes of {live} sessions {what}; stop them first: {end} (or `ashd stop`)"
        )));
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    // On the same file system, so that the exchange is one rename per entry. The directory belongs
    // to this process, mode 0700: the owner of the data directory can rename it, but not look into
    // it.
    let kept = format!("before-restore-{stamp}");
    data.remove(RESTORING).map_err(CtlError::file(data_dir.join(RESTORING)))?;
    let new = data.make_dir(RESTORING, 0o700, None).map_err(failed(RESTORING))?;
    let unpacked = unpack(file, &new, data.owner());
    if unpacked.is_err() {
        // The first error matters more.
        let _ = data.remove(RESTORING);
    }
    unpacked?;
    let old = data.make_dir(&kept, 0o700, None).map_err(failed(&kept))?;
    // SQLite's files beside the database belong to the old one.
    let beside = [format!("{DATABASE}-wal"), format!("{DATABASE}-shm")];
    let mut names: Vec<&str> = beside.iter().map(String::as_str).chain([DATABASE]).chain(KEPT).collect();
    if new.has(KEY) {
        names.push(KEY);
    }
    let exchange = || -> Result<(), Refused> {
        for name in &names {
            if data.has(name) {
                data.rename(name, &old, name)?;
            }
            if new.has(name) {
                new.rename(name, &data, name)?;
            }
        }
        Ok(())
    };
    exchange().map_err(|error| {
        let (old, new) = (old.path().display(), new.path().display());
        CtlError::Answer(format!(
            "restore failed during the exchange: {error}; the old data is in {old}, the new data in {new}"
        ))
    })?;
    data.remove(RESTORING).map_err(CtlError::file(data_dir.join(RESTORING)))?;
    Ok(old.path().to_owned())
}

const RESTORING: &str = ".restoring";

/// The lock that a running ashd holds.
fn lock(data: &Tree) -> Result<Flock<File>, CtlError> {
    let file = data.open_or_create("ashd.lock");
    let file = file.map_err(|e| CtlError::file(data.path().join("ashd.lock"))(e.into()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        CtlError::Usage("ashd is running; stop it first: systemctl stop ashd.socket ashd (or `ashd stop`)".to_owned())
    })
}

/// How many sessions have processes. Sandboxes outlive ashd; their cgroups have the sessions' ids.
fn running(data: &Tree, proc: &Path) -> usize {
    let known = data.directory("sessions").and_then(|sessions| sessions.names()).unwrap_or_default();
    let known: BTreeSet<String> = known.into_iter().filter_map(|name| name.into_string().ok()).collect();
    let mut live = BTreeSet::new();
    for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if !is_process {
            continue;
        }
        // The process may have ended meanwhile.
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        live.extend(groups.split(['/', '\n']).filter(|part| known.contains(*part)).map(str::to_owned));
    }
    live.len()
}

/// Unpacks everything for `owner`. Creates links and never follows them.
fn unpack(file: &Path, to: &Tree, owner: Owner) -> Result<(), CtlError> {
    let damaged = |error: io::Error| CtlError::Answer(format!("{}: {error}", file.display()));
    let mut directories = Vec::new();
    let mut archive = open(file)?;
    while let Some((head, mut content)) = archive.next_entry().map_err(damaged)? {
        let (path, shown) = path_in(&head);
        if path == Path::new(MANIFEST) {
            continue;
        }
        let refused =
            |error: Refused| CtlError::Answer(format!("{}: {shown} cannot be unpacked: {error}", file.display()));
        let (mode, times) = (head.mode & 0o777, head.modified.stamps());
        let target = head.link.clone().map(path_of).unwrap_or_default();
        if head.kind.is_dir() {
            to.make_dir(&path, 0o700, Some(owner)).map_err(refused)?;
            directories.push((path, mode, times));
        } else if head.kind.is_symlink() {
            to.symlink(target.as_os_str(), &path, Some(owner)).map_err(refused)?;
            to.set_times(&path, &times).map_err(refused)?;
        } else if head.kind.is_hard_link() {
            to.hard_link(&target, &path).map_err(refused)?;
        } else if head.kind.is_file() {
            let made = to.create_file(&path).map_err(refused)?;
            let written = sparse(&made, &mut content, head.size);
            written.map_err(CtlError::file(to.path().join(&path)))?;
            give(&made, owner).map_err(refused)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            made.set_permissions(mode).map_err(CtlError::file(to.path().join(&path)))?;
            to.set_times(&path, &times).map_err(refused)?;
        } else {
            return Err(CtlError::Answer(format!(
                "{}: {shown} has a file type that backups do not contain",
                file.display()
            )));
        }
    }
    for (path, mode, times) in directories.into_iter().rev() {
        let shown = to.path().join(&path);
        let done = to.set_mode(&path, mode).and_then(|()| to.set_times(&path, &times));
        done.map_err(|e| CtlError::file(shown)(e.into()))?;
    }
    Ok(())
}

/// Writes a file without its holes and without blocks of zeros. This restores holes that an older
/// ashctl archived as zeros (discarded output of a session).
fn sparse(file: &File, content: &mut Content<'_, GzDecoder<File>>, size: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    while let Some((mut at, length)) = content.piece()? {
        let end = at.saturating_add(length);
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            content.read_exact(&mut block[..wanted])?;
            if block[..wanted].iter().any(|byte| *byte != 0) {
                file.write_all_at(&block[..wanted], at)?;
            }
            at += wanted as u64;
        }
    }
    file.set_len(size)
}

/// Smallest run of zeros that becomes a hole.
const BLOCK: usize = 64 << 10;
