//! A hundred sessions of the real claude on one host: each runs a turn, is paused and reclaimed to
//! swap. Then twenty random ones are resumed and asked for what they were told.

use std::time::{Duration, Instant};

use crate::common::api::text;
use crate::common::swap::Swap;
use crate::common::{Daemon, Options, procs};
use crate::figures::{Figure, Form, Samples};

/// Private megabytes of each paused and reclaimed session.
const KEPT_MB: f64 = 5.0;
/// Swap per session before compression: more than a claude needs after one turn.
const SWAP: u64 = 320 << 20;
/// Longest wait per session for the worker, which reclaims one session after the other.
const RECLAIMED: Duration = Duration::from_secs(6);

pub async fn measure(form: Form) -> Vec<Figure> {
    let (sessions, resumed) = (form.rounds(8, 100), form.rounds(3, 20));
    let swap = Swap::make(SWAP * sessions as u64);
    let daemon = Daemon::start(Options::default().real_claude().config("[pause]\nreclaim_after_ms = 0"));
    let api = daemon.api();
    api.deploy("perf").await;
    let before = used();
    let (mut ids, mut creates, mut pauses, mut awake) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..sessions {
        let start = Instant::now();
        let id = api.session("perf").await;
        creates.push(start.elapsed());
        let said = text(&api.turn(&id, &told(n)).await);
        assert_eq!(said, "noted", "session {n}");
        awake.push(procs::private(&daemon, &id) as f64 / 1e6);
        let start = Instant::now();
        api.call("POST", &format!("/api/sessions/{id}/pause"), None).await.expect(200);
        pauses.push(start.elapsed());
        ids.push(id);
    }
    let kept = all_reclaimed(&daemon, &ids).await;
    let (held, takes) = swap.held();
    let reclaimed = used();

    let (mut resumes, mut deltas, mut wrong) = (Vec::new(), Vec::new(), 0);
    for n in chosen(sessions, resumed) {
        let id = &ids[n];
        let start = Instant::now();
        let answer = api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
        assert_eq!(answer["session"]["status"], "active");
        resumes.push(start.elapsed());
        let start = Instant::now();
        let body = serde_json::json!({"content": "@recall", "includePartialMessages": true});
        let mut stream = api.send(id, body).await;
        let first = stream.until("text_delta").await;
        deltas.push(start.elapsed());
        let said = format!("{}{}", first.data["delta"].as_str().unwrap(), text(&stream.rest().await));
        if !said.contains(&told(n)) {
            eprintln!("session {n} was told {:?} and says {said:?}", told(n));
            wrong += 1;
        }
    }
    let again = used();
    for id in &ids {
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    daemon.stop();
    drop(swap);

    let each = |bytes: f64| bytes / 1e6 / sessions as f64;
    vec![
        Figure::times("many: create, one after the other", &Samples::of(creates)),
        Figure::times("many: pause", &Samples::of(pauses)),
        Figure::single("many: private memory of a session after its turn", "MB", Samples::of_ms(awake).at(0.5))
            .of(sessions),
        Figure::single("many: the most that a paused and reclaimed one keeps", "MB", kept)
            .of(sessions)
            .at_most(KEPT_MB),
        Figure::single("many: a session in swap, before it is compressed", "MB", each(held as f64)).of(sessions),
        Figure::single("many: a session in swap, memory it takes", "MB", each(takes as f64)).of(sessions),
        Figure::single("many: memory of the host for a session, all reclaimed", "MB", each(reclaimed - before))
            .of(sessions),
        Figure::single("many: memory of the host more, second turns over", "MB", (again - reclaimed) / 1e6).of(resumed),
        Figure::times("many: resume", &Samples::of(resumes)),
        Figure::times("many: first delta of the second turn", &Samples::of(deltas)),
        Figure::single("many: second turns that do not remember the first", "count", f64::from(wrong))
            .of(resumed)
            .at_most(0.0),
    ]
}

/// What only this session is told in its first turn.
fn told(n: usize) -> String {
    format!("@text noted\nThe word of session {n} is {:x}.", (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// `many` different numbers below `of`: a random start and a stride coprime to `of`.
fn chosen(of: usize, many: usize) -> Vec<usize> {
    let start = std::process::id() as usize;
    let stride = (1..).map(|n| start % of + n).find(|stride| gcd(*stride, of) == 1).expect("1 is one at least");
    (0..many).map(|n| (start + n * stride) % of).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The most private megabytes that one of them keeps.
async fn all_reclaimed(daemon: &Daemon, ids: &[String]) -> f64 {
    let start = Instant::now();
    loop {
        let most = ids.iter().map(|id| procs::private(daemon, id)).max().unwrap_or(0) as f64 / 1e6;
        if most <= KEPT_MB || start.elapsed() > RECLAIMED * ids.len() as u32 {
            return most;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn used() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib = |field: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().unwrap()
    };
    (kib("MemTotal") - kib("MemAvailable")) * 1024.0
}
