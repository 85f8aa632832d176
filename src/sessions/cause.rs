//! Why a process ended, in words for the client. The parsing is pure; [`OomCount`] reads two small files.

use serde_json::{Value, json};

use crate::launcher::init_protocol::Exit;
use crate::launcher::protocol::CgroupPaths;
use crate::model::Limit;

/// Kills by the out-of-memory killer in a sandbox's cgroup so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OomCount(pub u64);

impl OomCount {
    /// Reads `memory.events` (v2) or `memory.oom_control` (v1). Zero where the host has no such controller.
    pub fn read(cgroup: &CgroupPaths) -> Self {
        let Some(dir) = &cgroup.memory else { return Self(0) };
        let file = if cgroup.v1 { "memory.oom_control" } else { "memory.events" };
        // A file that cannot be read (the group is gone) gives no cause; the exit status is told all the same.
        Self(std::fs::read_to_string(dir.join(file)).map_or(0, |text| parse(&text)))
    }
}

/// The number behind `oom_kill` (both files have that line).
fn parse(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The words for the end of claude. `memory_bytes` is the limit that was in force.
pub fn exited(status: Exit, oom_killed: bool, memory_bytes: u64, stderr: &str) -> String {
    let what = match status {
        _ if oom_killed => format!(
            "claude was killed because the sandbox reached its memory limit of {} MiB; raise memoryBytes (PATCH .../limits) or let the agent use less",
            memory_bytes >> 20
        ),
        Exit::Code(code) => format!("claude exited with status {code}"),
        Exit::Signal(signal) => match signal_name(signal) {
            Some(name) => format!("claude was killed by signal {signal} ({name})"),
            None => format!("claude was killed by signal {signal}"),
        },
    };
    if stderr.is_empty() || oom_killed { what } else { format!("{what}: {stderr}") }
}

/// The words for the end of a whole sandbox.
pub fn sandbox_died(oom_killed: bool, memory_bytes: u64) -> String {
    if oom_killed {
        format!("the sandbox was killed because it reached its memory limit of {} MiB", memory_bytes >> 20)
    } else {
        "the sandbox was killed from outside".to_owned()
    }
}

/// The short word for logs, events and metrics.
pub fn reason(oom_killed: bool, status: Option<Exit>) -> &'static str {
    match status {
        _ if oom_killed => "oom",
        None => "sandbox-died",
        Some(Exit::Signal(_)) => "signal",
        Some(Exit::Code(_)) => "exit",
    }
}

/// Fields of the `killed` event, for what was a kill and not an end of its own.
pub fn killed(oom: bool, status: Option<Exit>, memory_bytes: u64, peak_bytes: Option<u64>) -> Option<Value> {
    let mut data = match status {
        Some(Exit::Code(_)) if !oom => return None,
        Some(Exit::Signal(signal)) => json!({ "process": "claude", "signal": signal }),
        Some(Exit::Code(_)) => json!({ "process": "a process of the sandbox" }),
        None => json!({ "process": "every process of the sandbox" }),
    };
    if oom {
        data["limit"] = json!(Limit::MemoryBytes);
        data["value"] = json!(memory_bytes);
        data["peakBytes"] = json!(peak_bytes);
    }
    Some(data)
}

fn signal_name(signal: i32) -> Option<&'static str> {
    nix::sys::signal::Signal::try_from(signal).ok().map(nix::sys::signal::Signal::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        for (text, want) in [
            ("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n", 2),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7),
            ("", 0),
            ("oom_kill x\n", 0),
        ] {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_words() {
        let limit = 64 << 20;
        assert_eq!(exited(Exit::Code(1), false, limit, ""), "claude exited with status 1");
        assert_eq!(exited(Exit::Code(1), false, limit, "boom"), "claude exited with status 1: boom");
        assert_eq!(exited(Exit::Signal(9), false, limit, ""), "claude was killed by signal 9 (SIGKILL)");
        assert!(exited(Exit::Signal(9), true, limit, "").contains("memory limit of 64 MiB"));
        assert_eq!(reason(true, Some(Exit::Signal(9))), "oom");
        assert_eq!(killed(false, Some(Exit::Code(1)), limit, None), None);
        let data = killed(true, Some(Exit::Signal(9)), limit, Some(7)).unwrap();
        assert_eq!((&data["process"], &data["peakBytes"]), (&json!("claude"), &json!(7)));
        assert_eq!(killed(false, Some(Exit::Signal(15)), limit, None).unwrap()["signal"], 15);
    }
}
