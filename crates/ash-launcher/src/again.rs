//! Replaces the launcher's program in the same process. Sandboxes keep their parent and are not
//! affected.
//!
//! ```text
//!   SIGUSR2 --> `<own path> <own arguments> --check` --fails--> logs why, and continues
//!                    | succeeds
//!                    v
//!   stop reading requests; finish the ends in progress (at most 10 s)
//!                    v
//!   Letter (a sealed file), listener and connections pass through execve(2) --> new program
//! ```
//!
//! All other state is recovered as after a crash: run directory, cgroup tree, pidfds. A request
//! sent meanwhile waits in its connection. Signals stay blocked throughout, so none is lost.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use ash_kernel::{inherited, seqpacket};
use ash_protocol::launcher::PROTOCOL;

/// The variable with the letter's descriptor for the new program.
pub const VARIABLE: &str = "ASH_LAUNCHER_LETTER";
/// A letter contains at most 64 connections, and each sandbox once.
const MAX_LETTER: usize = 1 << 20;
const CHECK: Duration = Duration::from_secs(5);

/// How the launcher was started, and is executed again.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Path of the program, stored at the start: after an upgrade, /proc/self/exe names a removed
    /// file.
    pub program: PathBuf,
    /// The launcher created `launcher.sock` itself, and removes it at its end.
    pub own_socket: bool,
    pub under_systemd: bool,
}

/// The state for the next program, with descriptors as numbers.
#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    version: String,
    protocol: u32,
    own_socket: bool,
    under_systemd: bool,
    listener: RawFd,
    connections: Vec<RawFd>,
    /// Sandboxes whose memory is still to be reclaimed.
    reclaims: Vec<Uuid>,
    /// /dev/kmsg, which the new program cannot open.
    #[serde(default)]
    log: Option<RawFd>,
}

#[derive(Debug)]
pub struct Handed {
    pub version: String,
    pub own_socket: bool,
    pub under_systemd: bool,
    pub listener: OwnedFd,
    pub connections: Vec<OwnedFd>,
    pub reclaims: Vec<Uuid>,
    pub log: Option<OwnedFd>,
}

/// Takes the state of the previous program. `None` for a first start.
///
/// # Errors
/// A letter exists but cannot be read.
pub fn take() -> io::Result<Option<Handed>> {
    let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{VARIABLE}: {why}"));
    let number = number.to_str().and_then(|number| number.parse().ok()).ok_or_else(|| wrong("not a number"))?;
    let text = seqpacket::read_all(inherited::claim(number)?.as_fd(), MAX_LETTER)?;
    let letter: Letter = serde_json::from_slice(&text).map_err(|why| wrong(&why.to_string()))?;
    let connections: Vec<OwnedFd> = letter.connections.into_iter().map(inherited::claim).collect::<io::Result<_>>()?;
    Ok(Some(Handed {
        version: letter.version,
        own_socket: letter.own_socket,
        under_systemd: letter.under_systemd,
        listener: inherited::claim(letter.listener)?,
        // A client with another protocol reconnects and is refused.
        connections: if letter.protocol == PROTOCOL { connections } else { Vec::new() },
        reclaims: letter.reclaims,
        log: letter.log.map(inherited::claim).transpose()?,
    }))
}

/// Checks whether the program now at the path could start.
///
/// # Errors
/// The output of the check, or why it could not run.
pub fn check(origin: &Origin) -> Result<(), String> {
    let mut command = Command::new(&origin.program);
    command.args(std::env::args_os().skip(1)).arg("--check").env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", origin.program.display()))?;
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(None) if start.elapsed() < CHECK => std::thread::sleep(Duration::from_millis(2)),
            Ok(ended) => {
                // It may hang. A child that has ended needs no kill.
                let _ = child.kill();
                let said = child.wait_with_output().map(|out| String::from_utf8_lossy(&out.stderr).trim().to_owned());
                let how = ended.map_or_else(|| format!("no answer within {} s", CHECK.as_secs()), |s| s.to_string());
                return Err(format!("{} --check: {how}: {}", origin.program.display(), said.unwrap_or_default()));
            }
            Err(e) => return Err(format!("{} --check: {e}", origin.program.display())),
        }
    }
}

/// Executes the program. Returns only on a failure, with everything unchanged.
pub fn execute(
    origin: &Origin,
    listener: &OwnedFd,
    connections: &[&OwnedFd],
    reclaims: Vec<Uuid>,
    log: Option<BorrowedFd<'_>>,
) -> io::Error {
    let letter = Letter {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        own_socket: origin.own_socket,
        under_systemd: origin.under_systemd,
        listener: listener.as_raw_fd(),
        connections: connections.iter().map(|fd| fd.as_raw_fd()).collect(),
        reclaims,
        log: log.map(|log| log.as_raw_fd()),
    };
    let passing: Vec<BorrowedFd<'_>> =
        connections.iter().copied().chain([listener]).map(AsFd::as_fd).chain(log).collect();
    let go = || -> io::Result<std::convert::Infallible> {
        let file = seqpacket::sealed_memfd("ash-launcher", &serde_json::to_vec(&letter)?)?;
        for fd in passing.iter().copied().chain([file.as_fd()]) {
            inherited::keep_on_exec(fd)?;
        }
        let mut environment = vec![OsString::from(format!("{VARIABLE}={}", file.as_raw_fd()))];
        if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
            let mut variable = OsString::from("NOTIFY_SOCKET=");
            variable.push(socket);
            environment.push(variable);
        }
        let arguments: Vec<CString> = std::env::args_os().map(c_string).collect::<io::Result<_>>()?;
        let environment: Vec<CString> = environment.into_iter().map(c_string).collect::<io::Result<_>>()?;
        // Not std's exec, which unblocks every signal before.
        Ok(nix::unistd::execve(&path_string(&origin.program)?, &arguments, &environment)?)
    };
    let failed = match go() {
        Err(error) => error,
        Ok(never) => match never {},
    };
    for fd in passing {
        // Cannot fail: they are open.
        let _ = inherited::close_on_exec(fd);
    }
    failed
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(Into::into)
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(Into::into)
}
