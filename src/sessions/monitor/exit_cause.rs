//! Why a process ended, as text for the client. The parsing is pure; [`OomCount`] reads two small
//! files.

use serde_json::{Value, json};

use ash_model::Limit;
use ash_protocol::init::Exit;
use ash_protocol::launcher::{CgroupPaths, Victim};

/// Out-of-memory counters of a sandbox's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomCount {
    /// Processes that the kernel killed.
    kills: u64,
    /// How often the group or one below it reached its limit; `None` on v1, which does not count
    /// it.
    reached: Option<u64>,
}

/// Kills between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kills {
    pub number: u64,
    /// The sandbox's own limits were not reached: a limit above was (`ash.slice`, for example), or
    /// the host ran out of memory.
    pub above: bool,
}

impl OomCount {
    /// Reads `memory.events` (v2) or `memory.oom_control` (v1). Zero without the controller.
    pub fn read(cgroup: &CgroupPaths) -> Self {
        let Some(dir) = &cgroup.memory else { return Self::default() };
        let file = if cgroup.v1 { "memory.oom_control" } else { "memory.events" };
        // Without the file (the group is gone) the exit status alone is reported.
        std::fs::read_to_string(dir.join(file)).map_or_else(|_| Self::default(), |text| Self::parse(&text))
    }

    /// Both files have `oom_kill`. `oom` counts for the group whose limit was reached, `oom_kill`
    /// for the group of the process (Documentation/admin-guide/cgroup-v2.rst, memory.events): a
    /// kill without `oom` has its cause above.
    fn parse(text: &str) -> Self {
        let number = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Self { kills: number("oom_kill ").unwrap_or(0), reached: number("oom ") }
    }

    pub fn since(self, before: Self) -> Kills {
        let above = self.reached.is_some() && self.reached == before.reached;
        Kills { number: self.kills.saturating_sub(before.kills), above }
    }
}

/// Out-of-memory kills and their victims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oom {
    limit_bytes: u64,
    kills: Kills,
    /// Empty when unknown.
    victims: Vec<Victim>,
}

impl Oom {
    /// `limit_bytes` was in force. `all` are all victims of this sandbox, oldest first; the newest
    /// `kills` count.
    pub fn new(limit_bytes: u64, kills: Kills, mut all: Vec<Victim>) -> Self {
        let old = all.len().saturating_sub(usize::try_from(kills.number).unwrap_or(usize::MAX));
        all.drain(..old);
        Self { limit_bytes, kills, victims: all }
    }

    fn of_host(&self) -> bool {
        self.victims.iter().any(|victim| victim.of_host)
    }

    /// `node (512 MiB), cc1 (80 MiB)`; `None` when unknown.
    fn names(&self) -> Option<String> {
        const SHOWN: usize = 4;
        let name = |victim: &Victim| format!("{} ({} MiB)", victim.process, victim.resident_bytes >> 20);
        let mut names: Vec<String> = self.victims.iter().take(SHOWN).map(name).collect();
        if self.victims.len() > SHOWN {
            names.push(format!("{} more", self.victims.len() - SHOWN));
        }
        (!names.is_empty()).then(|| names.join(", "))
    }

    fn why(&self) -> String {
        match (self.of_host(), self.kills.above) {
            (true, _) => "the host ran out of memory".to_owned(),
            (false, true) => "a memory limit above the sandbox's own was reached by all sandboxes together".to_owned(),
            (false, false) => format!("the sandbox reached its memory limit of {} MiB", self.limit_bytes >> 20),
        }
    }

    fn way_out(&self) -> &'static str {
        match (self.of_host(), self.kills.above) {
            (true, _) => "add memory or swap to the host, or run fewer sessions",
            (false, true) => "raise MemoryMax= of ash.slice (systemctl set-property), or run fewer sessions",
            (false, false) => "raise memoryBytes (PATCH .../limits) or reduce the agent's memory use",
        }
    }

    /// Whether a process of that name may have been among the victims.
    pub fn may_have_killed(&self, process: &str) -> bool {
        self.victims.is_empty() || self.victims.iter().any(|victim| victim.process == process)
    }

    pub fn words(&self) -> String {
        let whom = self.names().unwrap_or_else(|| format!("{} of its processes", self.kills.number));
        format!("{}: the kernel killed {whom}", self.why())
    }

    /// Fields of the `killed` event.
    pub fn data(&self, peak_bytes: Option<u64>) -> Value {
        let mut data = json!({ "peakBytes": peak_bytes, "process": "a process of the sandbox" });
        if let Some(victim) = self.victims.first() {
            data["process"] = json!(victim.process);
            data["pid"] = json!(victim.pid);
            data["residentBytes"] = json!(victim.resident_bytes);
        }
        if self.of_host() {
            data["hostOutOfMemory"] = json!(true);
        } else if self.kills.above {
            data["limitAbove"] = json!(true);
        } else {
            data["limit"] = json!(Limit::MemoryBytes);
            data["value"] = json!(self.limit_bytes);
        }
        data
    }
}

/// Message for the end of claude.
pub fn exited(status: Exit, oom: Option<&Oom>, stderr: &str) -> String {
    if let Some(oom) = oom {
        let whom = oom.names().map(|names| format!(" (the kernel killed {names})")).unwrap_or_default();
        let how = match status {
            Exit::Signal(_) => "was killed".to_owned(),
            Exit::Code(code) => format!("exited with status {code}"),
        };
        return format!("claude {how} because {}{whom}; {}", oom.why(), oom.way_out());
    }
    let what = match status {
        Exit::Code(code) => format!("claude exited with status {code}"),
        Exit::Signal(signal) => match signal_name(signal) {
            Some(name) => format!("claude was killed by signal {signal} ({name})"),
            None => format!("claude was killed by signal {signal}"),
        },
    };
    if stderr.is_empty() { what } else { format!("{what}: {stderr}") }
}

/// Message for the end of a whole sandbox.
pub fn sandbox_died(oom: Option<&Oom>) -> String {
    match oom {
        Some(oom) => {
            let whom = oom.names().map(|names| format!(" (the kernel chose {names})")).unwrap_or_default();
            format!("the sandbox was killed because {}{whom}; {}", oom.why(), oom.way_out())
        }
        None => "the sandbox was killed from outside".to_owned(),
    }
}

/// Short reason for logs, events and metrics.
pub fn reason(oom_killed: bool, status: Option<Exit>) -> &'static str {
    match status {
        _ if oom_killed => "oom",
        None => "sandbox-died",
        Some(Exit::Signal(_)) => "signal",
        Some(Exit::Code(_)) => "exit",
    }
}

/// Fields of the `killed` event; `None` when the process exited by itself.
pub fn killed(oom: Option<&Oom>, status: Option<Exit>, peak_bytes: Option<u64>) -> Option<Value> {
    let mut data = match oom {
        Some(oom) => oom.data(peak_bytes),
        None => json!({}),
    };
    let whole = match status {
        Some(Exit::Code(_)) if oom.is_none() => return None,
        Some(Exit::Code(_)) => None,
        Some(Exit::Signal(signal)) => {
            data["signal"] = json!(signal);
            Some("claude")
        }
        None => Some("every process of the sandbox"),
    };
    // The kernel's victims are more specific than all processes that died with them.
    if let Some(whole) = whole.filter(|_| oom.is_none_or(|oom| oom.victims.is_empty())) {
        data["process"] = json!(whole);
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
        for (text, kills, reached) in [
            ("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n", 2, Some(3)),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7, None),
            ("", 0, None),
            ("oom_kill x\n", 0, None),
        ] {
            assert_eq!(OomCount::parse(text), OomCount { kills, reached }, "{text:?}");
        }
    }

    #[test]
    fn a_kill_without_a_limit_of_its_own_comes_from_above() {
        let count = |kills, reached| OomCount { kills, reached };
        for (before, now, number, above) in [
            (count(0, Some(0)), count(1, Some(1)), 1, false),
            (count(2, Some(1)), count(5, Some(1)), 3, true),
            (count(0, Some(0)), count(1, Some(0)), 1, true),
            (count(0, None), count(1, None), 1, false),
        ] {
            assert_eq!(now.since(before), Kills { number, above }, "{before:?} {now:?}");
        }
    }

    fn kills(number: u64) -> Kills {
        Kills { number, above: false }
    }

    fn victim(process: &str, of_host: bool) -> Victim {
        Victim { process: process.to_owned(), pid: 7, resident_bytes: 50 << 20, of_host }
    }

    #[test]
    fn the_words() {
        let none = Oom::new(64 << 20, kills(1), Vec::new());
        let hog = Oom::new(64 << 20, kills(1), vec![victim("old", false), victim("hog", false)]);
        let host = Oom::new(64 << 20, kills(1), vec![victim("claude", true)]);
        assert_eq!(exited(Exit::Code(1), None, ""), "claude exited with status 1");
        assert_eq!(exited(Exit::Code(1), None, "boom"), "claude exited with status 1: boom");
        assert_eq!(exited(Exit::Signal(9), None, ""), "claude was killed by signal 9 (SIGKILL)");
        assert!(
            exited(Exit::Signal(9), Some(&none), "")
                .contains("killed because the sandbox reached its memory limit of 64 MiB;")
        );
        assert!(exited(Exit::Code(3), Some(&hog), "").contains("exited with status 3 because"));
        assert!(exited(Exit::Signal(9), Some(&host), "").contains("because the host ran out of memory"));
        assert_eq!(hog.words(), "the sandbox reached its memory limit of 64 MiB: the kernel killed hog (50 MiB)");
        assert!(none.may_have_killed("claude") && host.may_have_killed("claude") && !hog.may_have_killed("claude"));
        assert!(Oom::new(1, kills(3), Vec::new()).words().ends_with("killed 3 of its processes"));
        assert!(sandbox_died(Some(&hog)).contains("the kernel chose hog (50 MiB)"));
        let many = Oom::new(1, kills(9), vec![victim("x", false); 9]);
        assert!(many.words().ends_with("x (50 MiB), 5 more"), "{}", many.words());
    }

    #[test]
    fn the_fields() {
        let hog = Oom::new(64 << 20, kills(1), vec![victim("hog", false)]);
        assert_eq!(reason(true, Some(Exit::Signal(9))), "oom");
        assert_eq!(killed(None, Some(Exit::Code(1)), None), None);
        assert_eq!(killed(None, Some(Exit::Signal(15)), None).unwrap()["signal"], 15);
        let data = killed(Some(&hog), Some(Exit::Signal(9)), Some(7)).unwrap();
        assert_eq!((&data["process"], &data["peakBytes"], &data["pid"]), (&json!("hog"), &json!(7), &json!(7)));
        assert_eq!((&data["limit"], &data["value"]), (&json!("memoryBytes"), &json!(64 << 20)));
        let unknown = Oom::new(64 << 20, kills(1), Vec::new());
        assert_eq!(killed(Some(&unknown), Some(Exit::Signal(9)), None).unwrap()["process"], "claude");
        assert_eq!(killed(Some(&unknown), None, None).unwrap()["process"], "every process of the sandbox");
        let host = Oom::new(64 << 20, kills(1), vec![victim("claude", true)]);
        let data = killed(Some(&host), Some(Exit::Signal(9)), None).unwrap();
        assert_eq!((&data["hostOutOfMemory"], data.get("limit")), (&json!(true), None));
        let above = Oom::new(64 << 20, Kills { number: 1, above: true }, vec![victim("claude", false)]);
        let data = killed(Some(&above), None, None).unwrap();
        assert_eq!((&data["limitAbove"], data.get("limit")), (&json!(true), None));
        let said = sandbox_died(Some(&above));
        assert!(
            said.contains("limit above the sandbox's own") && said.contains("ash.slice") && !said.contains("64"),
            "{said}"
        );
    }
}
