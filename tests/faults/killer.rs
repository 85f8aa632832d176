//! Chooses the next process to kill.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Toll;
use crate::common::{Daemon, leftovers, procs};
use crate::link::Link;

/// A keeper gives up on a launcher or gateway that crashes more than ten times a minute.
const COMPANION_EVERY: Duration = Duration::from_millis(6500);

/// Random numbers, reproducible by their seed (xorshift, Marsaglia 2003).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

#[derive(Default)]
pub struct Counts {
    ashd: usize,
    in_start: usize,
    terminated: usize,
    launcher: usize,
    gateway: usize,
    init: usize,
    claude: usize,
    readers: usize,
    pauses: usize,
    interrupts: usize,
    slowest_start: Duration,
}

impl Counts {
    fn kills(&self) -> usize {
        self.ashd
            + self.in_start
            + self.terminated
            + self.launcher
            + self.gateway
            + self.init
            + self.claude
            + self.readers
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills: ashd {} ({} more in its start, {} by SIGTERM), launcher {}, gateway {}, init {}, claude {}, readers {}; \
             {} pauses, {} interrupts; slowest start of ashd {:?}",
            self.kills(),
            self.ashd,
            self.in_start,
            self.terminated,
            self.launcher,
            self.gateway,
            self.init,
            self.claude,
            self.readers,
            self.pauses,
            self.interrupts,
            self.slowest_start
        )
    }
}

pub struct Killer {
    daemon: Daemon,
    link: Link,
    tolls: Vec<Arc<Toll>>,
    dice: Dice,
    runtime: tokio::runtime::Handle,
    counts: Counts,
    launcher_at: Instant,
    gateway_at: Instant,
    /// Until then ashd is not killed: on a busy machine a start takes long, and kills without work
    /// in between prove nothing.
    spared: Instant,
}

impl Killer {
    pub fn new(daemon: Daemon, link: Link, tolls: Vec<Arc<Toll>>, seed: u64, runtime: tokio::runtime::Handle) -> Self {
        let (dice, now) = (Dice::new(seed), Instant::now());
        let counts = Counts::default();
        Self { daemon, link, tolls, dice, runtime, counts, launcher_at: now, gateway_at: now, spared: now }
    }

    pub fn done(self) -> (Daemon, Counts) {
        (self.daemon, self.counts)
    }

    pub fn run(&mut self, kills: usize) {
        while self.counts.kills() < kills {
            std::thread::sleep(Duration::from_millis(10 + self.dice.below(250)));
            match self.dice.below(100) {
                0..30 => self.ashd(),
                30..40 => self.launcher(),
                40..50 => self.gateway(),
                50..60 => self.init(),
                60..70 => self.claude(),
                70..88 => {
                    self.any().cut.notify_one();
                    self.counts.readers += 1;
                }
                88..95 => self.pause(),
                _ => self.interrupt(),
            }
        }
    }

    fn any(&mut self) -> Arc<Toll> {
        let n = self.dice.below(self.tolls.len() as u64) as usize;
        Arc::clone(&self.tolls[n])
    }

    fn ashd(&mut self) {
        if Instant::now() < self.spared {
            return;
        }
        match self.dice.below(10) {
            0 => {
                self.daemon.terminate();
                self.counts.terminated += 1;
            }
            _ => {
                self.daemon.kill9();
                self.counts.ashd += 1;
            }
        }
        while self.dice.below(4) == 0 {
            self.daemon.kill_in_start(Duration::from_millis(self.dice.below(250)));
            self.counts.in_start += 1;
        }
        if self.dice.below(3) == 0 {
            // A longer downtime: events that no process observes.
            match self.dice.below(3) {
                0 => self.init(),
                1 => self.claude(),
                _ => self.launcher(),
            }
            std::thread::sleep(Duration::from_millis(self.dice.below(400)));
        }
        let start = Instant::now();
        self.daemon.restart();
        let took = start.elapsed();
        self.counts.slowest_start = self.counts.slowest_start.max(took);
        self.spared = Instant::now() + took * 3;
        self.link.moved(self.daemon.port);
    }

    fn launcher(&mut self) {
        if self.launcher_at.elapsed() > COMPANION_EVERY && self.companion("ash-launcher") {
            self.launcher_at = Instant::now();
            self.counts.launcher += 1;
        }
    }

    fn gateway(&mut self) {
        if self.gateway_at.elapsed() > COMPANION_EVERY && self.companion("ash-gateway") {
            self.gateway_at = Instant::now();
            self.counts.gateway += 1;
        }
    }

    /// Found by its executable: its keeper has another one, and init in a sandbox has another name.
    fn companion(&self, program: &str) -> bool {
        let is_it = |pid: i32| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with(program))
                && std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|c| !self.in_a_sandbox(&c))
        };
        let found = leftovers::processes(&self.daemon).into_iter().find(|(pid, _)| is_it(*pid));
        found.is_some_and(|(pid, _)| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    }

    fn in_a_sandbox(&self, cgroup: &str) -> bool {
        self.tolls.iter().any(|toll| cgroup.contains(&toll.id))
    }

    fn init(&mut self) {
        let toll = self.any();
        // The ancestor of every other process of the sandbox.
        let all = procs::of_session(&self.daemon, &toll.id);
        let is_init = |p: &&procs::Proc| {
            let parent: i32 = p.status("PPid").parse().unwrap_or(0);
            !all.iter().any(|other| other.pid == parent)
        };
        let found = std::panic::catch_unwind(|| all.iter().find(is_init).map(|p| p.pid));
        if let Ok(Some(pid)) = found {
            self.strike(&toll, pid);
            self.counts.init += 1;
        }
    }

    fn claude(&mut self) {
        let toll = self.any();
        let all = procs::of_session(&self.daemon, &toll.id);
        let is_it = |p: &&procs::Proc| p.read("cmdline").starts_with("/opt/claude/claude\0");
        if let Some(pid) = all.iter().find(is_it).map(|p| p.pid) {
            self.strike(&toll, pid);
            self.counts.claude += 1;
        }
    }

    fn strike(&self, toll: &Toll, pid: i32) {
        // Counted first: the consequences may be visible at once.
        toll.kills.fetch_add(1, Ordering::SeqCst);
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }

    /// A pause of up to half a second, often during a turn.
    fn pause(&mut self) {
        let (toll, link, long) = (self.any(), self.link.clone(), self.dice.below(500));
        self.counts.pauses += 1;
        self.runtime.spawn(async move {
            let path = |verb: &str| format!("/api/sessions/{}/{verb}", toll.id);
            let _ = link.call(Method::POST, &path("pause"), None).await;
            tokio::time::sleep(Duration::from_millis(long)).await;
            // Until it is accepted: a session that stays paused during a turn would look like a
            // hang.
            while link.call(Method::POST, &path("resume"), None).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    fn interrupt(&mut self) {
        let (toll, link) = (self.any(), self.link.clone());
        self.counts.interrupts += 1;
        self.runtime.spawn(async move {
            toll.interrupts.fetch_add(1, Ordering::SeqCst);
            let _ = link.call(Method::POST, &format!("/api/sessions/{}/interrupt", toll.id), None).await;
        });
    }
}
