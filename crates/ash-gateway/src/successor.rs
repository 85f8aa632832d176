//! A gateway that is replaced in place, by systemd's reload or an upgrade of the package.
//!
//! ```text
//!   SIGHUP -> the program at this one's path, control socket on its stdin --"ready" on its stdout--> MAINPID= to systemd
//!          -> this one stops accepting; ashd comes back to the socket and registers every session with the new one
//!          -> this one finishes its open answers and exits
//! ```
//!
//! When the new one does not get as far as "ready", this one goes on as if nothing had happened.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// The flag that a successor is started with.
pub const FLAG: &str = "--handed-over";
/// How long a new gateway may take to be ready; it needs milliseconds.
const START: Duration = Duration::from_secs(10);
const READY: &str = "ready";

/// Why there is no successor. This gateway serves on.
#[derive(Debug, thiserror::Error)]
pub enum SuccessorError {
    #[error("{path}: {source}")]
    Start { path: PathBuf, source: std::io::Error },
    #[error("{0} ended before it was ready; its own message is above")]
    Ended(PathBuf),
    #[error("{0} was not ready after 10 s")]
    Late(PathBuf),
}

/// Starts the program again with the same arguments and environment, on the same control socket, and waits until it serves.
///
/// # Errors
/// See [`SuccessorError`]; nothing of the new process is left.
pub async fn start(control: OwnedFd) -> Result<Child, SuccessorError> {
    let path = program();
    let failed = |source| SuccessorError::Start { path: path.clone(), source };
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != FLAG && argument != "--take-over");
    let mut child = Command::new(&path)
        .args(arguments)
        .arg(FLAG)
        .stdin(Stdio::from(control))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stdout = child.stdout.take().expect("it was piped");
    let mut line = String::new();
    let said = tokio::time::timeout(START, BufReader::new(stdout).read_line(&mut line)).await;
    if said.is_ok() && line.trim() == READY {
        return Ok(child);
    }
    // One that ended by itself needs no signal; either way it is waited for.
    let _ = child.kill().await;
    Err(if said.is_ok() { SuccessorError::Ended(path) } else { SuccessorError::Late(path) })
}

/// Where this program was started from. After an upgrade the new program is there; `/proc/self/exe` would be the old one.
pub fn program() -> PathBuf {
    let named = std::env::args_os().next().map(PathBuf::from).filter(|path| path.is_absolute());
    named.or_else(|| std::env::current_exe().ok()).unwrap_or_else(|| "/usr/lib/ashd/ash-gateway".into())
}

/// The control socket that a predecessor left on stdin.
///
/// # Errors
/// When it cannot be duplicated.
pub fn handed_over() -> std::io::Result<OwnedFd> {
    std::io::stdin().as_fd().try_clone_to_owned()
}

/// Tells the predecessor that it may go.
///
/// # Errors
/// When nobody listens: it gave up waiting, and serves on.
pub fn ready() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(format!("{READY}\n").as_bytes())?;
    out.flush()
}
