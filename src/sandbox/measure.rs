//! Runs the probe in a sandbox, in the same way as claude, and reads its findings.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use tokio::sync::mpsc;

use crate::sandbox::confinement::Outside;
use crate::sandbox::{LauncherError, Sandbox, SandboxEvent};
use ash_kernel::cgroup::in_force;
use ash_kernel::probe::Measured;
use ash_kernel::seqpacket;
use ash_protocol::init::{Exit, SpawnSpec};
use ash_protocol::launcher::SandboxInfo;

/// Path of the probe inside every sandbox.
const PROBE: &str = "/opt/ashd/ash-probe";
/// The probe needs a few milliseconds; a sandbox frozen meanwhile would keep it forever.
const WITHIN: Duration = Duration::from_secs(10);
/// Maximum bytes of its answer.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error("cannot start: {0}")]
    Spawn(#[from] LauncherError),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("ended with {0:?}: {1}")]
    Ended(Exit, String),
    #[error("the sandbox ended while it was measured")]
    Gone,
    #[error("cannot read the answer: {0}")]
    Answer(String),
}

/// Measures a sandbox from within. `events` are those of this handle; events of other children are
/// lost. `child` is a number that is unused in this sandbox.
///
/// # Errors
/// Anything but a complete answer: what was not measured counts as missing.
/// Anything but a whole answer: what was not measured is not believed.
pub async fn measure(
    sandbox: &Sandbox,
    events: &mut mpsc::UnboundedReceiver<SandboxEvent>,
    child: u32,
) -> Result<Measured, MeasureError> {
    match run(sandbox, events, child, vec![PROBE.to_owned()], Vec::new(), WITHIN).await? {
        (Exit::Code(0), said) => serde_json::from_slice(&said).map_err(|e| MeasureError::Answer(e.to_string())),
        (status, said) => Err(MeasureError::Ended(status, String::from_utf8_lossy(&said).trim().to_owned())),
    }
}

/// Runs a short program as the payload; returns its exit and output (on failure its standard
/// error).
///
/// # Errors
/// `Late` after `within`: the program may still run then. `Answer` for more than 1 MiB of output.
pub async fn run(
    sandbox: &Sandbox,
    events: &mut mpsc::UnboundedReceiver<SandboxEvent>,
    child: u32,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    within: Duration,
) -> Result<(Exit, Vec<u8>), MeasureError> {
    let answer = |error: &dyn std::fmt::Display| MeasureError::Answer(error.to_string());
    let file = |name: &str| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map_err(|e| answer(&e));
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| answer(&e));
    let (out, err) = (file("out")?, file("err")?);
    let spec =
        SpawnSpec { argv, env, cwd: "/workspace".to_owned(), stdin: false, within_ms: None, leaves_share: false };
    let ended = async {
        sandbox.spawn(child, &spec, copy(&out)?, copy(&err)?).await?;
        loop {
            match events.recv().await {
                Some(SandboxEvent::Exited { child: ended, status }) if ended == child => return Ok(status),
                Some(SandboxEvent::Died) | None => return Err(MeasureError::Gone),
                Some(_) => {}
            }
        }
    };
    let status = tokio::time::timeout(within, ended).await.map_err(|_| MeasureError::Late(within))??;
    let said = if status == Exit::Code(0) { &out } else { &err };
    Ok((status, seqpacket::read_all(said.as_fd(), MAX_ANSWER).map_err(|e| answer(&e))?))
}

/// What ashd sees of a sandbox from outside. Wakes no process.
pub fn outside(info: &SandboxInfo) -> Outside {
    let names = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"];
    let inode = |name: &str| Some((name.to_owned(), std::fs::metadata(format!("/proc/self/ns/{name}")).ok()?.ino()));
    Outside {
        host_namespaces: names.into_iter().filter_map(inode).collect::<BTreeMap<_, _>>(),
        cgroups: info.cgroup.directories().iter().map(|dir| dir.display().to_string()).collect(),
        limits: in_force(&info.cgroup, info.pid),
    }
}
