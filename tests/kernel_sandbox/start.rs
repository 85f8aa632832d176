//! A sandbox starts with every layer; a failed start leaves nothing.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use ash_kernel::pidfd;
use ash_launcher::policy::{Floor, Policies};
use ash_protocol::init::Exit;

use crate::sandbox::{DISK_UID, Ground, Sandbox};

pub const TESTS: &[crate::Test] = &[
    ("start::true_runs_with_every_layer", true_runs_with_every_layer),
    ("start::files_belong_to_the_daemon_on_disk", files_belong_to_the_daemon_on_disk),
    ("start::a_failed_step_is_named_and_leaves_nothing", a_failed_step_is_named_and_leaves_nothing),
    ("start::a_floor_above_the_host_refuses", a_floor_above_the_host_refuses),
    ("start::the_real_claude_runs", the_real_claude_runs),
    ("start::set_up_times", set_up_times),
];

fn true_runs_with_every_layer() {
    let mut sandbox = Sandbox::new();
    let ended = sandbox.run(1, &["/bin/true"]);
    assert_eq!((ended.exit, ended.out.as_str(), ended.err.as_str()), (Exit::Code(0), "", ""));
    let pid = sandbox.started.pid;
    // init itself, seen from the host.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = sandbox.ground.uid + 1;
    for line in [
        "Name:\tash-init".to_owned(),
        format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
        // CAP_KILL 5, CAP_SETGID 6, CAP_SETUID 7.
        "CapEff:\t00000000000000e0".to_owned(),
        "CapBnd:\t0000000000000000".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
        "Seccomp:\t2".to_owned(),
    ] {
        assert!(status.contains(&line), "{line} is not in\n{status}");
    }
    for ns in ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        let inode = |who: String| std::fs::metadata(format!("/proc/{who}/ns/{ns}")).unwrap().ino();
        assert_ne!(inode(pid.to_string()), inode("self".into()), "{ns} namespace is the host's");
    }
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|e| std::fs::read_link(e.unwrap().path()).ok())
        .collect();
    let sockets = open.iter().filter(|path| path.to_string_lossy().starts_with("socket:")).count();
    // The listening socket, the listener on loopback, the one connection.
    assert_eq!(sockets, 3, "{open:?}");
}

fn files_belong_to_the_daemon_on_disk() {
    let mut sandbox = Sandbox::new();
    let ended =
        sandbox.sh(1, "umask 077; echo hello > a.txt; mkdir d; echo x > ~/b; stat -c '%u %g' a.txt; rm -f gone");
    assert_eq!(ended.out, "1000 1000\n", "{}", ended.err);
    for path in ["workspace/a.txt", "workspace/d", "home/b"] {
        let meta = std::fs::metadata(sandbox.ground.path(path)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (DISK_UID, DISK_UID), "{path}");
    }
    assert_eq!(std::fs::read_to_string(sandbox.ground.path("workspace/a.txt")).unwrap(), "hello\n");
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn children() -> String {
    let pid = std::process::id();
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
}

fn a_failed_step_is_named_and_leaves_nothing() {
    let ground = Ground::new();
    let policies = Policies::compile().unwrap();
    let before = (mounts(), descriptors(), children());
    // Two ids of the sandbox mapped to one id of the host: the kernel refuses the map.
    let failure = ground.start_with(&policies, ground.uid + 1).unwrap_err();
    assert_eq!(failure.step, "write id maps", "{failure}");
    std::fs::remove_file(ground.path("init.sock")).unwrap();
    // A file in place of a directory: fails in the child, at move_mount.
    std::fs::remove_dir(ground.path("home")).unwrap();
    std::fs::write(ground.path("home"), "").unwrap();
    let failure = ground.start(&policies).unwrap_err();
    assert_eq!(failure.step, "mount home", "{failure}");
    assert!(failure.message.contains("os error 22"), "{failure}");
    assert_eq!((mounts(), descriptors(), children()), before);
    assert!(!ground.leaf.as_ref().unwrap().populated().unwrap());
}

fn a_floor_above_the_host_refuses() {
    let mut ground = Ground::new();
    ground.floor = Floor { landlock_abi: 99 };
    let failure = ground.start(&Policies::compile().unwrap()).unwrap_err();
    assert_eq!(failure.step, "check floor");
    assert!(failure.message.contains("ABI 99") && failure.hint.is_some(), "{failure}");
}

fn the_real_claude_runs() {
    let mut ground = Ground::new();
    ground.claude = crate::programs::real_claude();
    let mut sandbox = Sandbox::on(ground);
    let ended = sandbox.run(1, &["/opt/claude/claude", "--version"]);
    assert_eq!(ended.exit, Exit::Code(0), "{}", ended.err);
    assert!(ended.out.contains("(Claude Code)"), "{ended:?}");
    let ended = sandbox.sh(2, "echo > /opt/claude/claude");
    assert!(ended.err.contains("Read-only") || ended.err.contains("denied"), "{ended:?}");
}

/// Asserts nothing about speed, because the machine is shared; it prints the numbers of
/// docs/sandbox.md.
fn set_up_times() {
    let policies = Policies::compile().unwrap();
    let mut totals = Vec::new();
    let mut last = Vec::new();
    let mut memory = 0;
    for _ in 0..20 {
        let ground = Ground::new();
        let began = std::time::Instant::now();
        let (started, _) = ground.start(&policies).unwrap_or_else(|failure| panic!("{failure}"));
        totals.push(began.elapsed().as_micros());
        last = started.steps;
        memory = pss(started.pid);
        pidfd::kill_and_reap(started.pidfd.as_fd());
    }
    totals.sort_unstable();
    println!("set-up of 20: min {} us, median {} us, max {} us", totals[0], totals[10], totals[19]);
    for (step, micros) in &last {
        println!("  {step:<24} {micros:>7} us");
    }
    println!("memory of init: {memory} KiB (PSS)");
    assert!(memory > 0 && memory < 1536, "init takes {memory} KiB");
    assert!(last.len() > 20, "every step is timed: {last:?}");
}

/// Proportional set size in KiB.
fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
