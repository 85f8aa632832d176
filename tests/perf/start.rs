//! From the request to the end of `/bin/true`: our sandbox with every layer and limits, and bwrap with every namespace
//! and nothing else, in turns.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ashd::launcher::init_protocol::{Exit, SpawnSpec};
use ashd::model::Limits;
use ashd::sandbox::{Launcher, Sandbox};

use crate::figures::{Figure, Form, Samples};
use crate::host::{self, Events, Host};

/// Milliseconds on a host with cgroup v1 controllers, where joining a cgroup waits for the kernel (issue 3).
const HYBRID_MS: f64 = 20.0;
/// Milliseconds from a sandbox that is there to the end of a command in it (issue 3).
const PARKED_MS: f64 = 2.0;
/// Between two starts, so that none finds the work of the one before still under way.
const PAUSE: Duration = Duration::from_millis(20);

pub async fn measure(form: Form) -> Vec<Figure> {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start("perf");
    let launcher = host.client().await;
    let rounds = form.rounds(20, 100);
    let mut hybrid = false;
    let (mut ours, mut created, mut parked, mut theirs, mut bare) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..rounds + 2 {
        let (whole, create, next, v1) = one(&host, &launcher, dir.path()).await;
        hybrid = v1;
        tokio::time::sleep(PAUSE).await;
        let bwrap = run(&mut bwrap(dir.path()));
        tokio::time::sleep(PAUSE).await;
        let plain = run(&mut Command::new("/bin/true"));
        // The first ones find nothing cached.
        if round >= 2 {
            ours.push(whole);
            created.push(create);
            parked.push(next);
            theirs.push(bwrap);
            bare.push(plain);
        }
    }
    launcher.shutdown().await.expect("the launcher ends");
    drop(launcher);
    drop(host);

    let theirs = Samples::of(theirs);
    let bound = if hybrid { HYBRID_MS } else { theirs.at(0.5) };
    vec![
        Figure::times("fork and exec of /bin/true", &Samples::of(bare)),
        Figure::times("bwrap: start to end of /bin/true", &theirs),
        Figure::times("sandbox: request to end of /bin/true", &Samples::of(ours)).at_most(bound),
        Figure::times("sandbox: request to ready", &Samples::of(created)),
        Figure::times("in a sandbox that is ready: request to end of /bin/true", &Samples::of(parked))
            .at_most(PARKED_MS),
    ]
}

/// A whole start, the part of it until the sandbox was ready, a second command in it, and whether it has v1 cgroups.
async fn one(host: &Host, launcher: &Launcher, dir: &Path) -> (Duration, Duration, Duration, bool) {
    let id = host.session();
    let start = Instant::now();
    let sandbox = launcher.create(host::request(id, Limits::default())).await.expect("a sandbox");
    let created = start.elapsed();
    let mut events = sandbox.take_events().expect("taken once");
    command(&sandbox, &mut events, 1, dir).await;
    let whole = start.elapsed();
    tokio::time::sleep(PAUSE).await;
    let start = Instant::now();
    command(&sandbox, &mut events, 2, dir).await;
    let next = start.elapsed();
    launcher.destroy(id).await.expect("gone");
    tokio::time::sleep(PAUSE).await;
    (whole, created, next, sandbox.info.cgroup.v1)
}

async fn command(sandbox: &Sandbox, events: &mut Events, child: u32, dir: &Path) {
    let (out, err) = host::output(&dir.join("output"));
    let spec = SpawnSpec { argv: vec!["/bin/true".into()], env: vec![], cwd: "/workspace".into(), stdin: false };
    sandbox.spawn(child, &spec, out, err).await.expect("spawned");
    assert_eq!(host::exit_of(events, child).await, Exit::Code(0));
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
