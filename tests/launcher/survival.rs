//! Launchers are replaced; sandboxes stay until they are ended.

use std::time::Duration;

use ash_model::Limits;
use ash_protocol::init::Exit;
use ashd::sandbox::LauncherError;
use nix::sys::signal::Signal;
use uuid::Uuid;

use crate::host::{Host, patient, request, run, wait_for};

#[tokio::test]
async fn a_killed_launcher_is_replaced_and_nothing_is_lost() {
    let mut host = Host::start("survive");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let dead = host.sandbox(&launcher, Limits::default()).await;
    let mut events = sandbox.take_events().expect("events");
    host.signal(Signal::SIGKILL);
    assert!(!host.ended());
    assert!(matches!(launcher.list().await, Err(LauncherError::Unreachable { .. })));
    let (status, _) = run(&sandbox, &mut events, 1, "exit 7").await;
    assert_eq!(status, Exit::Code(7), "the sandbox does not need the launcher");
    sandbox.freeze().await.expect("nor does a pause");
    sandbox.thaw().await.expect("or its end");
    // It dies while no launcher runs; its process id may be reused afterwards.
    let pid = nix::unistd::Pid::from_raw(dead.info.pid);
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("killed");
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    wait_for("its end, which takes a moment on a busy machine", || stat().is_empty() || stat().contains(") Z "));
    // A creation that was interrupted before its record was complete.
    let torn = Uuid::now_v7();
    std::fs::create_dir(host.run_dir().join("sandboxes").join(torn.to_string())).expect("made");

    host.launch();
    let listed = launcher.list().await.expect("the same client finds the new launcher");
    let mut found: Vec<(Uuid, bool)> = listed.iter().map(|info| (info.id, info.pid != 0)).collect();
    found.sort_unstable();
    let mut want = vec![(sandbox.id(), true), (dead.id(), false)];
    want.sort_unstable();
    assert_eq!(found, want);
    assert!(!host.run_dir().join("sandboxes").join(torn.to_string()).exists());
    let again = launcher.attach(sandbox.id()).await.expect("attached");
    assert_eq!(again.info.pid, sandbox.info.pid);
    let known = again.stat().await.expect("stat");
    assert_eq!((known[0].child, known[0].exited), (1, Some(Exit::Code(7))));
    let other = host.sandbox(&launcher, Limits::default()).await;
    assert!(other.info.uid != sandbox.info.uid && other.info.uid != dead.info.uid, "uids in use are known again");
    for id in [sandbox.id(), dead.id(), other.id()] {
        launcher.destroy(id).await.expect("destroyed");
    }
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[tokio::test]
async fn hup_reads_the_ceiling_again_and_loses_nothing() {
    let host = Host::start("hup");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    std::fs::write(host.config(), "[ceiling]\npids = nonsense\n").expect("written");
    host.signal(Signal::SIGHUP);
    wait_for("the complaint", || host.log().contains("settings not reloaded"));
    std::fs::write(host.config(), "[ceiling]\npids = 100\n").expect("written");
    host.signal(Signal::SIGHUP);
    wait_for("the new settings", || host.log().contains("settings reloaded"));
    let refused = launcher.create(request(host.session(), Limits::default())).await.expect_err("512 > 100");
    assert!(refused.to_string().contains("ceiling 100"), "{refused}");
    sandbox.stat().await.expect("alive");
    launcher.attach(sandbox.id()).await.expect("known");
}

#[tokio::test]
async fn term_and_shutdown_end_everything() {
    let mut host = Host::start("term");
    let launcher = host.client().await;
    for _ in 0..3 {
        host.sandbox(&launcher, Limits::default()).await;
    }
    launcher.shutdown().await.expect("all are gone");
    assert!(host.ended());
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    host.launch();
    let frozen = host.sandbox(&host.client().await, Limits::default()).await;
    frozen.freeze().await.expect("frozen");
    host.signal(Signal::SIGTERM);
    assert!(host.ended());
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[test]
fn a_term_in_the_middle_of_the_start_leaves_nothing() {
    let mut host = Host::start("early");
    host.signal(Signal::SIGTERM);
    assert!(host.ended());
    for ms in 0..30 {
        let mut early = host.command().stderr(std::process::Stdio::null()).spawn().expect("it starts");
        std::thread::sleep(patient(Duration::from_millis(ms)));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(early.id()).expect("a pid"));
        nix::sys::signal::kill(pid, Signal::SIGTERM).expect("signalled");
        early.wait().expect("reaped");
        assert_eq!(host.groups(), Vec::<std::path::PathBuf>::new(), "after {ms} ms");
        assert!(!host.run_dir().join("launcher.sock").exists(), "after {ms} ms");
    }
}

#[tokio::test]
async fn two_launchers_do_not_share_a_run_directory() {
    let host = Host::start("twice");
    let second = host.command().output().expect("it starts");
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("another launcher is running"), "{text}");
    host.client().await.list().await.expect("the first one serves on");
}

#[tokio::test]
async fn it_keeps_few_capabilities_and_no_stray_descriptor() {
    let host = Host::start("privileges");
    let launcher = host.client().await;
    host.sandbox(&launcher, Limits::default()).await;
    let status = status_at_rest(&host);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned();
    let bits = |name: &str| u64::from_str_radix(&field(name), 16).expect("hex");
    // CHOWN 0, DAC_READ_SEARCH 2, KILL 5, SETGID 6, SETUID 7, SYS_ADMIN 21, SYS_NICE 23
    // (capabilities(7)).
    let keep = [0, 2, 5, 6, 7, 21, 23].iter().fold(0, |all, bit| all | 1_u64 << bit);
    assert_eq!(bits("CapEff:"), keep);
    // Permitted but not effective: DAC_OVERRIDE 1 for the end, SYS_PTRACE 19 for the fork that
    // looks for held files.
    let permitted = keep | 1 << 1 | 1 << 19;
    assert_eq!(bits("CapPrm:"), permitted);
    // What a program that takes over in place starts with: no more than this one has.
    assert_eq!((bits("CapBnd:"), bits("CapInh:"), bits("CapAmb:")), (permitted, 0, 0));
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("Threads:"), "1");
    assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", host.pid())).expect("cwd"), std::path::Path::new("/"));
}

/// /proc/<pid>/status of the sleeping launcher. After an answer it prepares the next sandbox, and
/// for single steps of that it raises a capability or has another effective uid.
fn status_at_rest(host: &Host) -> String {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).expect("status");
        if status.lines().any(|line| line.starts_with("State:\tS")) {
            return status;
        }
        assert!(std::time::Instant::now() < until, "the launcher does not come to rest: {status}");
    }
}
