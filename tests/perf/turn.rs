//! A turn of the real claude with a model that answers at once: through ashd over HTTP, and over a bare pipe, in turns.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{Api, Daemon, Options};
use crate::figures::{Figure, Form, Samples};
use crate::pipe::Pipe;

/// From the message's first byte to the first delta of text, and to the end of the turn.
#[derive(Clone, Copy)]
pub struct Times {
    pub first: Duration,
    pub whole: Duration,
}

/// As `Api::deploy` writes it.
const CLAUDE_MD: &str = "You are a test.\n";
const TEXT: &str = "@text Hello there, this is an answer of a few words.";
/// Turns until both have everything loaded.
const WARM_UP: usize = 3;
/// Added to a turn, whichever is more: milliseconds, and a part of what the pipe takes (issue 2).
const ADDED_MS: f64 = 5.0;
const ADDED_PART: f64 = 0.05;

pub async fn measure(form: Form) -> Vec<Figure> {
    let daemon = Daemon::start(Options::default().real_claude());
    let api = daemon.api();
    api.deploy("perf").await;
    let session = api.session("perf").await;
    let mut pipe = Pipe::start(CLAUDE_MD).await;
    let rounds = form.rounds(12, 60);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + rounds {
        // Each goes first every other time, since the second finds the caches warm.
        let (a, b) = if round % 2 == 0 {
            let a = over_http(&api, &session, TEXT).await;
            (a, pipe.turn(TEXT).await)
        } else {
            let b = pipe.turn(TEXT).await;
            (over_http(&api, &session, TEXT).await, b)
        };
        if round >= WARM_UP {
            ours.push(a);
            bare.push(b);
        }
    }
    pipe.end().await;
    api.delete(&format!("/api/sessions/{session}")).await.expect(200);
    daemon.stop();

    let of = |times: &[Times], pick: fn(&Times) -> Duration| Samples::of(times.iter().map(pick));
    let mut figures = Vec::new();
    for (names, pick) in [
        (
            ["turn: first delta, bare pipe", "turn: first delta, ashd", "turn: first delta, added by ashd"],
            first as fn(&Times) -> Duration,
        ),
        (["turn: whole, bare pipe", "turn: whole, ashd", "turn: whole, added by ashd"], whole),
    ] {
        let (bare, ours) = (of(&bare, pick), of(&ours, pick));
        let added = ours.at(0.5) - bare.at(0.5);
        figures.push(Figure::times(names[0], &bare));
        figures.push(Figure::times(names[1], &ours));
        let bound = ADDED_MS.max(ADDED_PART * bare.at(0.5));
        figures.push(Figure::single(names[2], "ms", added).of(rounds).at_most(bound).noisy());
    }
    figures
}

fn first(times: &Times) -> Duration {
    times.first
}

fn whole(times: &Times) -> Duration {
    times.whole
}

pub async fn over_http(api: &Api, session: &str, text: &str) -> Times {
    let body = json!({"content": text, "includePartialMessages": true});
    let start = Instant::now();
    let mut stream = api.send(session, body).await;
    stream.until("text_delta").await;
    let first = start.elapsed();
    stream.until("done").await;
    let whole = start.elapsed();
    assert!(stream.next().await.is_none(), "done is the last frame");
    Times { first, whole }
}
