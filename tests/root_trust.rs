//! Root's programs (`ashctl claude`, doctor, backup, restore, any command with a key) in
//! directories of user ashd: planted links and programs are neither followed nor executed.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Daemon, Options};
use sha2::{Digest, Sha256};

const ASHD: u32 = 61_234;

struct Planted {
    top: tempfile::TempDir,
}

impl Planted {
    /// `data` belongs to ashd, `secret` (0700) and everything else to root.
    fn new() -> Self {
        let top = tempfile::Builder::new().prefix("ashd-trust-").tempdir().unwrap();
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let planted = Self { top };
        for (dir, mode) in [("data", 0o750), ("secret", 0o700), ("home", 0o700)] {
            std::fs::create_dir(planted.at(dir)).unwrap();
            std::fs::set_permissions(planted.at(dir), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        planted.theirs("data");
        planted
    }

    fn at(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    fn theirs(&self, name: &str) {
        lchown(self.at(name), Some(ASHD), Some(ASHD)).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        std::fs::write(self.at(name), text).unwrap();
        std::fs::set_permissions(self.at(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn ashctl(&self, path: &str, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ashctl"));
        command.args(arguments).env_clear().env("PATH", path).env("HOME", self.at("home"));
        command.env("ASH_DATA_DIR", self.at("data")).env("ASH_CLAUDE_DIR", self.at("claude"));
        let output = command.current_dir(self.top.path()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
    }
}

#[test]
fn a_planted_claude_is_never_run_by_root() {
    let planted = Planted::new();
    let marker = planted.at("marker");
    let script = format!("#!/bin/sh\nid -u >> {}\necho 9.9.9\n", marker.display());
    planted.program("data/claude/9.9.9/claude", &script);
    planted.program("data/claude/2.1.330/claude", &script);
    for name in ["data/claude", "data/claude/9.9.9", "data/claude/9.9.9/claude", "data/claude/2.1.330/claude"] {
        planted.theirs(name);
    }
    for version in ["9.9.9", "2.1.330"] {
        let (code, said) = planted.ashctl("/nonexistent", &["claude", "install", version]);
        assert!(code == 1 && said.contains("npm is not installed"), "{version}: {code} {said}");
    }
    let (code, said) = planted.ashctl("/nonexistent", &["claude", "migrate"]);
    assert!(code == 0 && said.contains("9.9.9") && said.contains("checksum is not known"), "{code} {said}");
    assert!(!marker.exists(), "it was run by uid {}", std::fs::read_to_string(&marker).unwrap());
    assert_eq!(std::fs::read_dir(planted.at("claude")).unwrap().count(), 0);
}

/// The directory itself, or one above it, belongs to another user: nothing is created in it.
#[test]
fn claude_is_installed_only_where_root_alone_can_write() {
    let planted = Planted::new();
    for (name, words) in [("theirs", "belongs to uid 61234"), ("open", "mode 777"), ("link", "belongs to uid 61234")] {
        let dir = planted.at("claude");
        match name {
            "link" => symlink(planted.at("secret"), &dir).unwrap(),
            _ => std::fs::create_dir(&dir).unwrap(),
        }
        match name {
            "open" => std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap(),
            _ => planted.theirs("claude"),
        }
        let (code, said) = planted.ashctl("/usr/bin:/bin", &["claude", "install"]);
        assert!(code == 1 && said.contains(words), "{name}: {code} {said}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "{name}");
        if name == "link" { std::fs::remove_file(&dir).unwrap() } else { std::fs::remove_dir(&dir).unwrap() }
    }
}

/// A registry with one package on loopback. Only the admin's settings may select it.
struct Registry {
    port: u16,
    requests: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Registry {
    fn start(package: &str, version: &str, archive: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = std::sync::Arc::clone(&requests);
        let about = serde_json::json!({
            "name": package, "dist-tags": { "latest": version },
            "versions": { version: { "name": package, "version": version,
                "dist": { "tarball": format!("http://127.0.0.1:{port}/x.tgz") } } }
        });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = Vec::new();
                let mut byte = [0; 1];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let body = if head.contains("/x.tgz") { archive.clone() } else { about.to_string().into_bytes() };
                seen.lock().unwrap().push(head);
                let top = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(top.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn package(binary: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, text) in [("package/package.json", r#"{"name":"x","version":"9.9.9"}"#), ("package/claude", binary)] {
        let mut head = tar::Header::new_gnu();
        head.set_size(text.len() as u64);
        head.set_mode(0o755);
        tar.append_data(&mut head, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// npm with the registry of the admin's `~/.npmrc`, and the fetched program, run unprivileged.
#[test]
fn npm_and_what_it_fetched_run_without_roots_privileges() {
    let planted = Planted::new();
    let name = if cfg!(target_arch = "aarch64") { "linux-arm64" } else { "linux-x64" };
    let name = format!("@anthropic-ai/claude-code-{name}");
    // Prints its user; only root could create a file at the marker.
    let marker = planted.at("secret/marker");
    let script =
        format!("#!/bin/sh\ntouch {} 2>/dev/null\necho 9.9.9 as uid $(id -u) groups $(id -G)\n", marker.display());
    let registry = Registry::start(&name, "9.9.9", package(&script));
    let other = Registry::start(&name, "9.9.9", package("#!/bin/sh\necho 9.9.9 planted\n"));
    let settings = |port| format!("registry=http://127.0.0.1:{port}/\nfetch-retries=0\n");
    std::fs::write(planted.at("home/.npmrc"), settings(registry.port)).unwrap();
    // The former working directory of npm, and where npm would search for a project from there.
    std::fs::create_dir(planted.at("data/claude")).unwrap();
    for dir in ["data/claude", "data", "claude-planted"] {
        std::fs::create_dir_all(planted.at(dir)).unwrap();
        std::fs::write(planted.at(dir).join(".npmrc"), settings(other.port)).unwrap();
        std::fs::write(planted.at(dir).join("package.json"), "{}").unwrap();
    }
    planted.theirs("data/claude");

    // Without a flag: reports the find, and installs or runs nothing.
    let path = std::env::var("PATH").unwrap();
    let sum: String = Sha256::digest(script.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let (code, said) = planted.ashctl(&path, &["claude", "install", "9.9.9"]);
    assert!(code == 1 && said.contains(&format!("--sha256 {sum}")), "{code} {said}");
    assert!(!said.contains("as uid"), "it was run before it was accepted: {said}");
    let (code, said) = planted.ashctl(&path, &["claude", "install", "9.9.9", "--sha256", &"0".repeat(64)]);
    assert!(code == 1 && said.contains("expected 000"), "{code} {said}");
    assert_eq!(std::fs::read_dir(planted.at("claude")).unwrap().count(), 0, "nothing was installed");

    let (code, said) = planted.ashctl(&path, &["claude", "install", "9.9.9", "--sha256", &sum]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("it runs: 9.9.9 as uid 1899999996 groups 1899999996"), "{said}");
    assert!(!marker.exists(), "root ran it");
    let agents = registry.requests();
    assert!(agents.iter().any(|head| head.contains("/x.tgz")), "the admin's registry was asked: {agents:?}");
    assert_eq!(other.requests(), Vec::<String>::new(), "a planted .npmrc was obeyed");
    let binary = planted.at("claude/9.9.9/claude");
    let meta = std::fs::metadata(&binary).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777, std::fs::read_to_string(&binary).unwrap()), (0, 0o755, script));
    let names: Vec<_> = std::fs::read_dir(planted.at("claude")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["9.9.9"], "nothing else stays");
    let (code, said) = planted.ashctl(&path, &["claude", "install", "9.9.9", "--allow-unknown-checksum"]);
    assert!(code == 0 && said.contains("already installed"), "{code} {said}");
    let (code, said) = planted.ashctl(&path, &["claude", "install", "9.9.9", "--force", "--allow-unknown-checksum"]);
    assert!(code == 0 && said.contains("it runs"), "{code} {said}");
}

/// An upgrade from a version that kept Claude Code where ashd can write.
#[test]
fn a_known_version_is_copied_out_of_the_data_directory() {
    let planted = Planted::new();
    let version = ash_ctl::claude_install::PINNED;
    let old = format!("data/claude/{version}/claude");
    std::fs::create_dir_all(planted.at(&old).parent().unwrap()).unwrap();
    std::fs::copy(common::real_claude(), planted.at(&old)).unwrap();
    planted.theirs(&old);
    let (code, said) = planted.ashctl("/nonexistent", &["claude", "migrate"]);
    assert!(code == 0 && said.contains(&format!("it runs: {version}")), "{code} {said}");
    let new = std::fs::metadata(planted.at("claude").join(version).join("claude")).unwrap();
    let old = std::fs::metadata(planted.at(&old)).unwrap();
    assert_eq!((new.uid(), new.mode() & 0o7777, new.len()), (0, 0o711, old.len()), "sessions cannot read it");
    assert_ne!(new.ino(), old.ino(), "a copy, not the file that ashd may still write");
    let (code, said) = planted.ashctl("/nonexistent", &["claude", "list"]);
    assert!(code == 0 && said.contains(version), "{code} {said}");
    let (code, said) = planted.ashctl("/nonexistent", &["claude", "migrate"]);
    assert!(code == 0 && !said.contains("copying"), "a second time there is nothing to do: {said}");
}

#[test]
fn a_link_in_place_of_the_first_key_is_not_read() {
    let planted = Planted::new();
    std::fs::write(planted.at("secret/key"), "root-only-secret\n").unwrap();
    for hard in [false, true] {
        let key = planted.at("data/initial-api-key");
        let _ = std::fs::remove_file(&key);
        if hard {
            std::fs::hard_link(planted.at("secret/key"), &key).unwrap();
        } else {
            symlink(planted.at("secret/key"), &key).unwrap();
        }
        let registry = Registry::start("x", "1.0.0", Vec::new());
        let url = format!("http://127.0.0.1:{}", registry.port);
        planted.ashctl("/usr/bin:/bin", &["--url", &url, "health"]);
        let heads = registry.requests();
        assert_eq!(heads.len(), 1, "it was asked");
        assert!(!heads[0].contains("root-only-secret"), "{}", heads[0]);
    }
}

/// A port on which `uid` listens. A socket belongs to the uid of the thread that creates it.
fn listener_of(uid: u32) -> TcpListener {
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
    let listener = TcpListener::bind("127.0.0.1:0");
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
    listener.unwrap()
}

/// Answers one request with this error, as a compromised ashd might. Returns the request.
fn answer_one(listener: TcpListener, error: &'static str) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut head = vec![0; 4096];
        let read = socket.read(&mut head).unwrap();
        let body = format!("{{\"error\":\"{error}\"}}");
        write!(socket, "HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    })
}

/// While ashd is down, any user can listen on its port and wait for root's next command.
#[test]
fn the_first_key_is_sent_to_root_and_ashd_of_this_host_alone() {
    let planted = Planted::new();
    std::fs::write(planted.at("data/initial-api-key"), "the-admins-key\n").unwrap();
    planted.theirs("data/initial-api-key");
    let ask = |url: &str| planted.ashctl("/usr/bin:/bin", &["--url", url, "agent", "list"]);
    let url = |listener: &TcpListener| format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());

    let stranger = listener_of(65_534);
    stranger.set_nonblocking(true).unwrap();
    let (code, said) = ask(&url(&stranger));
    assert!(code == 2 && said.contains("uid 65534 listens at"), "{code} {said}");
    assert!(stranger.accept().is_err(), "it was asked");
    let (code, said) = ask("http://192.0.2.1:4100");
    assert!(code == 2 && said.contains("not on this host's loopback"), "{code} {said}");

    // An explicit key is always sent.
    for (uid, key, sent) in [(0, "", "the-admins-key"), (ASHD, "", "the-admins-key"), (65_534, "own", "own")] {
        let listener = listener_of(uid);
        let url = url(&listener);
        let asked = answer_one(listener, "x");
        planted.ashctl("/usr/bin:/bin", &["--url", &url, "--key", key, "agent", "list"]);
        assert!(asked.join().unwrap().contains(&format!("Bearer {sent}")), "uid {uid}");
    }
}

/// Terminals obey escape sequences; ashd and agents must not write to root's terminal.
#[test]
fn what_root_is_told_cannot_steer_its_terminal() {
    let planted = Planted::new();
    let listener = listener_of(0);
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let asked = answer_one(listener, "before\\u001b]0;title\\u0007\\u001b[2Jafter");
    let (code, said) = planted.ashctl("/usr/bin:/bin", &["--url", &url, "--key", "x", "agent", "list"]);
    asked.join().unwrap();
    assert!(code == 1 && said.contains("before]0;title[2Jafter"), "{code} {said:?}");
    assert!(!said.contains('\u{1b}') && !said.contains('\u{7}'), "{said:?}");
}

#[test]
fn backup_and_restore_follow_no_planted_link() {
    let planted = Planted::new();
    let sqlite = |path: &Path, text: &str| {
        let script = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('CREATE TABLE sessions (id TEXT)'); \
                      d.execute('INSERT INTO sessions VALUES (?)', [sys.argv[2]]); d.commit()";
        assert!(Command::new("python3").args(["-c", script]).arg(path).arg(text).status().unwrap().success());
    };
    sqlite(&planted.at("secret/root.db"), "root-only-secret");
    symlink(planted.at("secret/root.db"), planted.at("data/ashd.db")).unwrap();
    let before = std::fs::metadata(planted.at("secret")).unwrap().mtime_nsec();
    let (code, said) = planted.ashctl("/usr/bin:/bin", &["backup", "a.tar.gz"]);
    assert!(code == 1 && said.contains("cannot be copied as its owner, uid 61234"), "{code} {said}");
    let left: Vec<_> = std::fs::read_dir(planted.top.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("tar.gz")), "{left:?}");

    // A real one, which the owner of the directory can read.
    std::fs::remove_file(planted.at("data/ashd.db")).unwrap();
    sqlite(&planted.at("data/ashd.db"), "s1");
    planted.theirs("data/ashd.db");
    std::fs::create_dir_all(planted.at("data/sessions/s1/workspace")).unwrap();
    std::fs::write(planted.at("secret/file"), "root-only-secret").unwrap();
    std::fs::hard_link(planted.at("secret/file"), planted.at("data/sessions/s1/hard")).unwrap();
    std::fs::write(planted.at("data/sessions/s1/plain"), "plain").unwrap();
    for name in ["data/sessions", "data/sessions/s1", "data/sessions/s1/workspace", "data/sessions/s1/plain"] {
        planted.theirs(name);
    }
    let (code, said) = planted.ashctl("/usr/bin:/bin", &["backup", "b.tar.gz"]);
    assert!(code == 0 && said.contains("sessions/s1/hard: a hard link"), "{code} {said}");

    // Restored while links are at the places of root's own files.
    symlink(planted.at("secret/lock"), planted.at("data/ashd.lock")).unwrap();
    let (code, said) = planted.ashctl("/usr/bin:/bin", &["restore", "b.tar.gz"]);
    assert!(code == 1 && said.contains("ashd.lock"), "{code} {said}");
    assert!(!planted.at("secret/lock").exists(), "the link was followed");
    std::fs::remove_file(planted.at("data/ashd.lock")).unwrap();
    symlink(planted.at("secret"), planted.at("data/.restoring")).unwrap();
    std::fs::rename(planted.at("data/sessions"), planted.at("data/away")).unwrap();
    symlink(planted.at("secret"), planted.at("data/sessions")).unwrap();
    let (code, said) = planted.ashctl("/usr/bin:/bin", &["restore", "b.tar.gz"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(std::fs::read_to_string(planted.at("data/sessions/s1/plain")).unwrap(), "plain");
    for name in ["data/sessions", "data/sessions/s1/plain", "data/ashd.db", "data/ashd.lock"] {
        assert_eq!(std::fs::symlink_metadata(planted.at(name)).unwrap().uid(), ASHD, "{name}");
    }
    let secret = std::fs::metadata(planted.at("secret")).unwrap();
    assert_eq!((secret.uid(), secret.mode() & 0o7777), (0, 0o700));
    assert_eq!(std::fs::metadata(planted.at("secret/file")).unwrap().uid(), 0);
    assert_eq!(std::fs::read_dir(planted.at("secret")).unwrap().count(), 2, "root.db and file");
    assert!(before > 0);
}

/// The directory of sessions is a link into a directory of root, while the daemon runs.
#[test]
fn doctor_makes_nothing_through_a_planted_link() {
    let planted = Planted::new();
    let daemon = Daemon::start(Options::default());
    let sessions = daemon.data().join("sessions");
    std::fs::rename(&sessions, daemon.data().join("moved")).ok();
    symlink(planted.at("secret"), &sessions).unwrap();
    let touched = || {
        let meta = std::fs::metadata(planted.at("secret")).unwrap();
        (meta.mtime(), meta.mtime_nsec(), meta.uid(), meta.mode())
    };
    let before = touched();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashctl"));
    command.args(["doctor", "--config"]).arg(daemon.dir.join("ashd.toml")).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("ASH_DATA_DIR", daemon.data()).env("ASH_RUN_DIR", daemon.run());
    let said = command.env("ASH_CLAUDE_BIN", common::fake_claude()).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(touched(), before, "something was made through the link:\n{said}");
    assert!(said.contains("FAIL  sandbox") && said.contains("is not a directory"), "{said}");
    std::fs::remove_file(&sessions).unwrap();
    daemon.stop();
}

/// The owner of the data directory could exchange it while root prepares it.
#[test]
fn boot_refuses_a_data_directory_below_another_users() {
    let planted = Planted::new();
    std::fs::create_dir(planted.at("data/inner")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashd"));
    command.arg("serve").env_clear().env("PATH", "/usr/bin:/bin").env("ASH_UPSTREAM", "offline");
    command.env("ASH_DATA_DIR", planted.at("data/inner")).env("ASH_RUN_DIR", planted.at("run")).env("ASH_PORT", "0");
    let said = command.output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && text.contains("belongs to uid 61234"), "{text}");
    assert_eq!(std::fs::metadata(planted.at("data/inner")).unwrap().uid(), 0);
    chown(planted.at("data"), Some(0), Some(0)).unwrap();
}
