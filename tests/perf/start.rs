//! From the request to `/bin/true`: a sandbox with every layer and limits, and bwrap with every
//! namespace and nothing else, in turns. init reports that a command was executed; of bwrap only
//! the end is visible.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ash_model::Limits;
use ash_protocol::init::{Exit, SpawnSpec};
use ashd::sandbox::{Launcher, Sandbox};

use crate::figures::{Figure, Form, Samples};
use crate::host::{self, Host};

/// Milliseconds to exec on a host with cgroup v1 controllers, where joining a cgroup waits for the
/// kernel.
const HYBRID_MS: f64 = 20.0;
/// Milliseconds to exec in an existing sandbox.
const PARKED_MS: f64 = 2.0;
/// Between two starts, so that work of the previous one does not interfere.
const PAUSE: Duration = Duration::from_millis(20);

pub async fn measure(form: Form) -> Vec<Figure> {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start("perf");
    let launcher = host.client().await;
    // Like a parked one, it keeps the tenant's groups, which the first sandbox of a tenant creates.
    let beside = launcher.create(host::request(host.session(), Limits::default())).await.expect("a sandbox");
    let rounds = form.rounds(20, 100);
    let mut hybrid = false;
    let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let mut steps = BTreeMap::new();
    for round in 0..rounds + 2 {
        let (start, made) = one(&host, &launcher, dir.path()).await;
        hybrid = made.info.cgroup.v1;
        tokio::time::sleep(PAUSE).await;
        let bwrap = run(&mut bwrap(dir.path()));
        tokio::time::sleep(PAUSE).await;
        let plain = run(&mut Command::new("/bin/true"));
        // The first ones find nothing cached.
        if round >= 2 {
            ours.push(start);
            for (at, (name, us)) in made.info.steps.iter().enumerate() {
                steps.entry((at, name.clone())).or_insert_with(Vec::new).push(Duration::from_micros(*us));
            }
            theirs.push(bwrap);
            bare.push(plain);
        }
    }
    launcher.destroy(beside.id()).await.expect("gone");
    launcher.shutdown().await.expect("the launcher ends");
    drop(launcher);
    drop(host);

    eprintln!(
        "steps of the set-up, p50 in microseconds; those behind \"wait for init\" are the child's, beside the launcher's:"
    );
    for ((_, name), took) in steps {
        eprint!("  {name} {:.0}", Samples::of(took).at(0.5) * 1000.0);
    }
    eprintln!();
    let theirs = Samples::of(theirs);
    let bound = if hybrid { HYBRID_MS } else { theirs.at(0.5) };
    let of = |pick: fn(&Start) -> Duration| Samples::of(ours.iter().map(pick));
    vec![
        Figure::times("fork and exec of /bin/true, to its end", &Samples::of(bare)),
        Figure::times("bwrap: start to the end of /bin/true", &theirs),
        Figure::times("sandbox: request to the end of /bin/true", &of(|start| start.ended)),
        Figure::times("sandbox: request to exec of /bin/true", &of(|start| start.executed)).at_most(bound),
        Figure::times("sandbox: request to ready", &of(|start| start.ready)),
        Figure::times("in a sandbox that is ready: request to exec", &of(|start| start.parked)).at_most(PARKED_MS),
    ]
}

/// Since the request for the sandbox; `parked`: since the request for a second command in it.
struct Start {
    ready: Duration,
    executed: Duration,
    ended: Duration,
    parked: Duration,
}

/// One sandbox from its request to its end. Returns its times.
async fn one(host: &Host, launcher: &Launcher, dir: &Path) -> (Start, Sandbox) {
    let id = host.session();
    let start = Instant::now();
    let sandbox = launcher.create(host::request(id, Limits::default())).await.expect("a sandbox");
    let ready = start.elapsed();
    let mut events = sandbox.take_events().expect("taken once");
    spawn(&sandbox, 1, dir).await;
    let executed = start.elapsed();
    assert_eq!(host::exit_of(&mut events, 1).await, Exit::Code(0));
    let ended = start.elapsed();
    tokio::time::sleep(PAUSE).await;
    let start = Instant::now();
    spawn(&sandbox, 2, dir).await;
    let parked = start.elapsed();
    assert_eq!(host::exit_of(&mut events, 2).await, Exit::Code(0));
    launcher.destroy(id).await.expect("gone");
    tokio::time::sleep(PAUSE).await;
    (Start { ready, executed, ended, parked }, sandbox)
}

/// Returns when the command was executed.
async fn spawn(sandbox: &Sandbox, child: u32, dir: &Path) {
    let (out, err) = host::output(&dir.join("output"));
    let spec = SpawnSpec { argv: vec!["/bin/true".into()], ..host::spec("") };
    sandbox.spawn(child, &spec, out, err).await.expect("spawned");
}

fn bwrap(dir: &Path) -> Command {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--die-with-parent"]);
    command.args(["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin"]);
    command.args(["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--ro-bind", "/etc", "/etc"]);
    command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/home/agent"]);
    command.arg("--bind").arg(dir).args(["/workspace", "--chdir", "/workspace", "/bin/true"]);
    command
}

fn run(command: &mut Command) -> Duration {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let took = start.elapsed();
    assert!(status.expect("is it installed? scripts/perf does that").success(), "{command:?}");
    took
}
