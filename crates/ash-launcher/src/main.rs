//! The only privileged process of ashd. It sanitizes itself, does the work that needs root, drops
//! privileges, and serves.

use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use ash_kernel::cgroup::Tree;
use ash_kernel::confine;
use ash_kernel::kmsg::KernelLog;
use ash_kernel::single::require_single_thread;
use ash_kernel::{caps, inherited, sanitize};
use ash_launcher::again::{self, Origin};
use ash_launcher::ending::reap_all;
use ash_launcher::policy::Policies;
use ash_launcher::rundir::{self, RunDir, bind_launcher, unbind_launcher};
use ash_launcher::sandboxes::Sandboxes;
use ash_launcher::server::{STATUS, Server, block_signals};
use ash_launcher::settings::{Flags, Settings};
use ash_observe::logging;
use clap::Parser;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The capabilities of the loop. Not kept, among others: SYSLOG, NET_ADMIN, MKNOD, SYS_CHROOT,
/// SETPCAP, SYS_RESOURCE. The setup of a sandbox uses these inside its own user namespace.
const KEEP: CapabilitySet = CapabilitySet::SYS_ADMIN // namespaces, mounts, idmapped mounts
    .union(CapabilitySet::SETUID) // uid_map with two ids, and becoming them
    .union(CapabilitySet::SETGID) // gid_map, and becoming them
    .union(CapabilitySet::CHOWN) // init.sock and its directory get ashd's group
    .union(CapabilitySet::DAC_READ_SEARCH) // to session directories through ashd's 0700
    .union(CapabilitySet::SYS_NICE) // process_madvise(2) on a paused sandbox's processes
    .union(CapabilitySet::KILL); // a partly set up child already has other uids

/// Permitted, but effective only in the worker that counts nameless files of a sandbox
/// (`/proc/<pid>/fd`).
const IN_WORKERS: CapabilitySet = CapabilitySet::SYS_PTRACE;

/// Permitted, but not effective while serving. It is needed at the start to create the socket in
/// ashd's directory and a group in the hierarchy's root (mode 0555), and at the end to remove both.
const AT_BOTH_ENDS: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

fn main() -> anyhow::Result<()> {
    let one = require_single_thread().context("start")?;
    let program = std::env::current_exe().context("own program")?;
    let handed = again::take().context("take over from the program before")?;
    let passed = sanitize::passed_here();
    let under_systemd = handed.as_ref().map_or_else(logging::stderr_is_journal, |handed| handed.under_systemd);
    // The descriptors of the previous program are claimed by now, and `close_strays` ignores them.
    let first = if handed.is_some() { 3 } else { i32::try_from(3 + passed).context("LISTEN_FDS")? };
    inherited::close_strays(&one, first).context("close inherited descriptors")?;
    sanitize::clear_environment(&one, &["NOTIFY_SOCKET"]).context("clear the environment")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/").context("chdir /")?;

    let flags = Flags::parse();
    logging::start_bare("ash-launcher", under_systemd);
    if !rustix::process::geteuid().is_root() {
        bail!("ash-launcher creates namespaces for other users: start it as root");
    }
    if flags.hold_cgroup {
        return hold();
    }
    let settings = Settings::load(&flags)?;
    let policies = Policies::compile()?;
    settings.floor.check(&policies)?;
    if flags.check {
        rundir::check(&settings.run_dir)?;
        println!("OK");
        return Ok(());
    }
    nix::unistd::setgroups(&[]).context("drop supplementary groups")?;
    raise_descriptor_limit();

    block_signals().context("block signals")?;
    let run = RunDir::open(&settings.run_dir, settings.client_uid, settings.client_gid)?;
    let tree = match &flags.delegated_cgroup {
        Some(path) => Tree::prepare_delegated(path, &settings.cgroup)?,
        None => Tree::prepare(&settings.cgroup)?,
    }
    .with_disk_of(&settings.data_dir);
    for missing in &tree.missing {
        tracing::warn!(limit = %missing, "not enforced on this host");
    }
    let own_socket = handed.as_ref().map_or(passed == 0, |handed| handed.own_socket);
    let (mut resumed, mut kernel_log) = (None, None);
    let listener: OwnedFd = match (handed, passed) {
        (Some(handed), _) => {
            tracing::info!(version = handed.version, "took over from");
            resumed = Some((handed.connections, handed.reclaims));
            kernel_log = handed.log;
            handed.listener
        }
        (None, 0) => bind_launcher(&settings.run_dir, settings.client_gid)?,
        // systemd's first descriptor (sd_listen_fds(3)).
        (None, 1) => inherited::claim(3).context("take the socket that systemd passed")?,
        (None, more) => bail!("systemd passed {more} sockets; ash-launcher listens on one"),
    };
    // Opened while CAP_SYSLOG is there. Without it, names of killed processes are missing.
    let log = kernel_log.map_or_else(KernelLog::open, |log| Ok(KernelLog::of(log)));
    if let Err(error) = &log {
        tracing::warn!(%error, "/dev/kmsg cannot be read: the names of processes killed by the OOM killer are unknown");
    }
    // Not empty: the next program needs the same capabilities, and nothing else executes a program
    // here.
    caps::limit_bounding_set(KEEP.union(AT_BOTH_ENDS).union(IN_WORKERS)).context("limit the bounding set")?;
    caps::keep_only(KEEP.union(AT_BOTH_ENDS).union(IN_WORKERS)).context("drop capabilities")?;
    in_effect(KEEP).context("lower capabilities")?;

    let (roots, run_dir) = (tree.clone(), settings.run_dir.clone());
    let sandboxes = Sandboxes::recover(settings, tree, run, policies)?.hearing(log.ok());
    let origin = Origin { program, own_socket, under_systemd };
    let mut server = Server::new(sandboxes, flags, listener, origin).context("block signals")?;
    if let Some((connections, reclaims)) = resumed {
        reap_all();
        server.resume(connections, reclaims);
    }
    confine::apply(&one, &ash_launcher::confine::plan())?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    ash_observe::systemd::ready(STATUS);
    // Only memory is lost if this fails.
    let _ = ash_kernel::code_pages::release();
    let clean = server.run().context("poll")?;
    in_effect(KEEP.union(AT_BOTH_ENDS)).context("raise capabilities")?;
    roots.remove();
    if own_socket {
        unbind_launcher(&run_dir);
    }
    if !clean {
        bail!("some sandboxes could not be ended; the errors above name them");
    }
    Ok(())
}

/// ash-sandboxes.service: keeps the group of the sandboxes while launchers are replaced.
fn hold() -> anyhow::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let end = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    end.thread_block().context("block signals")?;
    Tree::hold()?;
    ash_observe::systemd::ready("holds the cgroup of the sandboxes");
    end.wait().context("wait for a signal")?;
    Ok(())
}

fn in_effect(effective: CapabilitySet) -> std::io::Result<()> {
    let permitted = KEEP.union(AT_BOTH_ENDS).union(IN_WORKERS);
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// One descriptor per sandbox. The default soft limit of 1024 is too low.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "the limit of open files was not raised");
    }
}
