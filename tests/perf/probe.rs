//! Time that the measurement of confinement adds to a start: the probe in a fresh sandbox, by the
//! same path as claude, until ashd has its result. In the pool it runs in advance: the report
//! exists when the session comes.

use std::time::{Duration, Instant, SystemTime};

use ash_model::{Layer, Limits};
use ashd::sandbox::confinement::{Floor, Report};
use ashd::sandbox::measure;

use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form, Samples};
use crate::host::{self, Host};

/// Milliseconds that a start outside the pool may take longer.
const ADDED_MS: f64 = 10.0;
/// Between two starts, so that work of the previous one does not interfere.
const PAUSE: Duration = Duration::from_millis(20);

pub async fn measure(form: Form) -> Vec<Figure> {
    let host = Host::start("perf-probe");
    let launcher = host.client().await;
    let floor = Floor { layers: Layer::ALL.to_vec(), landlock_abi: 2 };
    let (mut whole, mut inside) = (Vec::new(), Vec::new());
    for round in 0..form.rounds(20, 100) + 2 {
        let id = host.session();
        let sandbox = launcher.create(host::request(id, Limits::default())).await.expect("a sandbox");
        let mut events = sandbox.take_events().expect("taken once");
        tokio::time::sleep(PAUSE).await;
        let start = Instant::now();
        let measured = measure::measure(&sandbox, &mut events, 1).await.expect("measured");
        let micros = measured.micros;
        let report = Report::new(measured, measure::outside(&sandbox.info), &floor, String::new(), 0);
        let took = start.elapsed();
        assert_eq!(report.missing(), None, "the sandbox is confined");
        // The first ones find nothing cached.
        if round >= 2 {
            whole.push(took);
            inside.push(Duration::from_micros(micros));
        }
        launcher.destroy(id).await.expect("gone");
        tokio::time::sleep(PAUSE).await;
    }
    launcher.shutdown().await.expect("the launcher ends");
    drop(launcher);
    drop(host);
    vec![
        Figure::times("probe: request to verdict", &Samples::of(whole)).at_most(ADDED_MS),
        Figure::times("probe: the measuring alone, inside", &Samples::of(inside)),
        Figure::single("probe: starts from the pool that waited for it", "of 3", from_the_pool().await).at_most(0.0),
    ]
}

/// How many sessions from the pool were measured only after their request.
async fn from_the_pool() -> f64 {
    const SESSIONS: usize = 3;
    let daemon = Daemon::start(Options::default().config("[pool]\nwarm = 1"));
    let api = daemon.api();
    api.deploy("perf").await;
    let mut late = 0;
    for _ in 0..SESSIONS {
        let start = Instant::now();
        while api.get("/api/agents/perf/warm").await.expect(200)["warm"]["ready"] != 1 {
            assert!(start.elapsed() < Duration::from_secs(30), "not warm\n{}", daemon.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let asked = SystemTime::now();
        let id = api.session("perf").await;
        let report = daemon.data().join("sessions").join(&id).join("confinement.json");
        let measured =
            std::fs::metadata(report).and_then(|meta| meta.modified()).expect("measured before it was given");
        late += u32::from(measured >= asked);
    }
    daemon.stop();
    f64::from(late)
}
