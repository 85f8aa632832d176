//! Checks from outside whether a process has the confinement of a daemon.

use std::io;
use std::os::unix::fs::MetadataExt;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub status: String,
    pub limits: String,
    /// Owner of a file in its directory: root if it is not dumpable, otherwise its own uid
    /// (proc(5)).
    pub owner: u32,
}

/// A layer that is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub layer: &'static str,
    pub found: String,
}

/// # Errors
/// There is no such process.
pub fn facts_of(pid: u32) -> io::Result<Facts> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let owner = std::fs::metadata(format!("/proc/{pid}/environ"))?.uid();
    Ok(Facts { status: read("status")?, limits: read("limits")?, owner })
}

/// The missing layers, in the order of their setup. Whether a process of root is dumpable is not
/// visible from outside; the process checks that itself.
pub fn missing(facts: &Facts) -> Vec<Missing> {
    let field = |name: &str| {
        let line = facts.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    let mut all = Vec::new();
    let mut missing = |layer, found: String| all.push(Missing { layer, found });
    if facts.owner != 0 {
        missing(
            "not dumpable",
            format!("/proc/<pid> belongs to uid {}: other processes of that user can inspect it", facts.owner),
        );
    }
    // Name, soft limit, hard limit, unit.
    let core = facts.limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap_or_default();
    if core.split_whitespace().take(2).collect::<Vec<_>>() != ["0", "0"] {
        missing(
            "RLIMIT_CORE",
            format!("the core file limit is {}", core.split_whitespace().next().unwrap_or("unknown size")),
        );
    }
    if field("NoNewPrivs") != "1" {
        missing("no_new_privs", format!("NoNewPrivs is \"{}\"", field("NoNewPrivs")));
    }
    if field("Seccomp") != "2" {
        missing("seccomp", format!("Seccomp is \"{}\" instead of \"2\" (filter)", field("Seccomp")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_that_is_missing_is_named() {
        let whole = Facts {
            status: "Name:\tashd\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n".to_owned(),
            limits: "Limit  Soft Limit  Hard Limit  Units\nMax core file size        0                    0                    bytes\n".to_owned(),
            owner: 0,
        };
        assert_eq!(missing(&whole), []);
        let changed = |change: &dyn Fn(&mut Facts)| {
            let mut facts = whole.clone();
            change(&mut facts);
            missing(&facts).iter().map(|missing| missing.layer).collect::<Vec<_>>()
        };
        assert_eq!(changed(&|f| f.owner = 999), ["not dumpable"]);
        assert_eq!(changed(&|f| f.limits = f.limits.replace("  0  ", " unlimited ")), ["RLIMIT_CORE"]);
        assert_eq!(changed(&|f| f.limits.clear()), ["RLIMIT_CORE"]);
        assert_eq!(changed(&|f| f.status = f.status.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0")), ["no_new_privs"]);
        assert_eq!(changed(&|f| f.status = f.status.replace("Seccomp:\t2", "Seccomp:\t0")), ["seccomp"]);
        assert_eq!(changed(&|f| f.status.clear()), ["no_new_privs", "seccomp"]);
    }

    #[test]
    fn this_process_is_not_confined() {
        let facts = facts_of(std::process::id()).unwrap();
        assert!(missing(&facts).iter().any(|missing| missing.layer == "seccomp"));
        assert!(facts_of(u32::MAX).is_err());
    }
}
