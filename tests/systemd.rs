//! Messages of ashd to systemd, received by a socket in place of systemd's (sd_notify(3)).
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::journal::Journal;
use common::{Daemon, Options};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use sqlx::{ConnectOptions, Connection, Executor};

struct Systemd {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Systemd {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ashd-notify-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        // systemd's own is 0777 as well.
        fs::set_permissions(dir.path().join("notify"), fs::Permissions::from_mode(0o777)).unwrap();
        Self { dir, socket }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// Waits for a message that matches `wanted`. Returns all messages up to it.
    fn until(&self, what: &str, within: Duration, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut heard = Vec::new();
        let start = Instant::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            assert!(!left.is_zero(), "{what} was not said within {within:?}, but {heard:?}");
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            let found = wanted(&text);
            heard.push(text);
            if found {
                return heard;
            }
        }
    }

    fn listen(&self, time: Duration) -> Vec<String> {
        let (start, mut heard) = (Instant::now(), Vec::new());
        while start.elapsed() < time {
            self.socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let mut buffer = [0; 4096];
            if let Ok(length) = self.socket.recv(&mut buffer) {
                heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
            }
        }
        heard
    }

    fn forget(&self) {
        self.listen(Duration::from_millis(1));
    }
}

fn says(word: &'static str) -> impl Fn(&str) -> bool {
    move |text| text.lines().any(|line| line == word)
}

/// A test daemon under this systemd, with a watchdog of one second.
fn start(systemd: &Systemd, options: Options) -> Daemon {
    let options = options.env("NOTIFY_SOCKET", systemd.path().to_str().unwrap()).env("WATCHDOG_USEC", "1000000");
    Daemon::start(options)
}

fn signal(daemon: &Daemon, signal: Signal) {
    kill(nix::unistd::Pid::from_raw(i32::try_from(daemon.pid()).unwrap()), signal).unwrap();
}

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn ready_status_watchdog_reload_and_stop_are_said() {
    let systemd = Systemd::new();
    let mut daemon = start(&systemd, Options::default());
    let heard = systemd.until("READY", SOON, says("READY=1"));
    assert!(heard.last().unwrap().contains("STATUS=0 sessions"), "{heard:?}");
    assert!(!heard.iter().any(|text| text.contains("WATCHDOG")), "fed before it serves: {heard:?}");
    // READY means that it answers.
    let api = daemon.api();
    api.get("/health").await.expect(200);
    systemd.until("WATCHDOG", SOON, says("WATCHDOG=1"));
    api.deploy("a").await;
    let (one, two) = (api.session("a").await, api.session("a").await);
    api.post(&format!("/api/sessions/{one}/pause"), json!({})).await.expect(200);
    systemd.until("STATUS", SOON, says("STATUS=2 sessions: 1 idle, 1 paused"));
    let running = api.send(&two, json!({"content": "@wait 2s\n@text x"})).await;
    systemd.until("STATUS", SOON, says("STATUS=2 sessions: 1 running, 1 paused"));
    running.rest().await;

    signal(&daemon, Signal::SIGHUP);
    let heard = systemd.until("RELOADING", SOON, |text| text.contains("RELOADING=1"));
    let stamp = heard.last().unwrap().lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
    let now = sd_notify::NotifyState::monotonic_usec_now().unwrap().to_string();
    let microseconds = |text: &str| text.trim_start_matches("MONOTONIC_USEC=").parse::<i128>().unwrap();
    let age = microseconds(&now) - microseconds(stamp);
    assert!((0..20_000_000).contains(&age), "{age} us");
    systemd.until("READY after the reload", SOON, says("READY=1"));

    systemd.forget();
    daemon.terminate();
    systemd.until("STOPPING", SOON, says("STOPPING=1"));
    daemon.restart();
    daemon.stop();
}

#[tokio::test]
async fn the_watchdog_starves_while_the_writer_hangs_and_is_fed_again() {
    let systemd = Systemd::new();
    let daemon = start(&systemd, Options::default());
    systemd.until("WATCHDOG", SOON, says("WATCHDOG=1"));
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(daemon.data().join("ashd.db"));
    let mut other = options.connect().await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    // One beat may already have been sent.
    systemd.listen(Duration::from_millis(700));
    let heard = systemd.listen(Duration::from_millis(2500));
    assert!(!heard.iter().any(|text| text.contains("WATCHDOG=1")), "fed while nothing can be written: {heard:?}");
    // The loop itself continues, and reports so.
    assert!(heard.iter().any(|text| text.contains("STATUS=")), "{heard:?}");
    other.execute("ROLLBACK").await.unwrap();
    systemd.until("WATCHDOG", SOON, says("WATCHDOG=1"));
    other.close().await.unwrap();
    daemon.stop();
}

fn logged(daemon: &Daemon, text: &str) -> String {
    let start = Instant::now();
    loop {
        let log = daemon.logs();
        if let Some(line) = log.lines().find(|line| line.contains(text)) {
            return line.to_owned();
        }
        assert!(start.elapsed() < SOON, "\"{text}\" is not in\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_reload_takes_over_what_can_change_and_names_the_rest() {
    let systemd = Systemd::new();
    let daemon = start(&systemd, Options::default().config("[limits]\npids = 200\n[pool]\nmax_sandboxes = 5"));
    let api = daemon.api();
    api.deploy("a").await;
    let session = api.session("a").await;
    let limit = |name: &'static str| {
        let (api, path) = (api.clone(), format!("/api/sessions/{session}/limits"));
        async move { api.get(&path).await.expect(200)["limits"][name]["value"].as_u64().unwrap() }
    };
    assert_eq!(limit("pids").await, 200);
    let file = daemon.dir.join("ashd.toml");
    let good = fs::read_to_string(&file).unwrap();
    systemd.until("READY", SOON, says("READY=1"));

    fs::write(&file, format!("[pool]\nmax_sandboxs = 9\n{}", good.replace("[pool]\n", ""))).unwrap();
    signal(&daemon, Signal::SIGHUP);
    systemd.until("READY after a faulty file", SOON, says("READY=1"));
    let line = logged(&daemon, "nothing was changed");
    assert!(line.contains("ashd.toml:2") && line.contains("the nearest valid key is \\\"pool.max_sandboxes"), "{line}");
    assert_eq!(api.get("/health").await.expect(200)["pool"]["maxCapacity"], 5);

    let new = good.replace("pids = 200", "pids = 300").replace("max_sandboxes = 5", "max_sandboxes = 6");
    fs::write(
        &file,
        format!("{new}\n[log]\nlevel = \"debug\"\n[agents]\nroots = [\"/srv\"]\n[gateway]\nuser = \"x\"\n"),
    )
    .unwrap();
    let drop_ins = daemon.dir.join("ashd.toml.d");
    fs::create_dir_all(&drop_ins).unwrap();
    fs::write(drop_ins.join("10.toml"), "[limits]\ndisk_files = 1234\n[attachments]\nmax_bytes = 10\n").unwrap();
    signal(&daemon, Signal::SIGHUP);
    systemd.until("READY", SOON, says("READY=1"));
    logged(&daemon, "needs a restart: gateway.user");
    assert_eq!(api.get("/health").await.expect(200)["pool"]["maxCapacity"], 6);
    let start = Instant::now();
    while (limit("pids").await, limit("diskFiles").await) != (300, 1234) {
        assert!(start.elapsed() < SOON, "the session does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pids = api.post(&format!("/api/sessions/{session}/exec"), json!({"command": "echo ok"})).await.expect(200);
    assert_eq!(pids["stdout"], "ok\n");
    let refused = api.post("/api/agents", json!({"name": "b", "path": "/etc"})).await;
    assert!(
        refused.status == 400 && refused.text.contains("must lie under one of the agent roots"),
        "{}",
        refused.text
    );
    logged(&daemon, "\"level\":\"DEBUG\"");

    // Only this key of the server section applies, from the next request on.
    fs::write(drop_ins.join("20.toml"), "[server]\nrequests_per_minute = 1\ncors_origins = [\"*\"]\n").unwrap();
    signal(&daemon, Signal::SIGHUP);
    systemd.until("READY", SOON, says("READY=1"));
    logged(&daemon, "needs a restart: server.cors_origins");
    api.get("/api/agents").await.expect(200);
    assert_eq!(api.get("/api/agents").await.status, 429);
    daemon.stop();
}

#[tokio::test]
async fn the_journal_tells_a_session_s_story() {
    let journal = Journal::start();
    let (daemon, api) = Daemon::deployed(Options { prelude: Some(journal.prelude()), ..Options::default() }).await;
    let id = api.session("a").await;
    journal.with("start", |e| {
        let has = |name: &str, value: &str| e.get(name).is_some_and(|found| found == value);
        has("MESSAGE", "serving") && has("SYSLOG_IDENTIFIER", "ashd")
    });
    api.turn(&id, "@text one").await;
    api.post(&format!("/api/sessions/{id}/pause"), json!({})).await.expect(200);
    api.post(&format!("/api/sessions/{id}/resume"), json!({})).await.expect(200);
    api.send(&id, json!({"content": "@kill"})).await.rest().await;
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    let all = journal.with("end", |e| e.get("TO").is_some_and(|to| to == "ended"));

    let story: Vec<_> = all.iter().filter(|e| e.get("ASH_SESSION") == Some(&id)).collect();
    let find = |name: &str| story.iter().find(|e| e.get("ASH_EVENT").is_some_and(|event| event == name));
    for name in ["started", "state", "turn-begin", "turn-end", "killed"] {
        let found = find(name).unwrap_or_else(|| panic!("no {name} in {story:#?}"));
        assert_eq!((found["ASH_TENANT"].as_str(), found["ASH_AGENT"].as_str()), ("default", "a"), "{found:?}");
    }
    assert_eq!(find("turn-begin").unwrap()["ASH_TURN"], "1");
    let states: Vec<&str> = story.iter().filter_map(|e| e.get("TO").map(String::as_str)).collect();
    assert_eq!(states, ["active", "paused", "active", "error", "ended"]);
    let killed = find("killed").unwrap();
    let event = ash_observe::events::of_reason("signal");
    assert_eq!((killed["MESSAGE_ID"].as_str(), killed["PRIORITY"].as_str()), (event.id, "4"), "{killed:?}");
    assert_eq!(killed["ASH_TURN"], "2");
    daemon.stop();
}
