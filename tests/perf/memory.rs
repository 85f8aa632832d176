//! Memory of an idle ashd, and of everything besides claude that a session costs.

use std::time::Duration;

use crate::common::{Daemon, Options, leftovers, procs};
use crate::figures::{Figure, Form};
use crate::procfs::{name, pss};

/// Megabytes of the whole of ashd: 12.0 measured (docs/promises.md, Notes).
const ASHD_MB: f64 = 15.0;
/// Megabytes of launcher, init and all else of ashd per session.
const SESSION_MB: f64 = 2.0;
/// The same in both forms, because the number affects what sessions share (10: 2.0 to 2.2 MB, 20:
/// 1.7 to 1.9).
const SESSIONS: usize = 20;
/// Time for late releases.
const SETTLE: Duration = Duration::from_secs(2);

/// Daemons one after the other; the median counts. Which pages of a program's file the kernel maps
/// differs by a tenth from start to start.
const DAEMONS: usize = 3;

pub async fn measure(_form: Form) -> Vec<Figure> {
    let sessions = SESSIONS;
    let mut seen: [Vec<f64>; 7] = Default::default();
    for _ in 0..DAEMONS {
        for (all, one) in seen.iter_mut().zip(of_one(sessions).await) {
            all.push(one);
        }
    }
    let [idle, busy, gateway, keepers, launcher, init, grown] = seen.clone().map(median);
    let [.., launchers, inits, growths] = &seen;
    let whole =
        launchers.iter().zip(inits).zip(growths).map(|((launcher, init), grown)| launcher + init + grown.max(0.0));
    let whole = median(whole.collect());
    vec![
        Figure::single("memory of ashd, idle", "MB", idle).at_most(ASHD_MB),
        Figure::single("memory of ashd, with the sessions", "MB", busy).of(sessions),
        Figure::single("memory of the gateway, idle", "MB", gateway),
        Figure::single("memory of both keepers, idle", "MB", keepers),
        Figure::single("memory of the launcher, with the sessions", "MB", launcher).of(sessions),
        Figure::single("memory of a session's init", "MB", init).of(sessions),
        Figure::single("memory that ashd and gateway take more for a session", "MB", grown).of(sessions),
        Figure::single("memory of ours for a session: init, growth, and the whole launcher", "MB", whole)
            .of(sessions)
            .at_most(SESSION_MB),
    ]
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// In the order of the figures, without the last.
async fn of_one(sessions: usize) -> [f64; 7] {
    let daemon = Daemon::start(Options::default().real_claude());
    let api = daemon.api();
    api.deploy("perf").await;
    tokio::time::sleep(SETTLE).await;
    let before = Ours::of(&daemon, &[]);

    let mut ids = Vec::new();
    for _ in 0..sessions {
        let id = api.session("perf").await;
        api.turn(&id, "@text Hello there.").await;
        ids.push(id);
    }
    tokio::time::sleep(SETTLE).await;
    let after = Ours::of(&daemon, &ids);
    for id in &ids {
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    daemon.stop();

    let n = sessions as f64;
    let inits = after.inits / n;
    // Growth of the processes that serve all sessions, divided by the sessions.
    let grown = (after.ashd + after.gateway + after.keepers - before.ashd - before.gateway - before.keepers) / n;
    [before.ashd, after.ashd, before.gateway, before.keepers, after.launcher, inits, grown]
}

/// Proportional set sizes in megabytes (1,000,000 bytes).
#[derive(Default)]
struct Ours {
    ashd: f64,
    launcher: f64,
    gateway: f64,
    keepers: f64,
    inits: f64,
}

impl Ours {
    fn of(daemon: &Daemon, sessions: &[String]) -> Self {
        let inside: Vec<i32> =
            sessions.iter().flat_map(|id| procs::of_session(daemon, id)).map(|process| process.pid).collect();
        // ashd itself is not among them: its command line and environment no longer name the
        // daemon.
        let ashd = pss(daemon.pid() as i32).expect("ashd lives") as f64 / 1e6;
        let mut sum = Self { ashd, ..Self::default() };
        for (pid, command) in leftovers::processes(daemon) {
            let Some(bytes) = pss(pid) else { continue };
            let megabytes = bytes as f64 / 1e6;
            match name(pid).as_str() {
                "ash-launcher" => sum.launcher += megabytes,
                "ash-gateway" => sum.gateway += megabytes,
                "ash-keeper" => sum.keepers += megabytes,
                "ash-init" => sum.inits += megabytes,
                _ if inside.contains(&pid) => {}
                other => panic!("a process nobody counts: {pid} {other} {command}"),
            }
        }
        for (what, megabytes) in [("launcher", sum.launcher), ("gateway", sum.gateway)] {
            assert!(megabytes > 0.0, "no {what} was found");
        }
        assert!(sessions.is_empty() || sum.inits > 0.0, "no init was found");
        sum
    }
}
