//! The lower half of the pause ladder with the real claude: memory that a paused session keeps
//! after reclaim to swap, time to its next first delta, and CPU use of an idle session.

use std::time::{Duration, Instant};

use crate::common::swap::Swap;
use crate::common::{Daemon, Options, procs};
use crate::figures::{Figure, Form, Samples};
use crate::turn::over_http;

const TEXT: &str = "@text Hello there.";
/// Private megabytes of a paused and reclaimed session.
const KEPT_MB: f64 = 5.0;
/// Additional milliseconds of resume and first delta after it.
const LATER_MS: f64 = 400.0;
const RECLAIMED: Duration = Duration::from_secs(30);

pub async fn measure(form: Form) -> Vec<Figure> {
    let swap = Swap::make(2 << 30);
    let daemon = Daemon::start(Options::default().real_claude().config("[pause]\nreclaim_after_ms = 0"));
    let api = daemon.api();
    api.deploy("perf").await;
    let session = api.session("perf").await;
    for _ in 0..2 {
        over_http(&api, &session, TEXT).await;
    }
    let (mut without, mut resumes, mut after, mut kept) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
    let awake = procs::private(&daemon, &session) as f64 / 1e6;
    for _ in 0..form.rounds(3, 10) {
        without.push(over_http(&api, &session, TEXT).await.first);
        api.call("POST", &format!("/api/sessions/{session}/pause"), None).await.expect(200);
        kept = kept.max(reclaimed(&daemon, &session).await);
        let start = Instant::now();
        api.call("POST", &format!("/api/sessions/{session}/resume"), None).await.expect(200);
        let resumed = start.elapsed();
        resumes.push(resumed);
        after.push(resumed + over_http(&api, &session, TEXT).await.first);
    }
    // Frozen by itself 2 s after a turn.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let window = form.rounds(5, 60);
    let before = procs::ticks(&daemon, &session);
    tokio::time::sleep(Duration::from_secs(window as u64)).await;
    let ticks = procs::ticks(&daemon, &session) - before;
    api.delete(&format!("/api/sessions/{session}")).await.expect(200);
    daemon.stop();
    drop(swap);

    let (without, after) = (Samples::of(without), Samples::of(after));
    let later = after.at(0.5) - without.at(0.5);
    vec![
        Figure::single("private memory of a session, awake", "MB", awake),
        Figure::single("private memory of a session, paused and reclaimed", "MB", kept).at_most(KEPT_MB),
        Figure::times("resume after it was reclaimed", &Samples::of(resumes)),
        Figure::times("resume and first delta after it was reclaimed", &after),
        Figure::single("first delta, added by pause, reclaim and resume", "ms", later).at_most(LATER_MS).noisy(),
        Figure::single("processor time of an idle session", "ticks", ticks as f64).of(window).at_most(0.0),
    ]
}

/// Megabytes it keeps once they no longer decrease.
pub async fn reclaimed(daemon: &Daemon, session: &str) -> f64 {
    let (start, mut last) = (Instant::now(), u64::MAX);
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = procs::private(daemon, session);
        if now as f64 <= KEPT_MB * 1e6 && now >= last || start.elapsed() > RECLAIMED {
            return now as f64 / 1e6;
        }
        last = now;
    }
}
