use super::*;
use sqlx::{ConnectOptions, Connection, Executor};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

async fn data(dir: &Path) {
    std::fs::create_dir_all(dir.join("sessions/s1/workspace/deep")).unwrap();
    std::fs::write(dir.join("sessions/s1/workspace/deep/x.txt"), "hello").unwrap();
    std::fs::write(dir.join("sessions/s1/stdout"), vec![b'y'; 3 << 20]).unwrap();
    // Discarded output leaves a hole.
    let output = std::fs::File::create(dir.join("sessions/s1/output")).unwrap();
    output.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&output, b"newest", (8 << 20) - 6).unwrap();
    symlink("/etc/passwd", dir.join("sessions/s1/workspace/link")).unwrap();
    let sparse = std::fs::File::create(dir.join("sessions/s1/workspace/sparse")).unwrap();
    sparse.set_len(8 << 40).unwrap();
    nest(&dir.join("sessions/s1/workspace/nested"), 600);
    let workspace = dir.join("sessions/s1/workspace");
    let raw = workspace.join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    std::fs::write(&raw, "bytes").unwrap();
    std::fs::hard_link(&raw, workspace.join("second")).unwrap();
    std::fs::set_permissions(&raw, PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::set_permissions(workspace.join("deep"), PermissionsExt::from_mode(0o511)).unwrap();
    let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    for path in [&raw, &workspace.join("deep"), &workspace.join("link")] {
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    nix::unistd::mkfifo(&dir.join("sessions/s1/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    std::fs::create_dir_all(dir.join("claude/1")).unwrap();
    std::fs::write(dir.join("claude/1/claude"), "not this").unwrap();
    std::fs::write(dir.join(KEY), "seal").unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join(DATABASE)).create_if_missing(true);
    let mut db = options.connect().await.unwrap();
    db.execute("PRAGMA journal_mode = WAL; CREATE TABLE sessions (id TEXT PRIMARY KEY) STRICT").await.unwrap();
    db.execute("INSERT INTO sessions VALUES ('s1'), ('s2')").await.unwrap();
    db.close().await.unwrap();
}

/// Nested directories whose full path exceeds the kernel's path limit.
fn nest(top: &Path, depth: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let open = |at: std::os::fd::BorrowedFd<'_>, name: &str| openat(at, name, OFlags::PATH, Mode::empty()).unwrap();
    mkdirat(CWD, top, Mode::RWXU).unwrap();
    let mut at = openat(CWD, top, OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&at, "directory", Mode::RWXU).unwrap();
        at = open(std::os::fd::AsFd::as_fd(&at), "directory");
    }
}

#[tokio::test]
async fn there_and_back_again() {
    let base = tempfile::tempdir().unwrap();
    let (old, new, file) = (base.path().join("old"), base.path().join("new"), base.path().join("b.tar.gz"));
    std::fs::create_dir_all(&new).unwrap();
    data(&old).await;
    let done = write::write(&old, &file, false).await.unwrap();
    let skipped = done.skipped.join("\n");
    assert_eq!(done.skipped.len(), 2, "{skipped}");
    for word in ["sessions/s1/fifo: a named pipe", "more than 128 directories deep"] {
        assert!(skipped.contains(word), "{word}: {skipped}");
    }
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        matches!(write::write(&old, &file, false).await, Err(CtlError::Usage(_))),
        "an existing file is not overwritten"
    );
    let found = read::verify(&file).await.unwrap();
    assert_eq!((found.sessions, found.entries), (2, done.entries));

    std::fs::create_dir_all(new.join("sessions/older")).unwrap();
    std::fs::write(new.join(KEY), "own").unwrap();
    let kept = read::restore(&file, &new).unwrap();
    assert_eq!(std::fs::read_to_string(new.join("sessions/s1/workspace/deep/x.txt")).unwrap(), "hello");
    assert_eq!(std::fs::metadata(new.join("sessions/s1/stdout")).unwrap().len(), 3 << 20);
    assert_eq!(std::fs::read_link(new.join("sessions/s1/workspace/link")).unwrap(), Path::new("/etc/passwd"));
    let at = |name: &[u8]| new.join("sessions/s1/workspace").join(std::ffi::OsStr::from_bytes(name));
    let meta = |name: &[u8]| std::fs::symlink_metadata(at(name)).unwrap();
    assert_eq!(std::fs::read(at(b"caf\xe9")).unwrap(), b"bytes");
    assert_eq!((meta(b"caf\xe9").ino(), meta(b"caf\xe9").nlink()), (meta(b"second").ino(), 2));
    assert_eq!((meta(b"caf\xe9").mode() & 0o777, meta(b"deep").mode() & 0o777), (0o640, 0o511));
    for name in [&b"caf\xe9"[..], b"deep", b"link"] {
        assert_eq!((meta(name).mtime(), meta(name).mtime_nsec()), (1_000_000_000, 5), "{name:?}");
    }
    assert_eq!((meta(b"sparse").len(), meta(b"sparse").blocks()), (8 << 40, 0));
    let output = std::fs::metadata(new.join("sessions/s1/output")).unwrap();
    let allocated = output.blocks() * 512;
    assert!(output.len() == 8 << 20 && allocated < 1 << 20, "{} bytes on the disk", allocated);
    assert!(!new.join("sessions/older").exists() && kept.join("sessions/older").exists());
    assert!(!new.join("claude").exists() && !new.join(MANIFEST).exists());
    assert_eq!(std::fs::read_to_string(new.join(KEY)).unwrap(), "own", "this host's key stays");
    let left = std::fs::read_dir(base.path()).unwrap().count();
    assert_eq!(left, 3, "only old, new and the archive");
}

#[tokio::test]
async fn what_is_damaged_is_named_and_never_restored() {
    let base = tempfile::tempdir().unwrap();
    let (old, new, file) = (base.path().join("old"), base.path().join("new"), base.path().join("b.tar.gz"));
    data(&old).await;
    std::fs::create_dir_all(new.join("sessions/older")).unwrap();
    write::write(&old, &file, true).await.unwrap();
    let whole = std::fs::read(&file).unwrap();
    // Truncated in the middle, truncated before the manifest, one bit of the contents flipped.
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&whole[..]), &mut tar).unwrap();
    let at = memchr::memmem::find(&tar, b"hello").unwrap();
    tar[at] ^= 1;
    let pack = |tar: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, tar).unwrap();
        gz.finish().unwrap()
    };
    let manifest = memchr::memmem::rfind(&tar, MANIFEST.as_bytes()).unwrap();
    let table = [
        (whole[..whole.len() / 2].to_vec(), "b.tar.gz"),
        (pack(&[&tar[..manifest - manifest % 512], &[0; 1024]].concat()), "no manifest"),
        (pack(&tar), "sessions/s1/workspace/deep/x.txt"),
    ];
    for (bytes, word) in table {
        std::fs::write(&file, bytes).unwrap();
        let error = read::verify(&file).await.unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(new.join("sessions/older").exists());
}

#[tokio::test]
async fn not_while_ashd_runs() {
    let base = tempfile::tempdir().unwrap();
    let (old, file) = (base.path().join("old"), base.path().join("b.tar.gz"));
    data(&old).await;
    write::write(&old, &file, false).await.unwrap();
    let lock = std::fs::File::create(old.join("ashd.lock")).unwrap();
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let error = read::restore(&file, &old).unwrap_err();
    assert!(matches!(&error, CtlError::Usage(text) if text.contains("systemctl stop")), "{error}");
    assert!(old.join("sessions/s1").exists());
}

/// An archive of format 1, without hard links and sparse files.
#[tokio::test]
async fn a_backup_of_the_first_format_is_restored() {
    let base = tempfile::tempdir().unwrap();
    let (old, new, file) = (base.path().join("old"), base.path().join("new"), base.path().join("b.tar.gz"));
    std::fs::create_dir_all(&new).unwrap();
    data(&old).await;
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let (mut manifest, mut bytes) = (String::new(), 0);
    let mut add = |kind, path: &str, content: &[u8], target: Option<&str>| {
        let mut head = tar::Header::new_gnu();
        head.set_entry_type(kind);
        head.set_size(content.len() as u64);
        head.set_mode(0o640);
        match target {
            Some(target) => tar.append_link(&mut head, path, target).unwrap(),
            None => tar.append_data(&mut head, path, content).unwrap(),
        }
        let mut sum = manifest::Sum::new(None);
        sum.add(content);
        let sha256 = kind.is_file().then(|| sum.done().1);
        let kind = if kind.is_dir() {
            "directory"
        } else if kind.is_file() {
            "file"
        } else {
            "symlink"
        };
        let line = json!({"path": path, "kind": kind, "bytes": content.len(), "sha256": sha256, "target": target});
        manifest.push_str(&format!("{line}\n"));
        bytes += content.len();
    };
    let long = "n".repeat(180);
    add(tar::EntryType::Regular, DATABASE, &std::fs::read(old.join(DATABASE)).unwrap(), None);
    add(tar::EntryType::Directory, "sessions", b"", None);
    add(tar::EntryType::Regular, "sessions/caf%E9", b"a name that looks encoded", None);
    add(tar::EntryType::Regular, &format!("sessions/{long}"), &[0; 1 << 20], None);
    add(tar::EntryType::Symlink, "sessions/link", b"", Some("/etc/passwd"));
    manifest.push_str(&format!("{}\n", json!({"format": 1, "version": "0.0.1", "entries": 5, "bytes": bytes})));
    let mut head = tar::Header::new_gnu();
    head.set_size(manifest.len() as u64);
    tar.append_data(&mut head, MANIFEST, manifest.as_bytes()).unwrap();
    std::fs::write(&file, tar.into_inner().unwrap().finish().unwrap()).unwrap();
    let found = read::verify(&file).await.unwrap();
    assert_eq!((found.entries, found.sessions), (5, 2));
    read::restore(&file, &new).unwrap();
    assert_eq!(std::fs::read(new.join("sessions/caf%E9")).unwrap(), b"a name that looks encoded");
    assert_eq!(std::fs::read_link(new.join("sessions/link")).unwrap(), Path::new("/etc/passwd"));
    let zeros = std::fs::metadata(new.join("sessions").join(&long)).unwrap();
    assert_eq!((zeros.len(), zeros.blocks(), zeros.mode() & 0o777), (1 << 20, 0, 0o640));
}
