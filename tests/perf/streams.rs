//! Fifty streams at once, a delta every 20 ms on each: a client's time to the first byte.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::common::{Api, Daemon, Options};
use crate::figures::{Figure, Form, Samples};

const STREAMS: usize = 50;
/// Milliseconds to the first byte, 99th percentile.
const FIRST_MS: f64 = 50.0;
const DELTAS: usize = 100;

pub async fn measure(form: Form) -> Vec<Figure> {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    api.deploy("perf").await;
    let mut ids = Vec::new();
    for _ in 0..STREAMS {
        ids.push(api.session("perf").await);
    }
    let (mut firsts, mut deltas, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..form.rounds(2, 8) + 1 {
        let all = join_all(ids.iter().enumerate().map(|(n, id)| one(&api, id, n))).await;
        // The first round only opens the connections.
        if round > 0 {
            for times in all {
                firsts.push(times.first);
                deltas.push(times.delta);
                late.extend(times.gaps);
            }
        }
    }
    for id in &ids {
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    daemon.stop();
    vec![
        Figure::times("50 streams: first byte", &Samples::of(firsts)).p99_at_most(FIRST_MS),
        Figure::times("50 streams: first delta, which comes after 20 ms", &Samples::of(deltas)),
        Figure::times("50 streams: between two deltas, 20 ms apart", &Samples::of(late)),
    ]
}

struct Times {
    first: Duration,
    delta: Duration,
    gaps: Vec<Duration>,
}

/// They start within one interval of the deltas, as independent clients do.
async fn one(api: &Api, id: &str, n: usize) -> Times {
    tokio::time::sleep(Duration::from_micros(20_000 * n as u64 / STREAMS as u64)).await;
    let body = json!({"content": format!("@delay 20ms\n@repeat {DELTAS} word"), "includePartialMessages": true});
    let start = Instant::now();
    let mut stream = api.send(id, body).await;
    stream.next().await.expect("session_start");
    let first = start.elapsed();
    stream.until("text_delta").await;
    let (delta, mut last, mut gaps) = (start.elapsed(), Instant::now(), Vec::new());
    while let Some(frame) = stream.next().await {
        if frame.event == "text_delta" {
            gaps.push(last.elapsed());
            last = Instant::now();
        }
    }
    assert_eq!(gaps.len(), DELTAS - 1, "deltas of {id}");
    Times { first, delta, gaps }
}
