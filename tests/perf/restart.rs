//! ashd is killed, or asked to end, during turns of fifty sessions: time until it serves again, and
//! the clients' longest silence. Also the longest silence of the same turns without a restart:
//! fifty streaming claudes may keep a small machine so busy that deltas are late anyway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form, Samples};
use crate::link::{Link, Stream};

const SESSIONS: usize = 50;
/// With this many turns a machine of two cores has spare time; with all of them it has not.
const FEW: usize = 10;
/// Milliseconds from the start of the new ashd to its first answer.
const SERVING_MS: f64 = 1000.0;
/// Milliseconds between the last frame of the old ashd and the first of the new one. With turns in
/// all sessions, the time in addition to the silence of a turn without a restart.
const GAP_MS: f64 = 1500.0;
/// A delta every 100 ms for six seconds.
const DELTAS: usize = 60;
const TEXT: &str = "@delay 100ms\n@repeat 60 word";

/// What one round does to ashd during its turns.
#[derive(Clone, Copy)]
enum Blow {
    None,
    Kill,
    Restart,
}

/// The short form has the fake claude: fifty of them use hardly any CPU.
pub async fn measure(form: Form) -> Vec<Figure> {
    let options = match form {
        Form::Short => Options::default(),
        Form::Long => Options::default().real_claude(),
    };
    let mut daemon = Daemon::start(options);
    let api = daemon.api();
    api.deploy("perf").await;
    let mut ids = Vec::new();
    for _ in 0..SESSIONS {
        ids.push(api.session("perf").await);
    }
    let link = Arc::new(Link::new(daemon.port, &daemon.key));
    // The first turn of a claude loads what the others find cached.
    for id in &ids {
        client(Arc::clone(&link), id.clone(), "@text ready").await;
    }
    let (mut serving, mut gaps, mut silences) = (Vec::new(), [vec![], vec![]], Vec::new());
    for _ in 0..form.rounds(1, 3) {
        for (which, streams) in [FEW, SESSIONS].into_iter().enumerate() {
            for blow in [Blow::None, Blow::Kill, Blow::Restart] {
                let (back, served, seen) = round(daemon, &link, &ids[..streams], blow).await;
                daemon = back;
                serving.extend(served);
                match blow {
                    Blow::None if streams == SESSIONS => silences.extend(seen.iter().map(|silence| silence.longest)),
                    Blow::None => {}
                    Blow::Kill | Blow::Restart => gaps[which].extend(seen.iter().map(|silence| silence.cut)),
                }
            }
        }
    }
    let api = daemon.api();
    for id in &ids {
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    daemon.stop();
    let (few, all) = (Samples::of(gaps[0].clone()), Samples::of(gaps[1].clone()));
    let silences = Samples::of(silences);
    let added = all.at(0.99) - silences.at(0.99);
    vec![
        Figure::times("restart with 50 live sessions: serving again", &Samples::of(serving))
            .at_most(SERVING_MS)
            .p99_at_most(SERVING_MS),
        Figure::times("restart, 10 of 50 sessions in mid-turn: gap of a client that rejoins", &few).p99_at_most(GAP_MS),
        Figure::times("no restart, 50 in mid-turn: longest silence of a turn", &silences),
        Figure::times("restart, 50 in mid-turn: gap of a client that rejoins", &all).at_most(GAP_MS),
        Figure::single("restart, 50 in mid-turn: gap, p99, beyond that silence", "ms", added).noisy().at_most(GAP_MS),
    ]
}

/// A turn of each session, with or without a restart during it. Returns the time until the new ashd
/// served, and the clients' silences.
async fn round(
    mut daemon: Daemon,
    link: &Arc<Link>,
    ids: &[String],
    blow: Blow,
) -> (Daemon, Option<Duration>, Vec<Silence>) {
    let mut clients = JoinSet::new();
    for id in ids {
        clients.spawn(client(Arc::clone(link), id.clone(), TEXT));
    }
    let mut served = None;
    if !matches!(blow, Blow::None) {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let moved = Arc::clone(link);
        let back = tokio::task::spawn_blocking(move || {
            match blow {
                Blow::Restart => _ = daemon.terminate(),
                _ => daemon.kill9(),
            }
            let start = Instant::now();
            daemon.restart();
            moved.moved(daemon.port);
            (daemon, start)
        });
        let start;
        (daemon, start) = back.await.unwrap();
        daemon.api().get("/health").await.expect(200);
        served = Some(start.elapsed());
    }
    let seen = clients.join_all().await;
    (daemon, served, seen)
}

#[derive(Default)]
struct Silence {
    /// Between two frames of one connection.
    longest: Duration,
    /// Across a lost connection.
    cut: Duration,
}

/// One turn over as many connections as needed.
async fn client(link: Arc<Link>, id: String, text: &str) -> Silence {
    let body = json!({"content": text, "includePartialMessages": true});
    let answer = link.open(Method::POST, &format!("/api/sessions/{id}/messages"), None, Some(body)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let (mut stream, mut id_of_last, mut last) = (Some(Stream::of(answer)), None, None);
    let (mut deltas, mut silence, mut cut) = (0, Silence::default(), false);
    loop {
        let frames = match &mut stream {
            Some(open) => open.next().await,
            None => Ok(None),
        };
        let Ok(Some(frames)) = frames else {
            cut = true;
            let path = format!("/api/sessions/{id}/stream?includePartialMessages=true");
            let answer = link.open(Method::GET, &path, id_of_last.as_deref(), None).await;
            stream = answer.ok().filter(|answer| answer.status() == 200).map(Stream::of);
            if stream.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        };
        let Some(newest) = frames.last() else { continue };
        let passed = last.replace(Instant::now()).map_or(Duration::ZERO, |last: Instant| last.elapsed());
        let counted = if std::mem::take(&mut cut) { &mut silence.cut } else { &mut silence.longest };
        *counted = (*counted).max(passed);
        id_of_last = newest.id.clone();
        deltas += frames.iter().filter(|frame| frame.event == "text_delta").count();
        if newest.event == "done" {
            assert!(text != TEXT || deltas == DELTAS, "{deltas} deltas of {id}");
            return silence;
        }
    }
}
