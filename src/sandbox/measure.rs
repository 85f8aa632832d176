//! Runs the probe in a sandbox, by the same path as claude, and reads what it found.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use tokio::sync::mpsc;

use crate::kernel::cgroup::in_force;
use crate::kernel::probe::Measured;
use crate::kernel::seqpacket;
use crate::launcher::init_protocol::{Exit, SpawnSpec};
use crate::launcher::protocol::SandboxInfo;
use crate::sandbox::confinement::Outside;
use crate::sandbox::{LauncherError, Sandbox, SandboxEvent};

/// Path of the probe inside every sandbox.
const PROBE: &str = "/opt/ashd/ash-probe";
/// It needs a few milliseconds; a sandbox that was frozen meanwhile would keep it for ever.
const WITHIN: Duration = Duration::from_secs(10);
/// Bytes of its answer, at most.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error("the probe could not be started: {0}")]
    Spawn(#[from] LauncherError),
    #[error("the probe did not answer within {} s", WITHIN.as_secs())]
    Late,
    #[error("the probe ended with {0:?}: {1}")]
    Ended(Exit, String),
    #[error("the sandbox ended while it was measured")]
    Gone,
    #[error("the probe's answer cannot be read: {0}")]
    Answer(String),
}

/// Measures a sandbox from within. `events` are those of this handle; what they tell of other children is lost.
/// `child` is a number that nobody else uses in this sandbox.
///
/// # Errors
/// Anything but a whole answer: what was not measured is not believed.
pub async fn measure(
    sandbox: &Sandbox,
    events: &mut mpsc::UnboundedReceiver<SandboxEvent>,
    child: u32,
) -> Result<Measured, MeasureError> {
    let answer = |error: &dyn std::fmt::Display| MeasureError::Answer(error.to_string());
    let file = |name: &str| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map_err(|e| answer(&e));
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| answer(&e));
    let (out, err) = (file("probe")?, file("probe-errors")?);
    let spec = SpawnSpec {
        argv: vec![PROBE.to_owned()],
        env: Vec::new(),
        cwd: "/workspace".to_owned(),
        stdin: false,
        within_ms: None,
    };
    let run = async {
        sandbox.spawn(child, &spec, copy(&out)?, copy(&err)?).await?;
        loop {
            match events.recv().await {
                Some(SandboxEvent::Exited { child: ended, status }) if ended == child => return Ok(status),
                Some(SandboxEvent::Died) | None => return Err(MeasureError::Gone),
                Some(_) => {}
            }
        }
    };
    let status = tokio::time::timeout(WITHIN, run).await.map_err(|_| MeasureError::Late)??;
    if status != Exit::Code(0) {
        let said = seqpacket::read_all(err.as_fd(), MAX_ANSWER).unwrap_or_default();
        return Err(MeasureError::Ended(status, String::from_utf8_lossy(&said).trim().to_owned()));
    }
    let text = seqpacket::read_all(out.as_fd(), MAX_ANSWER).map_err(|e| answer(&e))?;
    serde_json::from_slice(&text).map_err(|e| answer(&e))
}

/// What ashd itself sees of a sandbox. Wakes nothing.
pub fn outside(info: &SandboxInfo) -> Outside {
    let names = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"];
    let inode = |name: &str| Some((name.to_owned(), std::fs::metadata(format!("/proc/self/ns/{name}")).ok()?.ino()));
    Outside {
        host_namespaces: names.into_iter().filter_map(inode).collect::<BTreeMap<_, _>>(),
        cgroups: info.cgroup.directories().iter().map(|dir| dir.display().to_string()).collect(),
        limits: in_force(&info.cgroup, info.pid),
    }
}
