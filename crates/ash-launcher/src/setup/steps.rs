//! Setup steps with their times and error hints.

use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use ash_protocol::launcher::Failure;

#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub steps: Vec<(String, u64)>,
    pub failure: Option<Failure>,
}

#[derive(Debug)]
pub struct Steps {
    /// Name and microseconds.
    pub done: Vec<(String, u64)>,
}

impl Steps {
    pub fn new() -> Self {
        Self { done: Vec::new() }
    }

    /// Runs one step. Steps with the same name add up.
    pub fn run<T>(&mut self, name: &str, act: impl FnOnce() -> io::Result<T>) -> Result<T, Failure> {
        let began = Instant::now();
        let outcome = act();
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        match self.done.last_mut() {
            Some((last, sum)) if last == name => *sum += took,
            _ => self.done.push((name.to_owned(), took)),
        }
        outcome.map_err(|error| failure(name, &error))
    }
}

fn failure(step: &str, error: &io::Error) -> Failure {
    let hint = hint(step, error.raw_os_error().unwrap_or(0));
    Failure { step: step.to_owned(), message: error.to_string(), hint: hint.map(str::to_owned) }
}

/// The remedy for failures that an administrator is likely to see.
fn hint(step: &str, errno: i32) -> Option<&'static str> {
    match (step, errno) {
        ("clone" | "map disk ids", libc::ENOSPC) => {
            Some("raise user.max_user_namespaces, user.max_net_namespaces and the other limits of this kind (sysctl)")
        }
        ("clone" | "map disk ids", libc::EPERM) => {
            Some("the launcher needs CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID, and a host that allows user namespaces")
        }
        ("clone", libc::EAGAIN) => {
            Some("the process limit of the host or of the launcher is reached (pids.max, ulimit -u)")
        }
        ("clone" | "map disk ids", libc::ENOSYS) => {
            Some("clone3 is required: use Linux 5.7 or newer, and no seccomp filter that blocks it")
        }
        ("open workspace" | "open home", libc::EINVAL) => Some(
            "the data directory's file system has no idmapped mounts: use ext4, xfs, btrfs (Linux 5.15) or tmpfs (6.3)",
        ),
        ("mount proc", libc::EPERM) => {
            Some("the host's own /proc is partly covered, as in a container: run the container with an unmasked /proc")
        }
        ("write id maps", libc::EPERM) => Some("the launcher needs CAP_SETUID and CAP_SETGID"),
        ("landlock", _) => Some("check that landlock is on the kernel's lsm= line; see docs/sandbox.md"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_has_its_name_its_errno_and_a_hint() {
        let mut steps = Steps::new();
        steps.run("clone", || Ok(())).unwrap();
        let failed = steps.run("open home", || Err::<(), _>(io::Error::from_raw_os_error(libc::EINVAL))).unwrap_err();
        assert_eq!(failed.step, "open home");
        assert!(failed.message.contains("os error 22"), "{failed}");
        assert!(failed.hint.unwrap().contains("idmapped"));
        assert_eq!(steps.done.len(), 2);
    }
}
