//! `ashd stop`: ends ashd first, so that nothing new starts, then sandboxes and launcher, then the
//! gateway.

use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::companions::{shut_down_gateway, shut_down_launcher};
use super::{BootError, listeners};
use crate::config::Config;
use ash_kernel::seqpacket;

/// Seconds until ashd must have ended; it ends within a second of SIGTERM.
const ASHD: i64 = 10;
/// Ending a sandbox is a kill; a thousand of them need more time.
const SANDBOXES: Duration = Duration::from_secs(60);
/// Without sandboxes the gateway only finishes their last answers.
const GATEWAY: Duration = Duration::from_secs(30);

/// Ends everything that a start as root began. Returns a text with what it ended.
///
/// # Errors
/// One of them does not end; the others are ended anyway.
pub fn stop(file: Option<&Path>) -> Result<String, BootError> {
    let run_dir = Config::load(file)?.run_dir;
    let results = [
        ("ashd", stop_ashd(&run_dir)),
        ("sandboxes and launcher", shut_down_launcher(&run_dir, SANDBOXES)),
        ("gateway", shut_down_gateway(&run_dir, GATEWAY)),
    ];
    let mut ended = Vec::new();
    let mut failed = Vec::new();
    for (what, result) in results {
        match result {
            Ok(true) => ended.push(what),
            Ok(false) => {}
            Err(error) => failed.push(error.to_string()),
        }
    }
    if !failed.is_empty() {
        return Err(BootError::Refused(failed.join("\n")));
    }
    // ashd and the gateway, unprivileged, cannot remove files in root's directory. They may be
    // absent.
    for name in [
        "port",
        listeners::API_SOCKET,
        "start.lock",
        "launcher.toml",
        "launcher.sock",
        "gateway.sock",
        "launcher.keeper",
        "gateway.keeper",
    ] {
        let _ = std::fs::remove_file(run_dir.join(name));
    }
    Ok(match ended.as_slice() {
        [] => format!("nothing is running below {}", run_dir.display()),
        some => format!("ended: {}", some.join(", ")),
    })
}

/// Finds ashd by the process that holds the API's unix socket.
fn stop_ashd(run_dir: &Path) -> Result<bool, BootError> {
    let path = run_dir.join(listeners::API_SOCKET);
    let Ok(socket) = std::os::unix::net::UnixStream::connect(&path) else { return Ok(false) };
    let holder =
        seqpacket::peer(std::os::fd::AsFd::as_fd(&socket)).map_err(BootError::io(path.display().to_string()))?;
    let named = || format!("process {} (ashd)", holder.pid);
    let pid = rustix::process::Pid::from_raw(holder.pid).ok_or_else(|| BootError::Refused(named()))?;
    // Opened before the process is checked: the descriptor refers to this process, even when its
    // pid is reused meanwhile.
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(BootError::errno(named()))?;
    let name = std::fs::read_to_string(format!("/proc/{}/comm", holder.pid)).unwrap_or_default();
    if name.trim() != "ashd" {
        return Err(BootError::Refused(format!(
            "{} is held by process {} ({}), not by a manually started ashd; `systemctl stop ashd ash-launcher \
             ash-gateway` ends those of systemd",
            path.display(),
            holder.pid,
            name.trim()
        )));
    }
    pidfd_send_signal(&process, Signal::TERM).map_err(BootError::errno(named()))?;
    let patience = Timespec { tv_sec: ASHD, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)) {
        Ok(0) => Err(BootError::Refused(format!("{} did not end within {ASHD} s of SIGTERM", named()))),
        Ok(_) => Ok(true),
        Err(errno) => Err(BootError::errno(named())(errno)),
    }
}
