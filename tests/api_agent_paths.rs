//! Agents that are directories of the server: who may name one, and what is read from it later. The
//! directory is checked at each use, so a directory that changes after the deployment does not
//! expose files of ashd.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{Api, Daemon, Options};
use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};

const CLAUDE_MD: (&str, &str) = ("CLAUDE.md", "You are a test.\n");

async fn ordinary(api: &Api, tenant: &str) -> Api {
    let minted = api.post("/api/api-keys", json!({"label": "ordinary", "tenantId": tenant})).await.expect(201);
    api.with_key(minted["key"].as_str())
}

async fn deploy(api: &Api, name: &str, path: &Path) -> (u16, Value) {
    let answer = api.post("/api/agents", json!({"name": name, "path": path})).await;
    (answer.status, answer.json)
}

fn become_link(dir: &Path, target: &Path) {
    fs::remove_dir_all(dir).unwrap();
    symlink(target, dir).unwrap();
}

/// Tries every way to read an agent's directory; none of them shows `secrets`.
async fn shows_nothing(api: &Api, agent: &str, secrets: &[&str], why: &str) {
    let mut answers = vec![api.get(&format!("/api/agents/{agent}/files")).await];
    for file in ["initial-api-key", "credential-key", "ashd.toml", "CLAUDE.md", "port"] {
        for format in ["", "?format=raw"] {
            answers.push(api.get(&format!("/api/agents/{agent}/files/{file}{format}")).await);
        }
    }
    answers.push(api.post("/api/sessions", json!({"agent": agent})).await);
    for answer in answers {
        assert_eq!(answer.status, 422, "{}", answer.text);
        let error = answer.json["error"].as_str().unwrap();
        assert!(error.contains(why), "{error}");
        for secret in secrets {
            assert!(!answer.text.contains(secret), "{}", answer.text);
        }
    }
    api.call("PATCH", &format!("/api/agents/{agent}/warm"), Some(json!({"count": 1}))).await.expect(200);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let warm = api.get(&format!("/api/agents/{agent}/warm")).await.expect(200);
    assert_eq!(warm["warm"]["ready"], 0, "{warm}");
    api.call("PATCH", &format!("/api/agents/{agent}/warm"), Some(json!({"count": 0}))).await.expect(200);
}

#[tokio::test]
async fn without_roots_only_the_admin_names_a_directory() {
    let daemon = Daemon::start(Options::default());
    let admin = daemon.api();
    let dir = daemon.agent_dir("agent", &[CLAUDE_MD]);
    for tenant in ["default", "acme"] {
        let user = ordinary(&admin, tenant).await;
        let (status, answer) = deploy(&user, "mine", &dir).await;
        assert_eq!(status, 400, "{answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains("upload") && error.contains("[agents] roots"), "{error}");
        user.get("/api/agents/mine").await.expect(404);
        // A missing directory gets the same answer: the text does not reveal what exists on the
        // host.
        let (status, other) = deploy(&user, "mine", Path::new("/nowhere/at/all")).await;
        assert_eq!((status, other["error"].as_str().unwrap()), (400, error));
    }
    assert_eq!(deploy(&admin, "mine", &dir).await.0, 201);
    // Every key of the tenant may use what the admin named.
    let user = ordinary(&admin, "default").await;
    user.get("/api/agents/mine/files/CLAUDE.md").await.expect(200);
    user.session("mine").await;
}

#[tokio::test]
async fn a_directory_that_becomes_a_link_to_ashds_own_shows_nothing() {
    let daemon = Daemon::start(Options::default());
    let admin = daemon.api();
    let user = ordinary(&admin, "default").await;
    // The first session creates the directory of sessions.
    admin.deploy("uploaded").await;
    admin.session("uploaded").await;
    let key = daemon.key.clone();
    let sealing = fs::read(daemon.data().join("credential-key")).map(|k| String::from_utf8_lossy(&k).into_owned());
    let sealing = sealing.unwrap_or_else(|_| "no sealing key yet".to_owned());
    let secrets = [key.as_str(), sealing.trim()];
    let own = [
        ("data", daemon.data(), "data directory"),
        ("sessions", daemon.data().join("sessions"), "data directory"),
        ("run", daemon.run(), "run directory"),
        ("above", daemon.dir.clone(), "data directory"),
        ("gone", PathBuf::from("/nowhere/at/all"), "no longer exists"),
    ];
    for (name, target, why) in own {
        let dir = daemon.agent_dir(name, &[CLAUDE_MD]);
        assert_eq!(deploy(&admin, name, &dir).await.0, 201);
        become_link(&dir, &target);
        shows_nothing(&user, name, &secrets, why).await;
        shows_nothing(&admin, name, &secrets, why).await;
        let (status, answer) = deploy(&admin, name, &dir).await;
        assert_eq!(status, 400, "{answer}");
    }
}

#[tokio::test]
async fn roots_hold_at_each_use() {
    let (daemon, roots) = with_roots();
    let admin = daemon.api();
    let user = ordinary(&admin, "acme").await;
    let agent = |name: &str| daemon.agent_dir(&format!("roots/{name}"), &[CLAUDE_MD]);
    let outside = daemon.agent_dir("outside", &[CLAUDE_MD, ("secret", "a file outside")]);
    // Links that stay below the roots are followed, absolute ones too.
    let (v1, v2) = (agent("v1"), agent("v2"));
    fs::write(v2.join("two"), "2").unwrap();
    symlink(&v1, roots.join("current")).unwrap();
    assert_eq!(deploy(&user, "current", &roots.join("current")).await.0, 201);
    user.session("current").await;
    fs::remove_file(roots.join("current")).unwrap();
    symlink("v2", roots.join("current")).unwrap();
    assert_eq!(user.get("/api/agents/current/files/two").await.expect(200)["content"], "2");
    // The kernel resolves `..`, then the path is checked.
    assert_eq!(deploy(&user, "up", &roots.join("v1/../v2")).await.0, 201);
    let (status, answer) = deploy(&user, "out", Path::new("etc")).await;
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer["error"].as_str().unwrap().starts_with("path \"etc\" is relative; give the absolute path"),
        "{answer}"
    );
    for path in [outside.clone(), roots.join("../outside"), roots.clone().join("../..")] {
        let (status, answer) = deploy(&user, "out", &path).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("agent roots"), "{answer}");
    }
    assert_eq!(deploy(&admin, "out", &outside).await.0, 400);

    let swapped = agent("swapped");
    assert_eq!(deploy(&user, "swapped", &swapped).await.0, 201);
    become_link(&swapped, &outside);
    shows_nothing(&user, "swapped", &["a file outside"], "agent roots").await;
    fs::remove_file(&swapped).unwrap();
    symlink(daemon.data(), &swapped).unwrap();
    shows_nothing(&user, "swapped", &[&daemon.key], "agent roots").await;
    // The same for a parent directory that becomes a link.
    let deep = daemon.agent_dir("roots/deep/er/agent", &[CLAUDE_MD]);
    assert_eq!(deploy(&user, "deep", &deep).await.0, 201);
    daemon.agent_dir("outside/agent", &[CLAUDE_MD, ("secret", "a file outside")]);
    become_link(&roots.join("deep/er"), &outside);
    shows_nothing(&user, "deep", &["a file outside"], "agent roots").await;
}

fn with_roots() -> (Daemon, PathBuf) {
    let options = Options::default();
    // The harness chooses the daemon's directory, so the roots are set by a reload.
    let mut daemon = Daemon::start(options);
    let roots = daemon.dir.join("agents/roots");
    fs::create_dir_all(&roots).unwrap();
    let file = daemon.dir.join("ashd.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[agents]\nroots = [{:?}]\n", roots.to_str().unwrap())).unwrap();
    daemon.restart();
    (daemon, roots)
}

#[tokio::test]
async fn the_data_directory_is_none_whatever_the_roots_say() {
    let mut daemon = Daemon::start(Options::default());
    let file = daemon.dir.join("ashd.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[agents]\nroots = [\"/\"]\n")).unwrap();
    daemon.restart();
    let (admin, user) = (daemon.api(), ordinary(&daemon.api(), "acme").await);
    admin.deploy("uploaded").await;
    let uploaded = admin.get("/api/agents/uploaded").await.expect(200)["agent"]["path"].as_str().unwrap().to_owned();
    let drop_ins = daemon.dir.join("ashd.toml.d");
    fs::create_dir_all(&drop_ins).unwrap();
    fs::write(drop_ins.join("CLAUDE.md"), "x").unwrap();
    fs::write(daemon.dir.join("CLAUDE.md"), "x").unwrap();
    for path in
        [PathBuf::from(&uploaded), daemon.data(), daemon.run(), daemon.dir.clone(), drop_ins, PathBuf::from("/")]
    {
        let (status, answer) = deploy(&user, "own", &path).await;
        assert_eq!(status, 400, "{}: {answer}", path.display());
        assert!(answer["error"].as_str().unwrap().contains("of ashd"), "{}: {answer}", path.display());
    }
}

#[tokio::test]
async fn what_lies_in_the_directory_leads_nowhere_and_holds_nobody_up() {
    let (daemon, _roots) = with_roots();
    let admin = daemon.api();
    let user = ordinary(&admin, "acme").await;
    let dir = daemon.agent_dir("roots/agent", &[CLAUDE_MD, ("docs/a.md", "A")]);
    daemon.agent_dir("outside", &[("secret", "a file outside")]);
    symlink("../../outside/secret", dir.join("up")).unwrap();
    symlink(daemon.data().join("initial-api-key"), dir.join("key")).unwrap();
    symlink(daemon.data(), dir.join("data")).unwrap();
    symlink("docs", dir.join("alias")).unwrap();
    rustix::fs::mknodat(CWD, dir.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    let zero = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(CWD, dir.join("zero"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), zero).unwrap();
    // A hard link to a file of ashd, which a local user can create when fs.protected_hardlinks is
    // off.
    fs::hard_link(daemon.data().join("initial-api-key"), dir.join("second-name")).unwrap();
    assert_eq!(deploy(&user, "a", &dir).await.0, 201);

    let listed = user.get("/api/agents/a/files").await.expect(200);
    let paths: Vec<&str> = listed["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["CLAUDE.md", "docs/a.md"]);
    for path in ["up", "key", "data/initial-api-key", "alias/a.md", "fifo", "zero", "second-name", "docs"] {
        for format in ["", "?format=raw"] {
            let answer = user.get(&format!("/api/agents/a/files/{path}{format}")).await;
            assert_eq!(answer.status, 400, "{path}: {}", answer.text);
        }
    }
    let id = user.session("a").await;
    let space = daemon.data().join("sessions").join(&id).join("workspace");
    let mut there: Vec<String> =
        fs::read_dir(&space).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(there, ["CLAUDE.md", "alias", "docs"]);
    let read = json!({"command": "cat * docs/* 2>/dev/null; ls -a"});
    let said = user.post(&format!("/api/sessions/{id}/exec"), read).await.expect(200);
    assert!(!said.to_string().contains(&daemon.key) && !said.to_string().contains("a file outside"), "{said}");
}

#[tokio::test]
async fn a_directory_swapped_without_rest_never_shows_the_outside() {
    let (daemon, roots) = with_roots();
    let user = ordinary(&daemon.api(), "acme").await;
    let dir = daemon.agent_dir("roots/agent", &[CLAUDE_MD, ("secret", "inside")]);
    let outside = daemon.agent_dir("outside", &[CLAUDE_MD, ("secret", "outside")]);
    assert_eq!(deploy(&user, "a", &dir).await.0, 201);
    symlink(&outside, roots.join("link")).unwrap();
    let swapping = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let swapper = std::thread::spawn({
        let (swapping, roots) = (std::sync::Arc::clone(&swapping), roots.clone());
        move || {
            while swapping.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, roots.join("agent"), CWD, roots.join("link"), flags).unwrap();
            }
        }
    });
    let (mut inside, mut refused) = (0, 0);
    for _ in 0..400 {
        let answer = user.get("/api/agents/a/files/secret").await;
        match answer.status {
            200 => {
                assert_eq!(answer.json["content"], "inside");
                inside += 1;
            }
            422 => refused += 1,
            _ => panic!("{}", answer.text),
        }
    }
    swapping.store(false, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(inside > 0 && refused > 0, "the race did not happen: {inside} read, {refused} refused");
}
