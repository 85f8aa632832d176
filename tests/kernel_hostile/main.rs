//! A hostile payload under the real launcher: every attempt of `program/` is refused inside, the
//! same attempts succeed outside, and exhausting resources affects only its own sandbox.
//!
//! ```text
//!   sandbox A   hostile inside          tries everything
//!               hostile victim SIBLING  another command of the same session
//!   sandbox B   hostile victim FOREIGN  another session, of another tenant
//!   host        hostile outside (root)  the control run, and victims of its own
//! ```
#![allow(clippy::unwrap_used)]

mod fairness;
mod fuzz;
#[allow(dead_code)]
#[path = "../launcher/host.rs"]
mod host;
mod quotas;
mod resources;
mod shared;
mod sockets;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ash_model::Limits;
use ash_protocol::init::{Exit, SpawnSpec};
use ashd::sandbox::Sandbox;
use host::{CLIENT, Events, Host, exit_of, output, request, wait_for};

/// Minimum number of attempts; fewer mean that the payload stopped early.
const AT_LEAST: usize = 300;

/// The payload, which `cargo build --examples` puts beside the other programs.
fn program() -> PathBuf {
    let path = ash_testkit::program("ash-launcher").with_file_name("examples").join("hostile");
    assert!(path.is_file(), "{} is missing: cargo build --example hostile", path.display());
    path
}

fn arm(workspace: &Path) {
    let path = workspace.join("hostile");
    std::fs::copy(program(), &path).expect("copied");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    chown(&path, Some(CLIENT), Some(CLIENT)).expect("chown");
}

fn payload(arguments: &[&str], env: &BTreeMap<String, String>) -> SpawnSpec {
    let argv = std::iter::once("/workspace/hostile").chain(arguments.iter().copied()).map(str::to_owned).collect();
    let env = env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    SpawnSpec { argv, env, cwd: "/workspace".into(), stdin: false, within_ms: None, leaves_share: false }
}

/// Starts a victim in a sandbox and waits until it is ready. Returns its process id inside.
async fn victim(sandbox: &Sandbox, child: u32, name: &str, env: &BTreeMap<String, String>) -> i32 {
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    sandbox.spawn(child, &payload(&["victim", name], env), out, err).await.expect("spawned");
    let said = || std::fs::read_to_string(file.path()).unwrap_or_default();
    wait_for("the victim", || {
        let said = said();
        assert!(!said.contains("panicked"), "{said}");
        said.contains("ready")
    });
    let children = sandbox.stat().await.expect("stat");
    children.iter().find(|stat| stat.child == child).expect("the victim").pid
}

/// A victim on the host, killed with its guard.
struct HostVictim(Child);

impl HostVictim {
    fn start(name: &str, env: &BTreeMap<String, String>) -> Self {
        let mut child = Command::new(program())
            .args(["victim", name])
            .env_clear()
            .envs(env)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a victim");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for HostVictim {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Line {
    group: String,
    name: String,
    expected: Vec<String>,
    outcome: String,
    control: String,
}

fn lines(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [group, name, expected, outcome, control] = fields[..] else { panic!("not a line of the payload: {line}") };
        Line {
            group: group.into(),
            name: name.into(),
            expected: expected.split(' ').map(str::to_owned).collect(),
            outcome: outcome.into(),
            control: control.into(),
        }
    };
    text.lines().map(line).collect()
}

fn env(pairs: &[(&str, String)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn in_words(outcome: &str) -> String {
    match outcome.parse::<i32>() {
        Ok(0) => "DONE".to_owned(),
        Ok(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        Err(_) => outcome.to_owned(),
    }
}

#[tokio::test]
async fn every_attempt_is_refused_inside_and_succeeds_outside() {
    let host = Host::start("hostile");
    let launcher = host.client().await;
    let a = host.sandbox(&launcher, Limits::default()).await;
    let mut foreign = request(host.session(), Limits::default());
    foreign.tenant = "another".parse().expect("a tenant");
    let b = launcher.create(foreign).await.unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
    for sandbox in [&a, &b] {
        arm(&host.session_dir(sandbox.id()).join("workspace"));
    }
    let secret = host.session_dir(b.id()).join("workspace/secret");
    std::fs::write(&secret, "of session B").expect("secret");

    let pid = std::process::id();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener of the host");
    let tcp = listener.local_addr().expect("address").port();
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let (sibling, other, abstract_name) = (format!("ash-s-{pid}"), format!("ash-f-{pid}"), format!("ash-h-{pid}"));
    // A victim without an environment would have nothing to read.
    let plain = env(&[("HELD", "secret".into())]);
    let offered = env(&[("H_PORT", free.to_string()), ("H_KEY", (pid % 1_000_000 + 7_000_000).to_string())]);
    let common = env(&[
        ("PATH", "/usr/bin:/bin".into()),
        ("H_PORT", offered["H_PORT"].clone()),
        ("H_KEY", offered["H_KEY"].clone()),
        ("H_TCP", tcp.to_string()),
        ("H_SECRET", secret.display().to_string()),
        ("H_RUN", host.run_dir().display().to_string()),
        ("H_HOST", host.pid().to_string()),
        ("H_SIBLING", sibling.clone()),
        ("H_FOREIGN", other.clone()),
        ("H_ABSTRACT", abstract_name.clone()),
    ]);

    victim(&b, 1, &other, &offered).await;
    let mut inside_env = common.clone();
    inside_env.insert("H_VICTIM".into(), victim(&a, 1, &sibling, &plain).await.to_string());
    inside_env.insert("H_OTHER".into(), b.info.pid.to_string());
    let mut events = a.take_events().expect("events");
    let (exit, text) = run(&a, &mut events, 2, &payload(&["inside"], &inside_env)).await;
    assert_eq!(exit, Exit::Code(0), "{text}");
    let inside = lines(&text);

    // The same attempts, as root on this host.
    let victims = [
        HostVictim::start(&sibling, &plain),
        HostVictim::start(&other, &offered),
        HostVictim::start(&abstract_name, &plain),
    ];
    let mut outside_env = common;
    outside_env.insert("H_VICTIM".into(), victims[0].0.id().to_string());
    outside_env.insert("H_OTHER".into(), victims[1].0.id().to_string());
    let control =
        Command::new(program()).arg("outside").env_clear().envs(&outside_env).output().expect("the control run");
    let cleaned = Command::new(program()).arg("clean").env_clear().envs(&outside_env).status().expect("cleaned");
    assert!(cleaned.success() && control.status.success(), "{}", String::from_utf8_lossy(&control.stderr));
    drop(victims);
    let outside: BTreeMap<String, Line> =
        lines(&String::from_utf8_lossy(&control.stdout)).into_iter().map(|line| (line.name.clone(), line)).collect();

    let (mut wrong, mut shown) = (Vec::new(), 0);
    for line in &inside {
        let without = outside.get(&line.name).map(|line| in_words(&line.outcome));
        let refused = line.expected.contains(&line.outcome);
        shown += usize::from(without.as_deref() == Some("DONE"));
        let aside = without.clone().unwrap_or_else(|| line.control.clone());
        println!("{:<10} {:<60} {:<14} outside: {aside}", line.group, line.name, in_words(&line.outcome));
        if !refused {
            let expected: Vec<String> = line.expected.iter().map(|number| in_words(number)).collect();
            wrong.push(format!("{}: {} (expected {})", line.name, in_words(&line.outcome), expected.join(", ")));
        }
        if line.control == "shown" && without.as_deref() != Some("DONE") {
            wrong.push(format!("{}: refused outside as well ({aside}), so it shows nothing", line.name));
        }
    }
    let successes = inside.iter().filter(|line| line.outcome == "0").count();
    println!("{} attempts, {successes} successes; {shown} of them succeed outside", inside.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(successes, 0);
    assert!(inside.len() >= AT_LEAST, "only {} attempts were made", inside.len());
    let names: std::collections::BTreeSet<_> = inside.iter().map(|line| &line.name).collect();
    assert_eq!(names.len(), inside.len(), "each attempt is made once");

    for sandbox in [&a, &b] {
        let children = sandbox.stat().await.expect("init answers");
        assert!(children.iter().any(|stat| stat.child == 1 && stat.exited.is_none()), "{children:?}");
        launcher.destroy(sandbox.id()).await.expect("destroyed");
    }
}

async fn run(sandbox: &Sandbox, events: &mut Events, child: u32, spec: &SpawnSpec) -> (Exit, String) {
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    sandbox.spawn(child, spec, out, err).await.expect("spawned");
    let status = exit_of(events, child).await;
    (status, std::fs::read_to_string(file.path()).expect("output"))
}
