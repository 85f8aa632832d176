//! A session from a warm sandbox of its agent: until it is there, and until the first delta of its first answer.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form, Samples};

/// Milliseconds from the request to the answer (issue 4).
const CREATE_MS: f64 = 5.0;
/// Milliseconds from the request for the session to the first delta of its first turn (issue 4).
const FIRST_DELTA_MS: f64 = 300.0;

pub async fn measure(form: Form) -> Vec<Figure> {
    let daemon = Daemon::start(Options::default().real_claude().config("[pool]\nwarm = 1"));
    let api = daemon.api();
    api.deploy("perf").await;
    let (mut creates, mut deltas) = (Vec::new(), Vec::new());
    for round in 0..form.rounds(5, 12) {
        let start = Instant::now();
        while api.get("/api/agents/perf/warm").await.expect(200)["warm"]["ready"] != 1 {
            assert!(start.elapsed() < Duration::from_secs(30), "not warm\n{}", daemon.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let start = Instant::now();
        let id = api.session("perf").await;
        let created = start.elapsed();
        let mut stream = api.send(&id, json!({"content": "@text Hello there.", "includePartialMessages": true})).await;
        stream.until("text_delta").await;
        let delta = start.elapsed();
        stream.rest().await;
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
        if round > 0 {
            creates.push(created);
            deltas.push(delta);
        }
    }
    daemon.stop();
    vec![
        Figure::times("create from a warm sandbox", &Samples::of(creates)).at_most(CREATE_MS),
        Figure::times("create from a warm sandbox to the first delta", &Samples::of(deltas)).at_most(FIRST_DELTA_MS),
    ]
}
