//! Replaces the running gateway, on systemd's reload or a package upgrade.
//!
//! ```text
//!   SIGHUP -> starts the program at its own path, control socket on its stdin
//!          -> the new one writes "ready" to its stdout --> MAINPID= to systemd
//!          -> the old one stops accepting; ashd reconnects and registers all sessions again
//!          -> the old one finishes its open answers and exits
//! ```
//!
//! If the new one does not become ready, the old one continues unchanged.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Flag that a successor is started with.
pub const FLAG: &str = "--handed-over";
/// Time limit for a new gateway to become ready; it needs milliseconds.
const START: Duration = Duration::from_secs(10);
const READY: &str = "ready";

/// Why there is no successor. This gateway continues to serve.
#[derive(Debug, thiserror::Error)]
pub enum SuccessorError {
    #[error("{path}: {source}")]
    Start { path: PathBuf, source: std::io::Error },
    #[error("{0} ended before it was ready; see its messages above")]
    Ended(PathBuf),
    #[error("{0} did not become ready within 10 s")]
    Late(PathBuf),
}

/// Starts the program again with the same arguments, environment and control socket, and waits
/// until it serves.
///
/// # Errors
/// See [`SuccessorError`]; the new process has then ended.
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
    // Fails if it ended by itself; either way it is reaped.
    let _ = child.kill().await;
    Err(if said.is_ok() { SuccessorError::Ended(path) } else { SuccessorError::Late(path) })
}

/// The path of this program. After an upgrade it is the new program; `/proc/self/exe` would be the
/// old one.
pub fn program() -> PathBuf {
    let named = std::env::args_os().next().map(PathBuf::from).filter(|path| path.is_absolute());
    named.or_else(|| std::env::current_exe().ok()).unwrap_or_else(|| "/usr/lib/ashd/ash-gateway".into())
}

/// The control socket that the predecessor passed on stdin.
///
/// # Errors
/// It cannot be duplicated.
pub fn handed_over() -> std::io::Result<OwnedFd> {
    std::io::stdin().as_fd().try_clone_to_owned()
}

/// Tells the predecessor that it can end.
///
/// # Errors
/// The predecessor stopped waiting, and continues to serve.
pub fn ready() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(format!("{READY}\n").as_bytes())?;
    out.flush()
}
