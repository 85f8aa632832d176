//! A session from a warm sandbox of its agent: time to the answer, and to the first delta of its
//! first turn. Also one that starts claude itself, in a parked sandbox and without one.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form, Samples};

/// Milliseconds from the request to the answer.
const CREATE_MS: f64 = 5.0;
/// Milliseconds from the request for the session to the first delta of its first turn.
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
    let mut figures = vec![
        Figure::times("create from a warm sandbox", &Samples::of(creates)).at_most(CREATE_MS),
        Figure::times("create from a warm sandbox to the first delta", &Samples::of(deltas)).at_most(FIRST_DELTA_MS),
    ];
    figures.extend(cold(form).await);
    figures
}

/// Two daemons that differ in `[pool] parked`, in turns.
async fn cold(form: Form) -> [Figure; 4] {
    let daemons = [0, 1].map(|parked| Daemon::start(Options::default().real_claude().parked(parked)));
    let mut created: [Vec<Duration>; 2] = Default::default();
    let mut spawned: [Vec<Duration>; 2] = Default::default();
    for daemon in &daemons {
        daemon.api().deploy("perf").await;
    }
    for round in 0..form.rounds(5, 30) {
        for (which, daemon) in daemons.iter().enumerate() {
            let api = daemon.api();
            let start = Instant::now();
            while api.get("/health").await.expect(200)["pool"]["warm"] != which {
                assert!(start.elapsed() < Duration::from_secs(30), "none is parked\n{}", daemon.logs());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let start = Instant::now();
            let id = api.session("perf").await;
            let took = start.elapsed();
            assert_eq!(api.lifecycle(&id).await[0]["path"] == "parked", which == 1, "{}", daemon.logs());
            let before_claude = until_spawned(&daemon.logs(), &id);
            api.delete(&format!("/api/sessions/{id}")).await.expect(200);
            // The first ones find nothing cached.
            if round > 0 {
                created[which].push(took);
                spawned[which].push(before_claude);
            }
        }
    }
    daemons.into_iter().for_each(Daemon::stop);
    let [nothing, parked] = created.map(Samples::of);
    let [nothing_spawned, parked_spawned] = spawned.map(Samples::of);
    [
        Figure::times("create from nothing", &nothing),
        Figure::times("create in a parked sandbox", &parked),
        Figure::times("create from nothing: until claude is spawned", &nothing_spawned),
        Figure::times("create in a parked sandbox: until claude is spawned", &parked_spawned)
            .at_most(nothing_spawned.at(0.5)),
    ]
}

/// From the journal's line about the start: the time of the steps before claude's own.
fn until_spawned(logs: &str, id: &str) -> Duration {
    let line = logs.lines().rfind(|line| line.contains("claude is ready") && line.contains(id));
    let line = line.unwrap_or_else(|| panic!("no start of {id} in\n{logs}"));
    let (before, _) = line.split_once("initialize=").unwrap_or_else(|| panic!("no steps in {line}"));
    let took = |part: &str| part.split_once("ms").and_then(|(number, _)| number.parse::<f64>().ok());
    Duration::from_secs_f64(before.split('=').filter_map(took).sum::<f64>() / 1000.0)
}
