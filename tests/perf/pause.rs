//! Pause and resume over HTTP of an idle session of the real claude, and the first delta after it.

use std::time::Instant;

use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form, Samples};
use crate::turn::over_http;

const TEXT: &str = "@text Hello there.";

pub async fn measure(form: Form) -> Vec<Figure> {
    let daemon = Daemon::start(Options::default().real_claude());
    let api = daemon.api();
    api.deploy("perf").await;
    let session = api.session("perf").await;
    let (pause, resume) = (format!("/api/sessions/{session}/pause"), format!("/api/sessions/{session}/resume"));
    let once = async |path: &str| {
        let start = Instant::now();
        let answer = api.call("POST", path, None).await;
        let took = start.elapsed();
        answer.expect(200);
        took
    };
    for _ in 0..2 {
        over_http(&api, &session, TEXT).await;
    }
    let (mut pauses, mut resumes, mut without, mut after) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..form.rounds(40, 300) {
        pauses.push(once(&pause).await);
        resumes.push(once(&resume).await);
        if round % form.rounds(8, 10) == 0 {
            after.push(over_http(&api, &session, TEXT).await.first);
            without.push(over_http(&api, &session, TEXT).await.first);
        }
    }
    api.delete(&format!("/api/sessions/{session}")).await.expect(200);
    daemon.stop();

    let (after, without) = (Samples::of(after), Samples::of(without));
    let added = after.at(0.5) - without.at(0.5);
    vec![
        Figure::times("pause over HTTP, idle session", &Samples::of(pauses)).at_most(2.0).p99_at_most(20.0),
        Figure::times("resume over HTTP, idle session", &Samples::of(resumes)).at_most(2.0).p99_at_most(20.0),
        Figure::times("first delta, no pause before it", &without),
        Figure::times("first delta, right after a resume", &after),
        Figure::single("first delta, added by pause and resume", "ms", added).at_most(20.0).noisy(),
    ]
}
