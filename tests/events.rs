//! The events that need an operator's attention, of the processes beside ashd: each is one JSON
//! object on stderr with its `MESSAGE_ID` and `ASH_EVENT`, reported once however often it occurs.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ash_observe::events::{self, Event, Severity};
use common::{Daemon, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// All records of this event in the log, once there is one. Each has the fields of the table.
fn records(log: &Path, event: &Event) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(log).unwrap();
        // The last line may be incomplete; ashd's log also contains its stdout.
        let whole = text[..text.rfind('\n').map_or(0, |end| end + 1)].lines().filter(|line| line.starts_with('{'));
        let lines = whole.map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line}")));
        let found: Vec<Value> = lines.filter(|line| line["MESSAGE_ID"] == event.id).collect();
        if !found.is_empty() {
            let level = if event.severity == Severity::Error { "ERROR" } else { "WARN" };
            for record in &found {
                assert_eq!((&record["ASH_EVENT"], &record["level"]), (&json!(event.name), &json!(level)), "{record}");
            }
            return found;
        }
        assert!(start.elapsed() < SOON, "no {} in\n{text}", event.name);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn once(log: &Path, event: &Event) -> Value {
    let [record] = &records(log, event)[..] else { panic!("{}", std::fs::read_to_string(log).unwrap()) };
    record.clone()
}

/// A model that answers with the status in the header `x-fake`, or hangs up.
fn fake_model() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        let length = field("content-length: ").parse().unwrap_or(0);
        reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
        let status = field("x-fake: ");
        if status == "hang up" {
            return Ok(());
        }
        write!(stream, "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}")?;
    }
}

/// A gateway that serves one session, for a model at a URL.
struct Gateway {
    process: Child,
    dir: tempfile::TempDir,
    session: SocketAddr,
}

impl Gateway {
    fn start(upstream: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(ash_testkit::program("ash-gateway"));
        command.args(["--client-user", "nobody", "--user", "nobody", "--listen", "127.0.0.1:0", "--token", "tok"]);
        command.arg("--run-dir").arg(dir.path()).args(["--upstream", &format!("http://{upstream}")]);
        command.env_clear().env("ANTHROPIC_API_KEY", "sk-ant-api03-planted").stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let session = said.trim().rsplit(' ').next().unwrap().parse().unwrap_or_else(|why| panic!("{why}: {said:?}"));
        Self { process, dir, session }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The status of the answer to a request of the session's claude.
    fn ask(&self, fake: &str) -> u16 {
        let mut stream = TcpStream::connect(self.session).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: tok\r\ncontent-length: 2\r\nconnection: close";
        write!(stream, "{head}\r\nx-fake: {fake}\r\n\r\n{{}}").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_refused_key_a_limited_rate_and_a_model_that_hangs_up_are_said_once_each() {
    let gateway = Gateway::start(fake_model());
    let nobody = uuid::Uuid::nil().to_string();
    assert_eq!(gateway.ask("200"), 200);
    for (fake, status) in [("401", 401), ("403", 403), ("401", 401), ("429", 429), ("429", 429)] {
        assert_eq!(gateway.ask(fake), status);
    }
    // 502, which claude treats as a temporary fault.
    assert_eq!([gateway.ask("hang up"), gateway.ask("hang up")], [502, 502]);
    let refused = once(&gateway.log(), &events::KEY_REFUSED);
    assert_eq!((&refused["status"], &refused["ASH_SESSION"]), (&json!(401), &json!(nobody)), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("the gateway's key"), "{refused}");
    let limited = once(&gateway.log(), &events::RATE_LIMITED);
    assert_eq!((&limited["status"], &limited["ASH_SESSION"]), (&json!(429), &json!(nobody)), "{limited}");
    let away = once(&gateway.log(), &events::UPSTREAM_AWAY);
    assert_eq!(away["message"], "the model closed the connection before it answered", "{away}");
    let all = std::fs::read_to_string(gateway.log()).unwrap();
    assert!(!all.contains("planted"), "{all}");
}

#[test]
fn a_model_that_cannot_be_reached_is_said_once() {
    // Bound and closed again: nothing listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::start(nowhere);
    assert_eq!([gateway.ask("200"), gateway.ask("200")], [502, 502]);
    let away = once(&gateway.log(), &events::UPSTREAM_AWAY);
    assert_eq!(away["message"], "the model cannot be reached", "{away}");
    assert!(away["cause"].as_str().unwrap().contains("refused"), "{away}");
    assert_eq!(away["upstream"], format!("http://{nowhere}"), "{away}");
}

/// The companion of this name, and its keeper, which restarts it after a crash.
fn processes(daemon: &Daemon, name: &str) -> [Pid; 2] {
    let file = daemon.run().join(format!("{name}.keeper"));
    let keeper: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    [keeper, children.trim().parse().unwrap()].map(Pid::from_raw)
}

#[tokio::test]
async fn a_launcher_and_a_gateway_that_do_not_answer_are_said_once_each() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let log = daemon.dir.join("ashd-1.log");
    let ids = [api.session("a").await, api.session("a").await];
    let paths = ids.each_ref().map(|id| format!("/api/sessions/{id}/limits"));
    let change = |pids: u64| {
        let [one, two] = paths.each_ref().map(|path| api.call("PATCH", path, Some(json!({"pids": pids}))));
        futures_util::future::join(one, two)
    };
    let [_, launcher] = processes(&daemon, "launcher");
    kill(launcher, Signal::SIGSTOP).unwrap();
    let (one, two) = change(100).await;
    kill(launcher, Signal::SIGCONT).unwrap();
    assert_eq!((one.status, two.status), (500, 500), "{} {}", one.text, two.text);
    // Log lines of a request name its session.
    let text = std::fs::read_to_string(&log).unwrap();
    let failed: Vec<&str> = text.lines().filter(|line| line.contains("request to a session failed")).collect();
    assert_eq!(failed.len(), 2, "{text}");
    for id in &ids {
        let mut own = failed.iter().filter(|line| line.contains(&format!("\"ASH_SESSION\":\"{id}\"")));
        assert!(own.next().is_some_and(|line| line.contains("\"ASH_TENANT\":\"default\"")), "{failed:?}");
    }
    let lost = once(&log, &events::LAUNCHER_LOST);
    assert!(lost["error"].as_str().unwrap().contains("no answer to set limits within 10 s"), "{lost}");
    let (one, two) = change(101).await;
    assert_eq!((one.status, two.status), (200, 200), "{} {}", one.text, two.text);
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(text.matches("\"launcher-back\"").count(), 1, "{text}");

    // Both are gone, and nothing restarts them.
    for process in ["launcher", "gateway"].into_iter().flat_map(|name| processes(&daemon, name)) {
        kill(process, Signal::SIGKILL).unwrap();
    }
    let (one, two) = change(102).await;
    assert_eq!((one.status, two.status), (503, 503), "{} {}", one.text, two.text);
    let [_, again] = &records(&log, &events::LAUNCHER_LOST)[..] else { panic!("{}", daemon.logs()) };
    assert!(again["path"].as_str().unwrap().ends_with("launcher.sock"), "{again}");
    let lost = once(&log, &events::GATEWAY_LOST);
    assert!(lost["path"].as_str().unwrap().ends_with("gateway.sock"), "{lost}");
    // ashd keeps trying, and does not report it again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    once(&log, &events::GATEWAY_LOST);

    // The next start of ashd starts both, and their work continues.
    daemon.restart();
    let limits = daemon.api().call("PATCH", &paths[0], Some(json!({"pids": 103}))).await.expect(200);
    assert_eq!(limits["limits"]["pids"]["value"], 103);
}
