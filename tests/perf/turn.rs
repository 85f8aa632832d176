//! A turn of the real claude with a model that answers at once: through ashd over HTTP, and over a
//! bare pipe, in turns.
//!
//! Both are read in the same way, from one descriptor by the measuring task: otherwise the tasks of
//! a client library would count as ashd's. Turns vary from 30 to 50 ms, so many are needed to
//! measure a millisecond.

use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
const PATIENCE: Duration = Duration::from_secs(60);
/// Turns until everything is cached.
const WARM_UP: usize = 3;
/// Added to a turn, whichever is more: milliseconds, or a fraction of the pipe's time.
const ADDED_MS: f64 = 5.0;
const ADDED_PART: f64 = 0.05;

pub async fn measure(form: Form) -> Vec<Figure> {
    let daemon = Daemon::start(Options::default().real_claude());
    let api = daemon.api();
    api.deploy("perf").await;
    let session = api.session("perf").await;
    let mut wire = Wire::open(&daemon, &session).await;
    let mut pipe = Pipe::start(CLAUDE_MD).await;
    let rounds = form.rounds(60, 300);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + rounds {
        // Each goes first every other time, because the second finds the caches warm.
        let (a, b) = if round % 2 == 0 {
            let a = wire.turn(TEXT).await;
            (a, pipe.turn(TEXT).await)
        } else {
            let b = pipe.turn(TEXT).await;
            (wire.turn(TEXT).await, b)
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

struct Wire {
    stream: TcpStream,
    head: String,
}

impl Wire {
    async fn open(daemon: &Daemon, session: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", daemon.port)).await.expect("it listens");
        stream.set_nodelay(true).unwrap();
        let head = format!(
            "POST /api/sessions/{session}/messages HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: ",
            daemon.key
        );
        Self { stream, head }
    }

    async fn turn(&mut self, text: &str) -> Times {
        let body = json!({"content": text, "includePartialMessages": true}).to_string();
        let request = format!("{}{}\r\n\r\n{body}", self.head, body.len());
        let start = Instant::now();
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let (mut read, mut first, mut whole) = (Vec::with_capacity(1 << 16), None, None);
        // The last chunk of the answer is empty; then the connection is free for the next.
        while !read.ends_with(b"\r\n0\r\n\r\n") {
            let more = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut read)).await;
            assert_ne!(more.expect("an answer in time").unwrap(), 0, "{}", String::from_utf8_lossy(&read));
            let has = |what: &str| memmem::find(&read, what.as_bytes()).is_some();
            if first.is_none() && has("event: text_delta") {
                first = Some(start.elapsed());
            }
            if whole.is_none() && has("event: done") {
                whole = Some(start.elapsed());
            }
        }
        Times { first: first.expect("a delta"), whole: whole.expect("done") }
    }
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
