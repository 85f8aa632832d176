//! Starts one command: forked from init, confined, checked, executed.
//!
//! The order matters. Landlock needs `no_new_privs` (inherited from init) and comes before the
//! capabilities are dropped. The uid changes while `CAP_SETUID` is there; then the capabilities are
//! cleared. seccomp, the bounding set and `no_new_privs` are inherited from init. At last, all of
//! this is verified with the kernel.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::resource::Resource;
use nix::unistd::{Gid, Pid, Uid};
use rustix::thread::CapabilitySet;
use serde::Deserialize;

use super::keeper;
use super::requests::Refusal;
use crate::policy::{processes, rlimits};
use ash_kernel::clone::{Fork, exit_now, fork};
use ash_kernel::single::{Forked, require_single_thread};
use ash_kernel::{caps, landlock, pidfd, process, seqpacket};
use ash_protocol::init::{PAYLOAD_UID, SpawnSpec};

const MAX_SPEC: usize = 1 << 20;
/// The time limit until execve. It normally takes a millisecond.
const EXEC_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Payload {
    pub pid: i32,
    /// Writing end of its stdin, non-blocking.
    pub stdin: Option<OwnedFd>,
}

/// The fields that init needs. The command's process reads the others in its own memory.
#[derive(Deserialize)]
struct Ways {
    stdin: bool,
    #[serde(default)]
    within_ms: Option<u64>,
}

/// Starts a command. `fds`: a memfd with the [`SpawnSpec`], stdout, stderr.
///
/// # Errors
/// An error of the spec, or the failed step up to execve. No process is left then.
pub fn start(fds: [OwnedFd; 3], rules: Option<&landlock::Rules>) -> Result<Payload, Refusal> {
    let [spec, stdout, stderr] = fds;
    let text = seqpacket::read_all(spec.as_fd(), MAX_SPEC).map_err(|error| Refusal::new("read spec", error))?;
    let Ways { stdin, within_ms } = serde_json::from_slice(&text).map_err(|error| Refusal::new("read spec", error))?;
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (input, feed) = if stdin { pipe().map(|(r, w)| (Some(r), Some(w))) } else { Ok((None, None)) }
        .map_err(|error| Refusal::new("pipe", error))?;
    if let Some(feed) = &feed {
        rustix::io::ioctl_fionbio(feed, true).map_err(|error| Refusal::new("pipe", error))?;
    }
    let (heard, tell) = pipe().map_err(|error| Refusal::new("pipe", error))?;
    let one = require_single_thread().map_err(|error| Refusal::new("fork", error))?;
    let pid = match fork(&one).map_err(|error| Refusal::new("fork", error))? {
        Fork::Parent(pid) => pid,
        Fork::Child(forked) => {
            drop((feed, heard));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if let Some(within) = within_ms {
                    stay_above(&forked, Duration::from_millis(within))?;
                }
                become_payload(&text, input, &stdout, &stderr, rules)
            }));
            let told = match outcome {
                Ok(Err((step, message))) => format!("{step}\n{message}"),
                _ => "start\npanicked".to_owned(),
            };
            std::fs::File::from(tell).write_all(told.as_bytes()).ok();
            exit_now(127)
        }
    };
    drop((tell, input, stdout, stderr));
    match listen(heard) {
        Ok(()) => {}
        Err(refusal) => {
            nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
            while nix::sys::wait::waitpid(Pid::from_raw(pid), None) == Err(nix::errno::Errno::EINTR) {}
            return Err(refusal);
        }
    }
    Ok(Payload { pid, stdin: feed })
}

/// Returns in a new process. This process becomes its [`keeper`] and closes all descriptors.
fn stay_above(forked: &Forked, within: Duration) -> Result<(), Failed> {
    at("keeper", nix::sys::prctl::set_child_subreaper(true))?;
    match at("keeper", fork(&forked.single()))? {
        // The outer proof is also valid in this process, and outlives its code.
        Fork::Child(inner) => {
            std::mem::forget(inner);
            Ok(())
        }
        Fork::Parent(command) => {
            // If it stayed open, the start pipe would never signal that the command runs.
            at("keeper", process::close_all_but(forked, &[]))?;
            keeper::keep(command, within)
        }
    }
}

/// Waits until execve closes the pipe. A text in it names the failed step.
fn listen(heard: OwnedFd) -> Result<(), Refusal> {
    let mut text = String::new();
    pidfd::wait_readable(heard.as_fd(), EXEC_WITHIN).map_err(|error| Refusal::new("execve", error))?;
    std::fs::File::from(heard).read_to_string(&mut text).map_err(|error| Refusal::new("execve", error))?;
    match text.split_once('\n') {
        None => Ok(()),
        Some((step, message)) => {
            let known = STEPS.iter().find(|known| **known == step).copied();
            Err(Refusal::new(known.unwrap_or("start"), message))
        }
    }
}

const STEPS: [&str; 13] = [
    "read spec",
    "keeper",
    "session",
    "stdio",
    "signals",
    "rlimits",
    "landlock",
    "ids",
    "capabilities",
    "working directory",
    "verify",
    "execve",
    "start",
];

type Failed = (&'static str, String);

fn at<T, E: ToString>(step: &'static str, outcome: Result<T, E>) -> Result<T, Failed> {
    outcome.map_err(|error| (step, error.to_string()))
}

fn become_payload(
    text: &[u8],
    input: Option<OwnedFd>,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
    rules: Option<&landlock::Rules>,
) -> Result<Infallible, Failed> {
    let spec: SpawnSpec = at("read spec", serde_json::from_slice(text))?;
    let (argv, env) = strings(&spec)?;
    at("session", nix::unistd::setsid())?;
    // Without stdin, descriptor 0 stays init's: /dev/null.
    if let Some(input) = &input {
        at("stdio", nix::unistd::dup2_stdin(input))?;
    }
    at("stdio", nix::unistd::dup2_stdout(stdout))?;
    at("stdio", nix::unistd::dup2_stderr(stderr))?;
    at("stdio", process::close_on_exec_from_3())?;
    at("signals", process::default_signals())?;
    at("rlimits", process::limit(rlimits::RLIMITS))?;
    at("priority", process::ordinary_priority())?;
    if let Some(rules) = rules {
        at("landlock", rules.enforce())?;
    }
    let (uid, gid) = (Uid::from_raw(PAYLOAD_UID), Gid::from_raw(PAYLOAD_UID));
    at("ids", nix::unistd::setresgid(gid, gid, gid))?;
    at("ids", nix::unistd::setresuid(uid, uid, uid))?;
    // After the change of user, which would count this process against the limit. At the limit, a
    // command that starts no other still runs.
    if spec.leaves_share
        && let Some(limit) = super::process_limit()
    {
        at("rlimits", process::limit(&[(Resource::RLIMIT_NPROC, processes::for_commands(limit))]))?;
    }
    at("capabilities", caps::keep_only(CapabilitySet::empty()))?;
    at("working directory", nix::unistd::chdir(spec.cwd.as_str()).map_err(|error| format!("{}: {error}", spec.cwd)))?;
    let status = at("verify", std::fs::read_to_string("/proc/self/status"))?;
    at("verify", process::check_confined(&status, PAYLOAD_UID))?;
    at("execve", nix::unistd::execve(&argv[0], &argv, &env).map_err(|error| format!("{}: {error}", spec.argv[0])))
}

fn strings(spec: &SpawnSpec) -> Result<(Vec<CString>, Vec<CString>), Failed> {
    let refused = |message: String| ("read spec", message);
    if !spec.argv.first().is_some_and(|program| program.starts_with('/')) {
        return Err(refused("argv[0] must be an absolute path".into()));
    }
    if !spec.cwd.starts_with('/') {
        return Err(refused("cwd must be an absolute path".into()));
    }
    if let Some((name, _)) = spec.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        return Err(refused(format!("\"{name}\" is not a valid name of an environment variable")));
    }
    let string = |text: String| CString::new(text).map_err(|_| refused("a string contains a zero byte".into()));
    let argv = spec.argv.iter().map(|arg| string(arg.clone())).collect::<Result<_, _>>()?;
    let env = spec.env.iter().map(|(name, value)| string(format!("{name}={value}"))).collect::<Result<_, _>>()?;
    Ok((argv, env))
}
