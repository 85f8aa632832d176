//! Checks from outside whether the running daemons confine themselves.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Finding, failure, ok, warning};
use crate::config::Config;
use ash_kernel::confine::{facts_of, missing};
use ash_kernel::seqpacket;

/// Check, program, socket in the run directory, unit below ash.slice.
const DAEMONS: [(&str, &str, &str, &str); 3] = [
    ("ashd confines itself", "ashd", "ashd.sock", "ashd.service"),
    ("launcher confines itself", "ash-launcher", "launcher.sock", "ash-launcher.service"),
    ("gateway confines itself", "ash-gateway", "gateway.sock", "ash-gateway.service"),
];

/// Reports nothing for a daemon that does not run: another check does.
pub fn examine(config: &Config) -> Vec<Finding> {
    DAEMONS.iter().flat_map(|daemon| one(&config.run_dir, daemon)).collect()
}

fn one(run_dir: &Path, (check, program, socket, unit): &(&'static str, &str, &str, &str)) -> Vec<Finding> {
    let of_unit = processes_of(unit);
    let pids = if of_unit.is_empty() { owner(&run_dir.join(socket)).into_iter().collect() } else { of_unit };
    let named = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == *program);
    pids.into_iter().filter(named).map(|pid| judge(check, program, pid)).collect()
}

fn judge(check: &'static str, program: &str, pid: u32) -> Finding {
    let facts = match facts_of(pid) {
        Ok(facts) => facts,
        Err(error) => return warning(check, format!("/proc/{pid}: {error}"), "sudo ashctl doctor"),
    };
    let missing = missing(&facts);
    if missing.is_empty() {
        return ok(check, format!("{program} (pid {pid}): not dumpable, no core files, no_new_privs, seccomp"));
    }
    let found: Vec<String> = missing.iter().map(|missing| format!("no {}: {}", missing.layer, missing.found)).collect();
    failure(
        check,
        format!("{program} (pid {pid}): {}", found.join("; ")),
        format!("restart it with the installed version: systemctl restart {program}, or ashd stop && ashd"),
    )
}

fn processes_of(unit: &str) -> Vec<u32> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"];
    let texts =
        places.iter().filter_map(|root| fs::read_to_string(format!("{root}/ash.slice/{unit}/cgroup.procs")).ok());
    texts.take(1).flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// The listener of a socket, if that process created it.
fn owner(socket: &Path) -> Option<u32> {
    let peer = match std::os::unix::net::UnixStream::connect(socket) {
        Ok(stream) => seqpacket::peer(stream.as_fd()).ok(),
        // The other socket type.
        Err(_) => seqpacket::connect(socket, true).ok().and_then(|fd| seqpacket::peer(fd.as_fd()).ok()),
    };
    peer.and_then(|peer| u32::try_from(peer.pid).ok()).filter(|pid| *pid > 0)
}
