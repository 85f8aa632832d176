//! The limits in force for a process, read from the kernel's files, not from the request.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CgroupPaths;
use super::limits::{V1_IO, V2_IO};

/// Values from here on mean "no limit". The kernel's own maximum depends on version and page size.
const UNLIMITED: u64 = 1 << 60;

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", schema(as = LimitInForce))]
pub struct LimitInForce {
    /// The name of a field of the session's limits.
    #[cfg_attr(feature = "schema", schema(example = "memoryBytes"))]
    pub name: String,
    /// In the unit of the limit. Absent if the kernel enforces none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<u64>,
    /// The controller exists, the process is in its group, and the value is a limit.
    pub enforced: bool,
    /// The file with the value, or the reason why there is none.
    pub source: String,
}

/// Reads every limit that cgroups enforce for `pid`, a process of the sandbox.
pub fn in_force(paths: &CgroupPaths, pid: i32) -> Vec<LimitInForce> {
    let files: [(&str, &Option<std::path::PathBuf>, &str); 5] = if paths.v1 {
        [
            ("memoryBytes", &paths.memory, "memory.limit_in_bytes"),
            ("memoryAndSwapBytes", &paths.memory, "memory.memsw.limit_in_bytes"),
            ("cpuMillis", &paths.cpu, "cpu.cfs_quota_us"),
            ("cpuWeight", &paths.cpu, "cpu.shares"),
            ("pids", &paths.pids, "pids.max"),
        ]
    } else {
        [
            ("memoryBytes", &paths.memory, "memory.max"),
            ("swapBytes", &paths.memory, "memory.swap.max"),
            ("cpuMillis", &paths.cpu, "cpu.max"),
            ("cpuWeight", &paths.cpu, "cpu.weight"),
            ("pids", &paths.pids, "pids.max"),
        ]
    };
    let mut all: Vec<LimitInForce> =
        files.iter().map(|(name, dir, file)| read(name, dir.as_deref(), file, pid)).collect();
    for (at, name) in ["ioReadBps", "ioWriteBps", "ioReadIops", "ioWriteIops"].into_iter().enumerate() {
        let file = if paths.v1 { V1_IO[at] } else { "io.max" };
        let pick = |text: &str| io_of(text, paths.io_device.as_deref()?, V2_IO[at]);
        all.push(read_by(name, paths.io.as_deref(), file, pid, &pick));
    }
    all
}

/// The limit of one device: `8:0 1048576` in v1, `8:0 rbps=1048576 wbps=max ...` in v2.
fn io_of(text: &str, device: &str, word: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '))?;
    let value = rest.split_whitespace().find_map(|part| part.strip_prefix(word)?.strip_prefix('='));
    value.unwrap_or(rest).trim().parse().ok()
}

fn read(name: &str, dir: Option<&Path>, file: &str, pid: i32) -> LimitInForce {
    read_by(name, dir, file, pid, &|text| parse(file, text))
}

fn read_by(name: &str, dir: Option<&Path>, file: &str, pid: i32, parse: &dyn Fn(&str) -> Option<u64>) -> LimitInForce {
    let answer = |value, enforced, source| LimitInForce { name: name.to_owned(), value, enforced, source };
    let Some(dir) = dir else {
        return answer(None, false, "this host has no such controller for sandboxes".to_owned());
    };
    let path = dir.join(file);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return answer(None, false, format!("{}: {error}", path.display())),
    };
    let value = parse(&text);
    let members = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let member = members.lines().any(|line| line.trim().parse() == Ok(pid));
    let source = if member {
        path.display().to_string()
    } else {
        format!("{}: process {pid} is not in this group", path.display())
    };
    answer(value, member && value.is_some(), source)
}

/// The value in the limit's own unit, or `None` for no limit.
fn parse(file: &str, text: &str) -> Option<u64> {
    let text = text.trim();
    match file {
        // "<microseconds> <period>" or "max <period>".
        "cpu.max" => {
            let (quota, period) = text.split_once(' ')?;
            Some(quota.parse::<u64>().ok()? * 1000 / period.parse::<u64>().ok().filter(|p| *p > 0)?)
        }
        // -1 is no limit. The period is the kernel's default of 100 ms, which `limits` also writes.
        "cpu.cfs_quota_us" => Some(text.parse::<u64>().ok()? / 100),
        "cpu.shares" => Some(text.parse::<u64>().ok()? * 100 / 1024),
        _ => text.parse::<u64>().ok().filter(|value| *value < UNLIMITED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_their_units() {
        let table = [
            ("memory.max", "2147483648\n", Some(2 << 30)),
            ("memory.max", "max\n", None),
            ("memory.limit_in_bytes", "9223372036854771712\n", None),
            ("cpu.max", "150000 100000\n", Some(1500)),
            ("cpu.max", "max 100000\n", None),
            ("cpu.cfs_quota_us", "100000\n", Some(1000)),
            ("cpu.cfs_quota_us", "-1\n", None),
            ("cpu.shares", "1024\n", Some(100)),
            ("pids.max", "512\n", Some(512)),
            ("pids.max", "max\n", None),
        ];
        for (file, text, wanted) in table {
            assert_eq!(parse(file, text), wanted, "{file} {text}");
        }
    }

    #[test]
    fn io_of_one_device() {
        let v2 = "8:0 rbps=max wbps=1048576 riops=max wiops=max\n8:16 rbps=5 wbps=6 riops=7 wiops=8\n";
        for (text, device, word, want) in [
            (v2, "8:0", "wbps", Some(1_048_576)),
            (v2, "8:0", "rbps", None),
            (v2, "8:16", "riops", Some(7)),
            (v2, "8:1", "wbps", None),
            ("8:0 1048576\n", "8:0", "rbps", Some(1_048_576)),
            ("", "8:0", "rbps", None),
        ] {
            assert_eq!(io_of(text, device, word), want, "{text} {device} {word}");
        }
    }

    #[test]
    fn a_process_elsewhere_is_not_limited() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pids.max"), "12\n").unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), "7\n8\n").unwrap();
        let paths = CgroupPaths { pids: Some(dir.path().to_owned()), ..CgroupPaths::default() };
        let pids = |pid| in_force(&paths, pid).into_iter().find(|limit| limit.name == "pids").unwrap();
        assert!(pids(8).enforced && pids(8).value == Some(12));
        assert!(!pids(9).enforced);
        assert!(in_force(&paths, 8).iter().filter(|limit| limit.enforced).count() == 1);
    }
}
