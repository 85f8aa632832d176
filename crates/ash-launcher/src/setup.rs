//! The launcher's half of a sandbox setup. `docs/sandbox.md` lists the same steps with their times.
//!
//! ```text
//!   launcher                                   child (PID 1 of the sandbox)
//!   detached trees, idmap namespace
//!   clone3 into namespaces and v2 group  --->  waits at the gate
//!   uid_map, gid_map, gate ------------------> mounts, pivot_root, loopback, landlock rules
//!   v1 groups (slow: RCU), gate -------------> cgroup namespace, capabilities, seccomp
//!   report <---------------------------------- ready, or the step that failed
//!   done                                       serves init.sock
//! ```
//!
//! The child's half is in [`inside`], its service in [`super::init`].
//!
//! Nothing of a sandbox exists outside of its processes and cgroups, so the end of the child also
//! ends mounts, namespaces and sockets. A failed setup has ended and reaped the child before it
//! returns.

mod host_etc;
mod inside;
mod proc;
mod steps;
mod trees;
mod view;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use uuid::Uuid;

use crate::policy::{Floor, Policies};
use ash_kernel::cgroup::Leaf;
use ash_kernel::clone::{self, Child, Side};
use ash_kernel::idmap::{self, Entry, Mappings};
use ash_kernel::single::{SingleThreaded, require_single_thread};
use ash_kernel::{owner, pidfd};
use ash_protocol::init::{INIT_UID, PAYLOAD_UID};
use ash_protocol::launcher::Failure;
use steps::{Report, Steps};
use trees::Trees;

/// The time limit for the child's report. It normally takes milliseconds.
const REPORT_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct SetupSpec<'a> {
    pub id: Uuid,
    /// The payload's uid and gid on the host ([`PAYLOAD_UID`] inside).
    pub uid: u32,
    /// init's uid and gid on the host ([`INIT_UID`] inside). The user namespace is created under
    /// this uid, which the kernel charges for the sandbox's use of user quotas.
    pub init_uid: u32,
    /// Owner of the files on disk. Inside, they belong to the payload.
    pub disk_uid: u32,
    pub disk_gid: u32,
    /// `O_PATH` directories, opened beneath their roots.
    pub workspace: BorrowedFd<'a>,
    pub home: BorrowedFd<'a>,
    /// `O_PATH` file, shown read-only as `/opt/claude/claude`.
    pub claude: BorrowedFd<'a>,
    /// Listening, non-blocking `SOCK_SEQPACKET` socket of init.
    pub init_socket: BorrowedFd<'a>,
    pub leaf: &'a Leaf,
    pub floor: &'a Floor,
}

#[derive(Debug)]
pub struct Started {
    /// init's process id on the host.
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Microseconds of each step: the launcher's, then the child's (they overlap).
    pub steps: Vec<(String, u64)>,
}

/// Sets up a sandbox. The caller is init's parent and must reap it.
///
/// # Errors
/// The step that failed, the reason, and the remedy if known. Nothing is left. In a process with
/// several threads the step is `check threads`.
pub fn start(spec: &SetupSpec<'_>, policies: &Policies, mappings: &mut Mappings) -> Result<Started, Failure> {
    let mut steps = Steps::new();
    spec.floor.check(policies)?;
    let one = steps.run("check threads", require_single_thread)?;
    let uid = Entry { inside: spec.disk_uid, outside: spec.uid };
    let gid = Entry { inside: spec.disk_gid, outside: spec.uid };
    let idmap = steps.run("map disk ids", || mappings.get(&one, uid, gid))?;
    let trees = Trees::open(spec, idmap.as_fd(), &mut steps)?;
    let (gate_in, gate_out) = steps.run("pipes", pipe)?;
    let (report_in, report_out) = steps.run("pipes", pipe)?;
    let child = match steps.run("clone", || owner::clone_as(spec.init_uid, || clone_child(&one, spec.leaf)))? {
        Side::Child(forked) => {
            drop((gate_out, report_in));
            inside::run(forked, spec, policies, &trees, gate_in, report_out)
        }
        Side::Parent(child) => child,
    };
    drop((gate_in, report_out, trees));
    let accompanied = accompany(spec, &child, gate_out, report_in, &mut steps);
    // Not earlier: the process that created it may not have ended yet, and the child would wait for
    // that too.
    idmap.settle();
    match accompanied {
        Ok(()) => Ok(Started { pid: child.pid, pidfd: child.pidfd, steps: steps.done }),
        Err(failure) => {
            pidfd::kill_and_reap(child.pidfd.as_fd());
            Err(failure)
        }
    }
}

/// Clones into the sandbox's v2 group. If a kernel or a mount refuses that, clones first and then
/// moves the child.
fn clone_child(one: &SingleThreaded, leaf: &Leaf) -> io::Result<Side> {
    const REFUSALS: [i32; 5] = [libc::EINVAL, libc::EBADF, libc::EACCES, libc::EOPNOTSUPP, libc::EBUSY];
    let first = match clone::clone_into(one, clone::SANDBOX_NAMESPACES, Some(leaf.unified_fd())) {
        Err(error) if error.raw_os_error().is_some_and(|errno| REFUSALS.contains(&errno)) => error,
        other => return other,
    };
    let side = clone::clone_into(one, clone::SANDBOX_NAMESPACES, None).map_err(|_| first)?;
    if let Side::Parent(child) = &side
        && let Err(error) = leaf.attach_unified(child.pid)
    {
        pidfd::kill_and_reap(child.pidfd.as_fd());
        return Err(error);
    }
    Ok(side)
}

/// The launcher's half during the child's setup.
fn accompany(
    spec: &SetupSpec<'_>,
    child: &Child,
    gate: OwnedFd,
    report: OwnedFd,
    steps: &mut Steps,
) -> Result<(), Failure> {
    let ids = [Entry { inside: PAYLOAD_UID, outside: spec.uid }, Entry { inside: INIT_UID, outside: spec.init_uid }];
    let mut gate = std::fs::File::from(gate);
    steps.run("write id maps", || idmap::write_maps(child.pid, &ids, &ids))?;
    // A closed gate means that the child has failed. Its report says why.
    gate.write_all(b"1").ok();
    let attached = steps.run("attach cgroups", || spec.leaf.attach(child.pid));
    if attached.is_ok() {
        gate.write_all(b"2").ok();
    }
    drop(gate);
    let heard = steps.run("wait for init", || {
        let deadline = std::time::Instant::now() + REPORT_WITHIN;
        let mut text = Vec::new();
        let mut report = std::fs::File::from(report);
        loop {
            pidfd::wait_readable(report.as_fd(), deadline.saturating_duration_since(std::time::Instant::now()))?;
            let mut chunk = [0; 4096];
            match report.read(&mut chunk)? {
                0 => return Ok(text),
                n => text.extend_from_slice(&chunk[..n]),
            }
        }
    })?;
    match serde_json::from_slice::<Report>(&heard) {
        Ok(Report { failure: Some(failure), .. }) if attached.is_ok() || failure.step != inside::GATE => Err(failure),
        Ok(Report { failure: None, steps: inside }) => {
            steps.done.extend(inside);
            attached
        }
        Ok(_) => attached.and(Err(ended_early())),
        Err(_) => Err(attached.err().unwrap_or_else(ended_early)),
    }
}

fn ended_early() -> Failure {
    Failure {
        step: "wait for init".into(),
        message: "the sandbox's init exited before it was ready".into(),
        hint: Some("the memory limit may be too low: check the kernel log for an OOM kill".into()),
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}
