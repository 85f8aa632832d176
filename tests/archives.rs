//! Archives of ashd and of other tar programs, in both directions: nothing may be lost. Names that
//! are not UTF-8: openagents-org/openagents#362.
#![allow(clippy::unwrap_used)]

mod http_support;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_support::Api;
use serde_json::json;
use uuid::Uuid;

const OLD: u64 = 1_000_000_000;

/// A tree with everything that an archive may lose.
fn fill(top: &Path) {
    let long = "d".repeat(120);
    std::fs::create_dir_all(top.join(&long)).unwrap();
    std::fs::create_dir_all(top.join("empty/inner")).unwrap();
    std::fs::write(top.join(&long).join("n".repeat(200)), "deep").unwrap();
    std::fs::write(top.join("run.sh"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(top.join("run.sh"), PermissionsExt::from_mode(0o751)).unwrap();
    std::fs::hard_link(top.join("run.sh"), top.join("second")).unwrap();
    symlink("/usr/bin/python3", top.join("python")).unwrap();
    symlink(format!("{long}/{}", "n".repeat(200)), top.join("long-link")).unwrap();
    std::fs::write(top.join(OsStr::from_bytes(b"caf\xe9")), "bytes").unwrap();
    std::fs::write(top.join("gr\u{fc}n"), "").unwrap();
    let holes = File::create(top.join("holes")).unwrap();
    holes.set_len((1 << 30) + 7).unwrap();
    for n in 0..60_u64 {
        holes.write_all_at(&[b's'; 4096], (n + 1) << 20).unwrap();
    }
    let modified = UNIX_EPOCH + Duration::new(OLD, 250_000_000);
    for name in ["run.sh", "holes", "empty"] {
        File::open(top.join(name)).unwrap().set_modified(modified).unwrap();
    }
    std::fs::set_permissions(top.join("empty"), PermissionsExt::from_mode(0o711)).unwrap();
}

/// Compares a tree with that of [`fill`]. `parts`: whether times have fractions of a second.
fn check(top: &Path, what: &str, parts: bool) {
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(200));
    let meta = |name: &str| std::fs::symlink_metadata(top.join(name)).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
    assert_eq!(std::fs::read_to_string(top.join("long-link")).unwrap(), "deep", "{what}");
    assert_eq!(std::fs::read_link(top.join("long-link")).unwrap(), Path::new(&long), "{what}");
    assert_eq!(std::fs::read_link(top.join("python")).unwrap(), Path::new("/usr/bin/python3"), "{what}");
    assert_eq!((meta("run.sh").mode() & 0o7777, meta("empty").mode() & 0o7777), (0o751, 0o711), "{what}");
    assert_eq!((meta("run.sh").ino(), meta("run.sh").nlink()), (meta("second").ino(), 2), "{what}");
    assert!(meta("empty/inner").is_dir() && meta("gr\u{fc}n").is_file(), "{what}");
    assert_eq!(std::fs::read(top.join(OsStr::from_bytes(b"caf\xe9"))).unwrap(), b"bytes", "{what}");
    for name in ["run.sh", "holes", "empty"] {
        let nanoseconds = if parts { 250_000_000 } else { meta(name).mtime_nsec() };
        assert_eq!((meta(name).mtime(), meta(name).mtime_nsec()), (OLD as i64, nanoseconds), "{what}: {name}");
    }
    let holes = File::open(top.join("holes")).unwrap();
    assert_eq!(holes.metadata().unwrap().len(), (1 << 30) + 7, "{what}");
    let mut block = [0; 4098];
    for n in [0, 1, 59] {
        holes.read_exact_at(&mut block, ((n + 1) << 20) - 1).unwrap();
        assert!(block[0] == 0 && block[1..4097] == [b's'; 4096] && block[4097] == 0, "{what}: piece {n}");
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Session {
    api: Api,
    id: Uuid,
    workspace: PathBuf,
}

impl Session {
    async fn new() -> Self {
        let (api, id) = (Api::start().await, Uuid::new_v4());
        api.ended_session(id).await;
        let workspace = api.data.path().join("sessions").join(id.to_string()).join("workspace");
        std::fs::create_dir_all(&workspace).unwrap();
        Self { api, id, workspace }
    }

    async fn ask(&self, head: &str, body: String) -> http_support::Answer {
        self.api.own(&head.replace("{}", &self.id.to_string()), body).await
    }

    async fn restore(&self, archive: &[u8]) -> serde_json::Value {
        std::fs::remove_dir_all(&self.workspace).unwrap();
        std::fs::create_dir(&self.workspace).unwrap();
        let body = json!({ "bundle": STANDARD.encode(archive) }).to_string();
        let answer = self.ask("POST /api/sessions/{}/workspace", body).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }
}

const PYTHON_WRITES: &str = "
import sys, tarfile
t = tarfile.open(sys.argv[1], 'w:' + sys.argv[3], format=getattr(tarfile, sys.argv[4]))
t.add(sys.argv[2], arcname='.')
t.close()
";

const PYTHON_READS: &str = "
import sys, tarfile
t = tarfile.open(sys.argv[1])
t.extractall(sys.argv[2], **({'filter': 'fully_trusted'} if hasattr(tarfile, 'data_filter') else {}))
";

#[tokio::test]
async fn what_others_write_is_unpacked_without_loss() {
    let temp = tempfile::tempdir().unwrap();
    let (from, archive) = (temp.path().join("from"), temp.path().join("a.tar"));
    std::fs::create_dir(&from).unwrap();
    fill(&from);
    let session = Session::new().await;
    for (options, parts) in [
        ("-S --format=gnu", false),
        ("-S --format=gnu -z", false),
        ("-S --format=gnu --zstd", false),
        ("-S --format=posix --sparse-version=1.0", true),
        ("-S --format=posix --sparse-version=0.1", true),
        ("-S --format=posix --sparse-version=0.0 -z", true),
    ] {
        run(Command::new("tar").args(options.split(' ')).arg("-cf").arg(&archive).arg("-C").arg(&from).arg("."));
        session.restore(&std::fs::read(&archive).unwrap()).await;
        check(&session.workspace, options, parts);
    }
    // Several gzip members, as parallel compressors write them.
    let gnu = Command::new("tar").args(["-S", "-cf", "-", "-C"]).arg(&from).arg(".").output().unwrap().stdout;
    let members: Vec<u8> = gnu.chunks(300_001).flat_map(gzip).collect();
    session.restore(&members).await;
    check(&session.workspace, "several members", false);
    // tarfile writes holes as zeros, so this file is small for it.
    let holes = File::options().write(true).open(from.join("holes")).unwrap();
    holes.set_len(1 << 20).unwrap();
    for (compression, format) in [("gz", "PAX_FORMAT"), ("gz", "GNU_FORMAT"), ("", "PAX_FORMAT")] {
        run(Command::new("python3").args(["-c", PYTHON_WRITES]).arg(&archive).arg(&from).args([compression, format]));
        session.restore(&std::fs::read(&archive).unwrap()).await;
        restored_but_holes(&session.workspace, format);
    }
}

/// As [`check`], for a tree with a small sparse file.
fn restored_but_holes(top: &Path, what: &str) {
    assert_eq!(std::fs::read_to_string(top.join("long-link")).unwrap(), "deep", "{what}");
    assert_eq!(std::fs::read_link(top.join("python")).unwrap(), Path::new("/usr/bin/python3"), "{what}");
    assert_eq!(std::fs::read(top.join(OsStr::from_bytes(b"caf\xe9"))).unwrap(), b"bytes", "{what}");
    assert_eq!(std::fs::metadata(top.join("second")).unwrap().nlink(), 2, "{what}");
    assert!(top.join("empty/inner").is_dir(), "{what}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, bytes).unwrap();
    gzip.finish().unwrap()
}

#[tokio::test]
async fn what_ashd_packs_is_read_by_others_without_loss() {
    let session = Session::new().await;
    fill(&session.workspace);
    let temp = tempfile::tempdir().unwrap();
    let gz = session.ask("GET /api/sessions/{}/workspace", String::new()).await;
    let zstd = session.ask("GET /api/sessions/{}/workspace\nAccept-Encoding: gzip, zstd", String::new()).await;
    assert!(!gz.headers.contains_key("content-encoding") && gz.body.starts_with(&[0x1f, 0x8b]));
    assert!(zstd.headers["content-encoding"] == "zstd" && zstd.headers["content-type"] == "application/x-tar");
    assert!(zstd.body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    assert!(gz.body.len() < 1 << 20 && zstd.body.len() < 1 << 20, "holes cost nothing");
    for (name, bytes) in [("w.tar.gz", &gz.body), ("w.tar.zst", &zstd.body)] {
        std::fs::write(temp.path().join(name), bytes).unwrap();
        let to = temp.path().join(format!("tar-{name}"));
        std::fs::create_dir(&to).unwrap();
        run(Command::new("tar").arg("-xpf").arg(temp.path().join(name)).arg("-C").arg(&to));
        check(&to, "GNU tar", true);
        assert!(std::fs::metadata(to.join("holes")).unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
        session.restore(bytes).await;
        check(&session.workspace, "ashd itself", true);
    }
    let to = temp.path().join("python");
    std::fs::create_dir(&to).unwrap();
    run(Command::new("python3").args(["-c", PYTHON_READS]).arg(temp.path().join("w.tar.gz")).arg(&to));
    check(&to, "tarfile", false);
    // bsdtar is optional; where it exists, it reads and writes the same.
    if Command::new("bsdtar").arg("--version").output().is_ok() {
        let to = temp.path().join("bsdtar");
        std::fs::create_dir(&to).unwrap();
        run(Command::new("bsdtar").arg("-xpf").arg(temp.path().join("w.tar.gz")).arg("-C").arg(&to));
        check(&to, "bsdtar", true);
        run(Command::new("bsdtar").arg("-czf").arg(temp.path().join("b.tar.gz")).arg("-C").arg(&to).arg("."));
        session.restore(&std::fs::read(temp.path().join("b.tar.gz")).unwrap()).await;
        check(&session.workspace, "bsdtar", true);
    }
}

#[tokio::test]
async fn what_an_archive_cannot_keep_is_named() {
    let session = Session::new().await;
    std::fs::write(session.workspace.join("tool"), "x").unwrap();
    std::fs::set_permissions(session.workspace.join("tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(session.workspace.join("agent.sock")).unwrap();
    let answer = session.ask("GET /api/sessions/{}/workspace", String::new()).await;
    let named = answer.headers["x-ash-skipped"].to_str().unwrap();
    assert!(named.contains("agent.sock (a socket)") && named.contains("tool (is kept without its setuid"), "{named}");
    let temp = tempfile::tempdir().unwrap();
    run(Command::new("mkfifo").arg(temp.path().join("pipe")));
    let tar = Command::new("tar").args(["-cf", "-", "-C"]).arg(temp.path()).arg(".").output().unwrap().stdout;
    let answer = session.restore(&tar).await;
    assert_eq!(answer["skipped"], json!([{"path": "pipe", "reason": "a named pipe"}]));
}
