//! SIGUSR2: a new program in the same process, while sandboxes run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ash_model::Limits;
use ash_protocol::init::Exit;
use nix::sys::signal::Signal;

use crate::host::{Host, exit_of, output, patient, run, spec, wait_for};

fn count(host: &Host, text: &str) -> usize {
    host.log().matches(text).count()
}

/// Triggers the exec, and waits until it serves.
fn again(host: &Host) {
    let before = count(host, "ready");
    host.signal(Signal::SIGUSR2);
    wait_for("the new program", || count(host, "ready") > before);
}

fn descriptors(host: &Host) -> Vec<PathBuf> {
    let all = std::fs::read_dir(format!("/proc/{}/fd", host.pid())).expect("descriptors").flatten();
    let mut all: Vec<PathBuf> = all.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
    // Namespaces that map mounts are created again when they are needed.
    all.retain(|target| !target.to_string_lossy().starts_with("user:["));
    all.sort();
    all
}

fn zombies(host: &Host) -> usize {
    let children = format!("/proc/{0}/task/{0}/children", host.pid());
    let children = std::fs::read_to_string(children).expect("children");
    let state = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    children.split_whitespace().filter(|pid| state(pid).contains(") Z ")).count()
}

#[tokio::test]
async fn twenty_times_anew_and_nobody_notices() {
    let host = Host::start("again");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    let script = "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); echo $n; sleep 0.01; done";
    sandbox.spawn(1, &spec(script), out, err).await.expect("spawned");
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).expect("status");
    // While the answer is sent and the next sandbox is prepared, there is temporarily one pidfd
    // more.
    let pidfds = |all: &[PathBuf]| all.iter().filter(|target| target.ends_with("anon_inode:[pidfd]")).count();
    let mut before = descriptors(&host);
    wait_for("one pidfd, the sandbox's", || {
        before = descriptors(&host);
        pidfds(&before) == 1
    });
    let pid = host.pid();
    let lines = || std::fs::read_to_string(file.path()).expect("output").lines().count();
    for round in 0..20 {
        let written = lines();
        again(&host);
        // The open connection continues, and its requests are executed.
        launcher.attach(sandbox.id()).await.expect("known");
        if round % 5 == 0 {
            let other = host.sandbox(&launcher, Limits::default()).await;
            let mut others = other.take_events().expect("events");
            assert_eq!(run(&other, &mut others, 1, "echo new; exit 4").await, (Exit::Code(4), "new\n".into()));
            // A child of the previous program: only its parent can reap it.
            again(&host);
            launcher.destroy(other.id()).await.expect("destroyed");
        }
        wait_for("more of the payload's output", || lines() > written);
    }
    assert_eq!(host.pid(), pid);
    // Descriptors of an answer are closed after it was sent, on a busy machine later than the
    // reader continues.
    let soon = Instant::now();
    while descriptors(&host) != before && soon.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(descriptors(&host), before, "descriptors leak, or are lost");
    assert_eq!(zombies(&host), 0);
    let now = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let caps = |text: &str| text.lines().filter(|l| l.starts_with("Cap")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(caps(&now), caps(&status), "the same capabilities as before");
    // A process that died during the exec is found dead.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sandbox.info.pid), Signal::SIGKILL).expect("killed");
    again(&host);
    // A killed process is not dead yet: the kernel first ends everything in its namespace.
    let start = Instant::now();
    let listed = loop {
        let all = launcher.list().await.expect("listed");
        let listed: Vec<_> = all.iter().map(|info| (info.id, info.pid)).collect();
        if listed == [(sandbox.id(), 0)] || start.elapsed() > patient(Duration::from_secs(20)) {
            break listed;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(listed, [(sandbox.id(), 0)]);
    assert_eq!(zombies(&host), 0);
    launcher.destroy(sandbox.id()).await.expect("destroyed");
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[tokio::test]
async fn requests_that_come_meanwhile_are_answered() {
    let host = Host::start("meanwhile");
    let launcher = host.client().await;
    let work = async {
        let each = (0..4).map(|_| async {
            // Until the launcher was replaced three times: how often it is disturbed depends on the machine.
            let mut round = 0;
            while round < 6 || count(&host, "took over from") < 3 {
                round += 1;
                assert!(round < 1000, "it is never replaced: {}", host.log());
                let sandbox = host.sandbox(&launcher, Limits::default()).await;
                let mut events = sandbox.take_events().expect("events");
                let (out, err) = output(Path::new("/dev/null"));
                sandbox.spawn(1, &spec("exit 3"), out, err).await.expect("spawned");
                assert_eq!(exit_of(&mut events, 1).await, Exit::Code(3));
                launcher.destroy(sandbox.id()).await.expect("destroyed");
            }
        });
        futures_util::future::join_all(each).await;
    };
    let disturb = async {
        loop {
            host.signal(Signal::SIGUSR2);
            // Not so often that it never serves.
            tokio::time::sleep(patient(Duration::from_millis(40))).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = disturb => {}
    }
    // The last signal may still be pending.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        launcher.list().await.expect("listed");
    }
    assert!(count(&host, "took over from") >= 3, "{}", host.log());
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[tokio::test]
async fn an_upgrade_is_taken_and_a_broken_one_is_not() {
    let dir = tempfile::Builder::new().prefix("ashd-upgrade-").tempdir().expect("directory");
    let program = dir.path().join("ash-launcher");
    // As dpkg does: a new file replaces the old one by rename.
    let install = |from: &Path| {
        let new = dir.path().join("new");
        std::fs::copy(from, &new).expect("copied");
        std::fs::rename(&new, &program).expect("renamed");
    };
    let real = ash_testkit::program("ash-launcher");
    install(&real);
    let host = Host::start_program("upgrade", &program);
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    install(Path::new("/bin/false"));
    host.signal(Signal::SIGUSR2);
    wait_for("the refusal", || count(&host, "the program was not replaced") == 1);
    launcher.attach(sandbox.id()).await.expect("the old program serves on");
    install(&real);
    std::fs::write(host.config(), "[ceiling]\npids = nonsense\n").expect("written");
    host.signal(Signal::SIGUSR2);
    wait_for("the refusal of the settings", || count(&host, "the program was not replaced") == 2);
    assert!(host.log().contains("launcher.toml"), "{}", host.log());
    std::fs::write(host.config(), "[ceiling]\npids = 1000\n").expect("written");
    again(&host);
    let exe = std::fs::read_link(format!("/proc/{}/exe", host.pid())).expect("exe");
    assert_eq!(exe, program, "the program that lies there now");
    launcher.attach(sandbox.id()).await.expect("known to the new program");
    launcher.destroy(sandbox.id()).await.expect("destroyed");
}
