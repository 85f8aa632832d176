//! The kernel's real cgroups, as root. These tests fail on a host without the needed hierarchies.
#![allow(clippy::unwrap_used)]

#[path = "common/patience.rs"]
mod patience;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ash_kernel::cgroup::{CgroupError, Layout, Leaf, Tree};
use ash_kernel::freeze;
use ash_model::{Limits, TenantId};
use patience::patient;
use uuid::Uuid;

/// The test's own tree, removed at the end.
struct Grove {
    tree: Tree,
}

impl Grove {
    fn plant(test: &str) -> Self {
        let name = format!("ashd-test-{test}-{}", std::process::id());
        Self { tree: Tree::prepare(&name).expect("cgroups are needed, as root") }
    }

    fn leaf(&self, limits: &Limits) -> Leaf {
        self.tree.create(&tenant(), Uuid::now_v7(), limits).expect("a leaf")
    }
}

impl Drop for Grove {
    fn drop(&mut self) {
        for (_, id) in self.tree.leaves().unwrap_or_default() {
            if let Ok(Some((_, leaf))) = self.tree.find(id) {
                leaf.remove().ok();
            }
        }
        self.tree.forget_tenant(&tenant());
        self.tree.remove();
        for dir in self.tree.root().directories() {
            assert!(!dir.exists() || std::thread::panicking(), "{} was left behind", dir.display());
        }
    }
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

/// A shell that is moved into the leaf before it does anything.
fn inside(leaf: &Leaf, script: &str) -> Child {
    let mut gated = Command::new("/bin/sh");
    gated.args(["-c", &format!("read go; {script}")]).stdin(std::process::Stdio::piped());
    let mut child = gated.stdout(std::process::Stdio::piped()).spawn().expect("/bin/sh starts");
    let pid = i32::try_from(child.id()).expect("a pid");
    leaf.attach(pid).expect("attached to v1");
    leaf.attach_unified(pid).expect("attached to v2");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"go\n").expect("released");
    child
}

fn cpu_us(leaf: &Leaf) -> u64 {
    let text = std::fs::read_to_string(leaf.paths().unified.join("cpu.stat")).expect("cpu.stat");
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).expect("usage_usec");
    line.parse().expect("a number")
}

fn value(dir: &Option<PathBuf>, file: &str) -> String {
    let dir = dir.as_ref().expect("the controller is there");
    std::fs::read_to_string(dir.join(file)).expect(file).trim().to_owned()
}

#[test]
fn limits_are_written_and_can_be_changed_both_ways() {
    let grove = Grove::plant("limits");
    let leaf = grove.leaf(&Limits::default());
    let paths = leaf.paths().clone();
    let memory = |leaf: &Leaf| {
        let file = if paths.v1 { "memory.limit_in_bytes" } else { "memory.max" };
        value(&leaf.paths().memory, file).parse::<u64>().expect("a number")
    };
    assert_eq!(memory(&leaf), 2 << 30);
    assert_eq!(value(&paths.pids, "pids.max"), "512");
    if paths.v1 {
        assert_eq!(value(&paths.cpu, "cpu.cfs_quota_us"), "100000");
        assert_eq!(value(&paths.cpu, "cpu.shares"), "1024");
        assert_eq!(value(&paths.memory, "memory.memsw.limit_in_bytes"), (4_u64 << 30).to_string());
    } else {
        assert_eq!(value(&paths.cpu, "cpu.max"), "100000 100000");
        assert_eq!(value(&paths.cpu, "cpu.weight"), "100");
        assert_eq!(value(&paths.memory, "memory.oom.group"), "1");
    }
    for bytes in [8_u64 << 30, 64 << 20, 3 << 30] {
        leaf.set_limits(&Limits { memory_bytes: bytes, swap_bytes: 0, ..Limits::default() }).expect("changed");
        assert_eq!(memory(&leaf), bytes);
    }
    leaf.remove().expect("removed");
}

#[test]
fn freeze_stops_the_cpu_and_a_frozen_group_can_be_killed() {
    let grove = Grove::plant("freeze");
    let leaf = grove.leaf(&Limits::default());
    let mut child = inside(&leaf, "while :; do :; done");
    let (wish, events) = (leaf.freeze_file().expect("freeze"), leaf.events_file().expect("events"));
    let busy = Instant::now();
    while cpu_us(&leaf) < 20_000 {
        assert!(busy.elapsed() < patient(Duration::from_secs(10)), "the loop does not run");
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..20 {
        freeze::freeze(wish.as_fd(), events.as_fd(), freeze::FREEZE_WITHIN).expect("frozen");
        // The group is frozen just before its last process leaves the CPU, and an emulated CPU may
        // pause there.
        std::thread::sleep(patient(Duration::from_millis(1)));
        let before = cpu_us(&leaf);
        std::thread::sleep(Duration::from_millis(20));
        let used = cpu_us(&leaf) - before;
        assert!(used < 100, "a frozen group must not use the CPU: {used} us");
        freeze::thaw(wish.as_fd()).expect("thawed");
        freeze::finish(events.as_fd(), false, Duration::from_secs(5)).expect("runs again");
    }
    freeze::freeze(wish.as_fd(), events.as_fd(), freeze::FREEZE_WITHIN).expect("frozen");
    assert!(leaf.populated().expect("events"));
    leaf.kill().expect("killed");
    let status = child.wait().expect("reaped");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    let dirs: Vec<PathBuf> = leaf.paths().directories().into_iter().map(Into::into).collect();
    leaf.remove().expect("removed");
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    let gone = freeze::freeze(wish.as_fd(), events.as_fd(), freeze::FREEZE_WITHIN);
    assert!(matches!(gone, Err(freeze::FreezeError::Io(_))), "{gone:?}");
}

#[test]
fn pids_and_memory_are_enforced() {
    let grove = Grove::plant("enforced");
    let few = Limits { pids: 10, ..Limits::default() };
    let leaf = grove.leaf(&few);
    // dash answers a failed fork with an error and status 2; `remove` kills the sleeps.
    let mut child = inside(&leaf, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done");
    assert_eq!(child.wait().expect("reaped").code(), Some(2), "the shell must hit the limit of processes");
    leaf.remove().expect("removed");
    let small = Limits { memory_bytes: 32 << 20, swap_bytes: 0, ..Limits::default() };
    let leaf = grove.leaf(&small);
    // tail keeps its input in memory. The shell reports 128 + 9, or is killed too where the whole
    // group dies.
    let mut child = inside(&leaf, "head -c 200000000 /dev/zero | tail -c 200000000 >/dev/null");
    let status = child.wait().expect("reaped");
    let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
    assert!(killed || status.code() == Some(137), "the OOM killer must end it: {status}");
    leaf.remove().expect("removed");
}

#[test]
fn a_live_group_is_not_taken_over_and_a_dead_one_is_made_anew() {
    let grove = Grove::plant("reuse");
    let id = Uuid::now_v7();
    let leaf = grove.tree.create(&tenant(), id, &Limits::default()).expect("a leaf");
    let mut child = inside(&leaf, "sleep 60");
    let taken = grove.tree.create(&tenant(), id, &Limits::default()).expect_err("it is in use");
    assert_eq!(taken.source_kind(), Some(std::io::ErrorKind::AlreadyExists), "{taken}");
    assert!(leaf.populated().expect("events"), "the refusal must not have harmed it");
    leaf.kill().expect("killed");
    child.wait().expect("reaped");
    // The shell is reaped; its children may take a moment longer.
    let deadline = Instant::now() + patient(Duration::from_secs(5));
    while leaf.populated().expect("events") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let anew = grove.tree.create(&tenant(), id, &Limits::default()).expect("the dead one is replaced");
    assert_eq!(grove.tree.leaves().expect("listed"), vec![(tenant(), id)]);
    anew.remove().expect("removed");
    assert!(grove.tree.find(id).expect("listed").is_none());
}

/// A killed process that waits for CPU or disk would otherwise not end. On cgroup v2 the last
/// written files of a group keep its limits even after it is gone.
#[test]
fn a_killed_group_bounds_nothing() {
    let mut grove = Grove::plant("lifted");
    grove.tree = grove.tree.clone().with_disk_of(std::path::Path::new("/var/tmp"));
    let leaf = grove.leaf(&Limits { io_write_bps: 1 << 20, ..Limits::default() });
    let file = if leaf.paths().v1 { "blkio.throttle.write_bps_device" } else { "io.max" };
    assert!(value(&leaf.paths().io, file).contains("1048576"), "{}", value(&leaf.paths().io, file));
    leaf.kill().expect("killed");
    let quota = if leaf.paths().v1 { "cpu.cfs_quota_us" } else { "cpu.max" };
    let quota = value(&leaf.paths().cpu, quota);
    assert!(quota == "-1" || quota.starts_with("max "), "{quota}");
    assert!(!value(&leaf.paths().io, file).contains("1048576"), "{}", value(&leaf.paths().io, file));
    leaf.remove().expect("removed");
}

#[test]
fn a_refused_limit_leaves_nothing() {
    let grove = Grove::plant("refused");
    let zero = Limits { pids: 0, ..Limits::default() };
    let error = grove.tree.create(&tenant(), Uuid::now_v7(), &zero).expect_err("refused");
    assert!(matches!(error, CgroupError::Limit { field: "pids", .. }), "{error}");
    assert!(grove.tree.leaves().expect("listed").is_empty());
}

/// A v2 hierarchy without controllers: everything works but the limits, which are reported by name.
#[test]
fn missing_controllers_are_named() {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mount = text.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let mount = PathBuf::from(mount.expect("a cgroup2 mount"));
    let on = std::fs::read_to_string(mount.join("cgroup.controllers")).expect("cgroup.controllers");
    let layout = Layout::Unified { mount: mount.clone(), own: mount };
    let name = format!("ashd-test-unified-{}", std::process::id());
    let grove = Grove { tree: Tree::prepare_in(&layout, &name).expect("prepared") };
    for controller in ["memory", "cpu", "pids"] {
        let has = on.split_whitespace().any(|word| word == controller);
        let told = grove.tree.missing.iter().any(|line| line.starts_with(controller));
        assert_ne!(has, told, "{controller}: {:?}", grove.tree.missing);
    }
    let leaf = grove.leaf(&Limits::default());
    assert_eq!(leaf.paths().directories().len(), 1);
    leaf.remove().expect("removed");
}

/// Each process of a sandbox also has a process id of the host.
#[test]
fn all_sandboxes_together_leave_process_ids_to_the_host() {
    let grove = Grove::plant("together");
    let leaf = grove.leaf(&Limits::default());
    let number = |name: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).expect(name);
        text.trim().parse().expect("a number")
    };
    let most = number("pid_max").min(number("threads-max"));
    // tenants/<tenant>/<id>
    let of_all = leaf.paths().pids.as_ref().and_then(|dir| dir.parent()?.parent()).map(PathBuf::from);
    let bound: u64 = value(&of_all, "pids.max").parse().expect("a bound");
    assert!((most / 2..=most / 4 * 3).contains(&bound), "{bound} of {most}");
}
