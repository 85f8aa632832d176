//! Setuid, setgid and sticky bits of a payload's files: the files stay in a directory that no user
//! of the host can reach, and ashd itself never writes such a file.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Api, Daemon, Options};
use serde_json::{Value, json};

const SPECIAL: u32 = 0o7000;

/// A file, a directory and an archive of each with all bits, in workspace and home.
const MAKE: &str = r#"set -e
for at in /workspace "$HOME"; do
    cd "$at"
    cp /bin/true set; chmod 6755 set
    mkdir -p dir/sub; chmod 7777 dir; cp /bin/true dir/inner; chmod 4711 dir/inner
    python3 - <<'END'
import io, tarfile
with tarfile.open("a.tar", "w") as tar:
    for name, mode, kind in (("t", 0o7755, tarfile.DIRTYPE), ("t/suid", 0o6755, tarfile.REGTYPE)):
        info = tarfile.TarInfo(name); info.mode = mode; info.type = kind; info.size = 2 if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(b"hi"))
END
    tar -xpf a.tar
    stat -c '%a %n' set dir dir/inner t t/suid
done"#;

async fn run(api: &Api, session: &str, command: &str) -> Value {
    let said = api.post(&format!("/api/sessions/{session}/exec"), json!({"command": command})).await.expect(200);
    assert_eq!(said["exitCode"], 0, "{said}");
    said
}

/// Entries below `dir` that have one of the bits.
fn special(dir: &Path) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap).filter(|e| !e.path_is_symlink());
    all.filter(|e| e.metadata().unwrap().mode() & SPECIAL != 0).map(|e| e.into_path()).collect()
}

fn reaches(path: &Path) -> bool {
    // A user of the host outside ashd's groups: `uid` clears the groups when the caller is root.
    let mut command = Command::new("/usr/bin/stat");
    command.arg(path).uid(60_001).gid(60_001).current_dir("/");
    command.output().unwrap().status.success()
}

#[tokio::test]
async fn a_payloads_bits_are_copied_by_nobody_and_reached_by_nobody() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let said = run(&api, &id, MAKE).await;
    let shown = said["stdout"].as_str().unwrap();
    assert_eq!(shown.matches("6755 t/suid").count(), 2, "archives unpack with their modes: {shown}");

    let sessions = daemon.data().join("sessions");
    let own = sessions.join(&id);
    // Everything that ashd copies, packs, unpacks or writes into a directory of the payload.
    let forked = api.call("POST", &format!("/api/sessions/{id}/fork"), None).await.expect(201);
    let fork = forked["session"]["id"].as_str().unwrap().to_owned();
    let packed = api.open("GET", &format!("/api/sessions/{id}/workspace"), None).await;
    let packed = http_body_util::BodyExt::collect(packed.into_body()).await.unwrap().to_bytes();
    let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &packed);
    let other = api.session("a").await;
    api.post(&format!("/api/sessions/{other}/workspace"), json!({"bundle": bundle})).await.expect(200);
    let before = special(&own).len();
    let files = json!({"files": [{"path": "dir/new/file", "content": "aGk="}, {"path": "t/new", "content": "aGk="}]});
    let written = api.post(&format!("/api/sessions/{id}/files"), files).await.expect(200);
    assert!(written["files"].as_array().unwrap().iter().all(|file| file["written"] == true), "{written}");
    let hand = json!({"filename": "x.sh", "content": "IyEvYmluL3NoCg==", "mimeType": "text/plain"});
    api.post(&format!("/api/sessions/{id}/attachments"), hand).await.expect(201);
    assert!(own.join("workspace/dir/new/file").exists());
    assert_eq!(special(&own).len(), before, "{:?}", special(&own));
    for dir in [sessions.join(&fork), sessions.join(&other), daemon.data().join("agents")] {
        assert_eq!(special(&dir), Vec::<PathBuf>::new());
    }
    assert!(sessions.join(&fork).join("workspace/t/suid").exists());
    assert!(sessions.join(&other).join("workspace/t/suid").exists());

    let planted = own.join("workspace/set");
    assert!(planted.exists() && !reaches(&planted), "another user of the host reaches {}", planted.display());
}

#[tokio::test]
async fn directories_that_were_opened_up_are_closed_at_the_next_start() {
    let (daemon, api) = Daemon::deployed(Options::default().parked(0)).await;
    let id = api.session("a").await;
    run(&api, &id, "cp /bin/true /workspace/set; chmod 6755 /workspace/set; chmod 777 /workspace").await;
    let sessions = daemon.data().join("sessions");
    let own = sessions.join(&id);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&sessions), mode(&own)), (0o700, 0o700));
    for dir in [&daemon.data(), &sessions, &own] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert!(reaches(&own.join("workspace/set")), "the test can tell");
    assert_eq!(api.verb(&id, "stop").await, "stopped");
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!((mode(&sessions), mode(&own)), (0o700, 0o700));
    assert!(!reaches(&own.join("workspace/set")));
}
