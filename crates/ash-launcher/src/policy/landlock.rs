//! Landlock rules: allowed use of each path. All other paths are refused, whatever their mode.

use ash_kernel::landlock::Right;

/// A path inside the sandbox, its allowed use, and the reason.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub path: &'static str,
    pub right: Right,
    pub why: &'static str,
}

const fn rule(path: &'static str, right: Right, why: &'static str) -> Rule {
    Rule { path, right, why }
}

/// Rights add up along a path. A rule on `/` applies to everything, so it only allows listing.
pub const RULES: &[Rule] = &[
    rule("/", Right::List, "ls / and find; there is nothing in the sandbox whose name is a secret"),
    rule("/usr", Right::ReadExecute, "programs, libraries, headers"),
    rule("/etc", Right::Read, "the curated files of policy::etc"),
    rule("/opt/claude", Right::ReadExecute, "claude itself, which runs itself again as rg, grep and find"),
    rule("/opt/ashd", Right::ReadExecute, "ash-probe, which measures the sandbox from within"),
    rule(
        "/proc",
        Right::Read,
        "ps, /proc/self, cpuinfo, meminfo; nothing in it may be written, not even oom_score_adj",
    ),
    rule("/dev", Right::Device, "null, zero, full, random, urandom, tty, ptmx, pts/*, fd/*"),
    rule("/dev/shm", Right::Full, "POSIX shared memory and semaphores: python's multiprocessing, browsers"),
    rule("/run", Right::Full, "run files of the payload's own servers"),
    rule("/tmp", Right::Full, "temporary files, sockets, compilers"),
    rule("/workspace", Right::Full, "the work"),
    rule("/home/agent", Right::Full, "claude's own state, caches of package managers"),
];

/// Directories of a host whose `/bin` and others are not links to `/usr`. They get the same rights
/// as `/usr`.
pub const UNMERGED: &[&str] = &["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
