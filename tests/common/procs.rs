//! The processes of one session, seen from the host.

use std::fs;
use std::path::{Path, PathBuf};

use super::Daemon;

/// A process of a sandbox, by its id on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc {
    pub pid: i32,
    /// The name in `/proc/<pid>/comm`.
    pub name: String,
}

/// Every process in the cgroups of this session, init included.
pub fn of_session(daemon: &Daemon, session: &str) -> Vec<Proc> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.contains(session) && groups.contains(&daemon.cgroup) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
            found.push(Proc { pid, name });
        }
    }
    found
}

/// claude: the process whose executable is `/opt/claude/claude` in its sandbox.
pub fn claude(daemon: &Daemon, session: &str) -> Proc {
    let all = of_session(daemon, session);
    let is_it = |p: &&Proc| fs::read(p.dir().join("cmdline")).is_ok_and(|c| c.starts_with(b"/opt/claude/claude\0"));
    all.iter().find(is_it).cloned().unwrap_or_else(|| panic!("no claude among {all:?}"))
}

impl Proc {
    pub fn dir(&self) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string())
    }

    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir().join(name)).unwrap_or_default()).into_owned()
    }

    pub fn status(&self, field: &str) -> String {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field} of {self:?}")).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Clock ticks of user and system time so far.
    pub fn ticks(&self) -> u64 {
        let stat = self.read("stat");
        let (_, rest) = stat.rsplit_once(')').unwrap_or(("", "0"));
        // Fields 14 and 15 of the line; the first field after the name is field 3.
        rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
    }

    pub fn namespace(&self, kind: &str) -> PathBuf {
        fs::read_link(self.dir().join("ns").join(kind)).unwrap()
    }

    pub fn kill9(&self) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

pub fn frozen(daemon: &Daemon, session: &str) -> bool {
    let groups = super::leftovers::cgroups(&daemon.cgroup).into_iter().filter(|dir| dir.ends_with(session));
    let mut events = groups.filter_map(|dir| fs::read_to_string(dir.join("cgroup.events")).ok());
    events.any(|text| text.contains("frozen 1"))
}

/// CPU time of all processes of a session so far, in clock ticks.
pub fn ticks(daemon: &Daemon, session: &str) -> u64 {
    of_session(daemon, session).iter().map(Proc::ticks).sum()
}

/// Private resident bytes of all processes of a session, without clean pages of files: the kernel
/// drops those when memory is short, and other sessions share them.
pub fn private(daemon: &Daemon, session: &str) -> u64 {
    let kib = |text: String| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap_or("0 kB");
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    };
    of_session(daemon, session).into_iter().map(|p| kib(p.read("smaps_rollup"))).sum::<u64>() * 1024
}
