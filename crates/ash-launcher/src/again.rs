//! The launcher put in place of itself: the same process, a new program. Sandboxes keep their parent and notice nothing.
//!
//! ```text
//!   SIGUSR2 --> `<own path> <own arguments> --check` --fails--> says why, goes on as it is
//!                    | succeeds
//!                    v
//!   no request is read any more; the ends under way are finished (10 s at most)
//!                    v
//!   Letter (a sealed file), listener and connections pass through execve(2) --> claimed by the new program
//! ```
//!
//! What is not in the letter is found again as after a crash: run directory, cgroup tree, pidfds. A request that a client
//! has sent meanwhile waits in its connection. Signals stay blocked throughout, so one that comes in between is not lost.

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

/// Names the letter's descriptor to the new program.
pub const VARIABLE: &str = "ASH_LAUNCHER_LETTER";
/// A letter names at most 64 connections and each sandbox once.
const MAX_LETTER: usize = 1 << 20;
/// How long the new program may take to check itself.
const CHECK: Duration = Duration::from_secs(5);

/// What a launcher was started as, which is what it is executed as again.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Path of the program. Kept from the start: later, /proc/self/exe would name a file that an upgrade removed.
    pub program: PathBuf,
    /// It made `launcher.sock` itself, and removes it at its end.
    pub own_socket: bool,
    /// Its stderr is the journal.
    pub under_systemd: bool,
}

/// What passes from one program to the next, by descriptor number.
#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    version: String,
    protocol: u32,
    own_socket: bool,
    under_systemd: bool,
    listener: RawFd,
    connections: Vec<RawFd>,
    /// Sandboxes whose memory was still to be pushed out.
    reclaims: Vec<Uuid>,
    /// /dev/kmsg, which the new program could not open.
    #[serde(default)]
    log: Option<RawFd>,
}

/// What the program before handed over.
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

/// Takes what the program before left; `None` for a first start.
///
/// # Errors
/// A letter that is there and cannot be read.
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
        // Whoever speaks another protocol connects again, and is told so.
        connections: if letter.protocol == PROTOCOL { connections } else { Vec::new() },
        reclaims: letter.reclaims,
        log: letter.log.map(inherited::claim).transpose()?,
    }))
}

/// Asks the program that lies at the path now whether it could start.
///
/// # Errors
/// What it says, or why it cannot be asked.
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
                // One that hangs; a child that has ended needs no kill.
                let _ = child.kill();
                let said = child.wait_with_output().map(|out| String::from_utf8_lossy(&out.stderr).trim().to_owned());
                let how = ended.map_or_else(|| format!("no answer within {} s", CHECK.as_secs()), |s| s.to_string());
                return Err(format!("{} --check: {how}: {}", origin.program.display(), said.unwrap_or_default()));
            }
            Err(e) => return Err(format!("{} --check: {e}", origin.program.display())),
        }
    }
}

/// Executes the program; returns only when that fails, with everything as it was.
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
        // Not std's exec, which would unblock every signal just before.
        Ok(nix::unistd::execve(&path_string(&origin.program)?, &arguments, &environment)?)
    };
    let failed = match go() {
        Err(error) => error,
        Ok(never) => match never {},
    };
    for fd in passing {
        // They were open a moment ago.
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
