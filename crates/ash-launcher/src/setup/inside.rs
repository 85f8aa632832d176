//! The child's half of a setup: builds its root, drops its privileges, and becomes init.

use std::ffi::OsStr;
use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::{Gid, Uid};
use rustix::thread::CapabilitySet;

use super::steps::{Report, Steps};
use super::trees::{DEVICES, Part, Trees};
use super::view::Source;
use super::{SetupSpec, proc};
use crate::init::{self, Init};
use crate::policy::{Policies, etc, landlock as rules, processes};
use ash_kernel::single::Forked;
use ash_kernel::{caps, clone, landlock, mounts, net, process};
use ash_protocol::init::{INIT_UID, MODEL_PORT};
use ash_protocol::launcher::Failure;

/// The step of waiting for the launcher. It fails only if the launcher gave up or died.
pub const GATE: &str = "wait for launcher";

/// An existing directory of the host, used as the base of the new root in this mount namespace
/// only.
const BASE: &CStr = c"/tmp";
/// The root contains mount points, links and a few small files. Beyond its size `/etc` could not be
/// written.
const ROOT_OPTIONS: &CStr = c"size=1m,nr_inodes=1k,mode=0755";
/// Temporary files count against the session's memory limit, which is the stricter bound.
const TMP_OPTIONS: &CStr = c"size=1g,nr_inodes=200k,mode=1777";
const RUN_OPTIONS: &CStr = c"size=16m,nr_inodes=4k,mode=1777";
const SHM_OPTIONS: &CStr = c"size=256m,nr_inodes=4k,mode=1777";

/// Runs in the child and never returns.
pub fn run(
    forked: Forked,
    spec: &SetupSpec<'_>,
    policies: &Policies,
    trees: &Trees,
    gate: OwnedFd,
    report: OwnedFd,
) -> ! {
    let mut steps = Steps::new();
    // A panic must not unwind into the copied frames of the launcher.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        build(&forked, spec, policies, trees, gate, report.as_fd(), &mut steps)
    }));
    let (init, failure) = match outcome {
        Ok(Ok(init)) => (Some(init), None),
        Ok(Err(failure)) => (None, Some(failure)),
        Err(_) => (None, Some(Failure { step: "set-up".into(), message: "panicked".into(), hint: None })),
    };
    let text = serde_json::to_vec(&Report { steps: steps.done, failure }).unwrap_or_default();
    let told = std::fs::File::from(report).write_all(&text);
    match init {
        Some(init) if told.is_ok() => init::serve(init),
        _ => clone::exit_now(1),
    }
}

/// If the host runs out of memory, agents are killed before the host's own processes. Without this,
/// they would inherit the launcher's -900 (`OOMScoreAdjust=`; proc_pid_oom_score_adj(5), -1000 to
/// 1000).
const OOM_SCORE_ADJ: &str = "500";

fn build(
    forked: &Forked,
    spec: &SetupSpec<'_>,
    policies: &Policies,
    trees: &Trees,
    gate: OwnedFd,
    report: std::os::fd::BorrowedFd<'_>,
    steps: &mut Steps,
) -> Result<Init, Failure> {
    let mut gate = std::fs::File::from(gate);
    let hostname = format!("ash-{}", &spec.id.simple().to_string()[..8]);
    // While the host's /proc is mounted, which still belongs to root.
    steps.run("oom score", || std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ))?;
    steps.run(GATE, || pass(&mut gate))?;
    // Before the first mount: an unmapped id cannot create files in its tmpfs.
    steps.run("become init", become_init)?;
    make_root(trees, &hostname, &spec.id.simple().to_string(), steps)?;
    steps.run("pivot root", mounts::pivot_to_here)?;
    steps.run("seal root", mounts::seal_root)?;
    steps.run("loopback", net::loopback_up)?;
    let model = steps.run("listen", || net::listen(MODEL_PORT))?;
    steps.run("hostname", || Ok(nix::unistd::sethostname(&hostname)?))?;
    let socket = steps.run("close descriptors", || {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        let socket = spec.init_socket.try_clone_to_owned()?;
        process::close_all_but(forked, &[socket.as_fd(), model.as_fd(), report, gate.as_fd()])?;
        // Already closed with the others; only the number is left.
        std::mem::forget(null);
        Ok(socket)
    })?;
    let rules = match policies.landlock_abi {
        // Only with a floor that an administrator lowered to 0.
        0 => None,
        _ => Some(steps.run("landlock", || landlock_rules(&policies.landlock))?),
    };
    steps.run("keyring", process::new_session_keyring)?;
    steps.run("bounding set", caps::empty_bounding_set)?;
    // From here on the process is in all of its groups, which the cgroup namespace requires.
    steps.run(GATE, || pass(&mut gate))?;
    drop(gate);
    steps.run("cgroup namespace", || Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)?))?;
    steps.run("capabilities", || {
        // Sufficient to become the payload's uid in a new child and to signal it. uid 0 does not
        // exist here.
        caps::keep_only(CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL)?;
        rustix::thread::set_no_new_privs(true)?;
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        Ok(rustix::thread::set_name(c"ash-init")?)
    })?;
    steps.run("seccomp", || policies.seccomp.install())?;
    Ok(Init { socket, model, rules })
}

fn pass(gate: &mut std::fs::File) -> io::Result<()> {
    gate.read_exact(&mut [0])
}

fn become_init() -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    let (uid, gid) = (Uid::from_raw(INIT_UID), Gid::from_raw(INIT_UID));
    nix::unistd::setresgid(gid, gid, gid)?;
    Ok(nix::unistd::setresuid(uid, uid, uid)?)
}

/// Builds the new root on [`BASE`] and makes it the working directory.
fn make_root(trees: &Trees, hostname: &str, machine: &str, steps: &mut Steps) -> Result<(), Failure> {
    steps.run("make mounts private", mounts::make_all_private)?;
    steps.run("mount root", || {
        // Below the new root, so it is unmounted with the old one.
        trees.view.as_ref().map_or(Ok(()), |view| view.attach(BASE))?;
        mounts::tmpfs(BASE, ROOT_OPTIONS)?;
        rustix::process::chdir(BASE)?;
        for dir in ["etc", "dev", "dev/pts", "dev/shm", "proc", "tmp", "run", "opt", "opt/claude", "opt/ashd", "home"] {
            std::fs::DirBuilder::new().mode(0o755).create(dir)?;
        }
        Ok(())
    })?;
    steps.run("mount system trees", || trees.system.iter().try_for_each(|(path, part)| place(path, part)))?;
    steps.run("write etc", || {
        for (name, contents) in etc::files(hostname, machine) {
            let file = std::fs::File::options().write(true).create_new(true).mode(0o644).open(format!("etc/{name}"));
            file?.write_all(contents.as_bytes())?;
        }
        let shell = relative(&CString::new(processes::SHELL)?);
        let shell =
            std::fs::File::options().write(true).create_new(true).mode(0o755).open(OsStr::from_bytes(shell.as_bytes()));
        shell?.write_all(processes::shell().as_bytes())
    })?;
    steps.run("mount devices", || {
        for (path, tree) in DEVICES.iter().zip(&trees.devices) {
            place_file(&CString::new(*path)?, tree)?;
        }
        mounts::devpts(c"dev/pts")?;
        mounts::tmpfs(c"dev/shm", SHM_OPTIONS)?;
        for (name, target) in [
            ("dev/ptmx", "pts/ptmx"),
            ("dev/fd", "/proc/self/fd"),
            ("dev/stdin", "/proc/self/fd/0"),
            ("dev/stdout", "/proc/self/fd/1"),
            ("dev/stderr", "/proc/self/fd/2"),
        ] {
            std::os::unix::fs::symlink(target, name)?;
        }
        Ok(())
    })?;
    proc::make(steps)?;
    steps.run("mount tmp", || {
        mounts::tmpfs(c"tmp", TMP_OPTIONS)?;
        mounts::tmpfs(c"run", RUN_OPTIONS)
    })?;
    steps.run("mount workspace", || mounts::attach(trees.workspace.as_fd(), &directory(c"/workspace")?))?;
    steps.run("mount home", || mounts::attach(trees.home.as_fd(), &directory(c"/home/agent")?))?;
    steps.run("mount claude", || place_file(c"/opt/claude/claude", &trees.claude))
}

fn place(path: &CStr, part: &Part) -> io::Result<()> {
    above(path)?;
    match part {
        Part::Dir(tree) => place_dir(path, tree),
        Part::File(tree) => place_file(path, tree),
        Part::Over(tree) => tree.attach(&relative(path)),
        Part::Link(target) => Ok(rustix::fs::symlink(target, relative(path).as_c_str())?),
    }
}

fn above(path: &CStr) -> io::Result<()> {
    let here = relative(path);
    match Path::new(OsStr::from_bytes(here.as_bytes())).parent() {
        Some(parent) => std::fs::DirBuilder::new().mode(0o755).recursive(true).create(parent),
        None => Ok(()),
    }
}

fn place_dir(path: &CStr, tree: &Source) -> io::Result<()> {
    let here = directory(path)?;
    tree.attach(&here)
}

/// Creates the directory. Returns its path relative to the new root.
fn directory(path: &CStr) -> io::Result<CString> {
    let here = relative(path);
    rustix::fs::mkdir(here.as_c_str(), rustix::fs::Mode::from_raw_mode(0o755))?;
    Ok(here)
}

fn place_file(path: &CStr, tree: &Source) -> io::Result<()> {
    let here = relative(path);
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC;
    drop(rustix::fs::open(here.as_c_str(), flags, rustix::fs::Mode::from_raw_mode(0o444))?);
    tree.attach(&here)
}

/// An absolute path of the sandbox, relative to the new root as the working directory.
fn relative(path: &CStr) -> CString {
    let bytes = path.to_bytes();
    CString::new(bytes.strip_prefix(b"/").unwrap_or(bytes)).expect("a part of a C string has no zero byte")
}

fn landlock_rules(policy: &[rules::Rule]) -> io::Result<landlock::Rules> {
    let unmerged = rules::UNMERGED.iter().filter(|path| Path::new(path).symlink_metadata().is_ok_and(|m| m.is_dir()));
    let paths: Vec<_> = policy
        .iter()
        .map(|rule| (rule.path, rule.right))
        .chain(unmerged.map(|path| (*path, landlock::Right::ReadExecute)))
        .collect();
    landlock::Rules::new(&paths)
}
