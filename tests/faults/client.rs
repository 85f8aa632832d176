//! One client of one session: sends messages one after the other and reads each turn up to `done`,
//! over as many connections as needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::common::wire::Frame;
use crate::killer::Dice;
use crate::link::{Link, Lost, Stream, json};

/// A turn takes about a second. One that has not ended after this time (with all restarts) hangs.
const WEDGED: Duration = Duration::from_secs(60);

/// What the killer did to a session, and its signals to the client: stop, or drop the stream.
pub struct Toll {
    pub id: String,
    /// Kills of its init or its claude.
    pub kills: AtomicU32,
    pub interrupts: AtomicU32,
    pub stop: AtomicBool,
    pub cut: Notify,
}

impl Toll {
    pub fn new(id: String) -> Self {
        let (kills, interrupts) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { id, kills, interrupts, stop: AtomicBool::new(false), cut: Notify::new() }
    }
}

#[derive(Default)]
pub struct Book {
    /// Every frame, in the order of arrival.
    pub frames: Vec<Frame>,
    /// The accepted messages in order; the turn number of each is its position, from 1.
    pub sent: Vec<String>,
    pub turns: usize,
    pub rejoins: usize,
    pub faults: Vec<String>,
}

pub struct Client {
    n: usize,
    link: Link,
    toll: Arc<Toll>,
    dice: Dice,
    book: Book,
}

enum End {
    Done,
    Cut,
}

impl Client {
    pub fn new(n: usize, link: Link, toll: Arc<Toll>, seed: u64) -> Self {
        Self { n, link, toll, dice: Dice::new(seed.wrapping_mul(31).wrapping_add(n as u64 + 1)), book: Book::default() }
    }

    pub async fn run(mut self) -> Book {
        let mut turn = 0;
        while !self.toll.stop.load(Ordering::Relaxed) && self.book.faults.is_empty() {
            turn += 1;
            let text = self.script(turn);
            let start = Instant::now();
            match tokio::time::timeout(WEDGED, self.turn(text)).await {
                Ok(()) => self.book.turns += 1,
                Err(_) => {
                    let status = self.status().await;
                    self.fault(format!(
                        "turn {turn} is wedged: not over after {:?}; the session is {status}",
                        start.elapsed()
                    ));
                }
            }
        }
        self.book
    }

    /// Words that contain their position, so that none can be confused with another.
    fn script(&mut self, turn: usize) -> String {
        let (delay, words) = (self.dice.below(12), 5 + self.dice.below(50));
        let words =
            |part: char| (0..words).map(|w| format!("s{}t{turn}{part}{w}", self.n)).collect::<Vec<_>>().join(" ");
        let tool = if self.dice.below(3) == 0 { "@tool Bash {\"command\":\"echo tool\"}\n" } else { "" };
        format!("@delay {delay}ms\n@text {}\n{tool}@text {}", words('a'), words('b'))
    }

    fn fault(&mut self, what: String) {
        self.book.faults.push(format!("session {} ({}): {what}", self.n, self.toll.id));
    }

    async fn status(&self) -> String {
        let path = format!("/api/sessions/{}", self.toll.id);
        format!(
            "{:?}",
            self.link.call(Method::GET, &path, None).await.map(|(_, json)| json["session"]["status"].clone())
        )
    }

    async fn turn(&mut self, text: String) {
        let Some(stream) = self.send(&text).await else { return };
        let end = match stream {
            Some(stream) => self.read(stream).await,
            None => End::Cut,
        };
        if matches!(end, End::Cut) {
            self.rejoin().await;
        }
    }

    /// Sends until the message is accepted. Returns its stream, or none if that was lost. `None`:
    /// stopped.
    async fn send(&mut self, text: &str) -> Option<Option<Stream>> {
        let path = format!("/api/sessions/{}/messages", self.toll.id);
        loop {
            if self.toll.stop.load(Ordering::Relaxed) {
                return None;
            }
            let body = json!({"content": text, "includePartialMessages": true});
            let answer = self.link.open(Method::POST, &path, None, Some(body)).await;
            match answer {
                Ok(answer) if answer.status() == 200 => {
                    self.book.sent.push(text.to_owned());
                    return Some(Some(Stream::of(answer)));
                }
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let Ok(said) = json(answer).await else { continue };
                    match (status, said["error"].as_str().unwrap_or_default()) {
                        (400, "Session is paused" | "Session is error") => self.resume().await,
                        (503, _) => {}
                        (500, why) if why.contains("cannot freeze") => {}
                        (_, why) => {
                            self.fault(format!("a message was refused with {status}: {why}"));
                            return None;
                        }
                    }
                }
                Err(Lost::Silent) => {
                    self.fault("no answer to a message".to_owned());
                    return None;
                }
                // It may or may not have been accepted. It is sent again only if it was not.
                Err(Lost::Away) => {
                    let taken = self.link.messages(&self.toll.id).await;
                    let is_it = |m: &Value| {
                        let content: Value =
                            serde_json::from_str(m["content"].as_str().unwrap_or("")).unwrap_or_default();
                        content["type"] == "user" && content["content"] == *text
                    };
                    if taken.iter().any(is_it) {
                        self.book.sent.push(text.to_owned());
                        return Some(None);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn resume(&mut self) {
        let path = format!("/api/sessions/{}/resume", self.toll.id);
        // Temporary refusals are expected (the launcher is down); the time limit of the turn
        // detects permanent ones.
        if let Ok((status, said)) = self.link.call(Method::POST, &path, None).await
            && !matches!(status, 200 | 503)
        {
            println!("session {}: resume: {status} {}", self.n, said["error"]);
        }
    }

    async fn read(&mut self, mut stream: Stream) -> End {
        let toll = Arc::clone(&self.toll);
        loop {
            let frames = tokio::select! {
                frames = stream.next() => frames,
                () = toll.cut.notified() => return End::Cut,
            };
            match frames {
                Ok(Some(frames)) => {
                    let done = frames.iter().any(|frame| frame.event == "done");
                    self.book.frames.extend(frames);
                    if done {
                        return End::Done;
                    }
                }
                Ok(None) | Err(Lost::Away) => return End::Cut,
                Err(Lost::Silent) => {
                    self.fault("a stream without frame or heartbeat".to_owned());
                    return End::Done;
                }
            }
        }
    }

    async fn rejoin(&mut self) {
        loop {
            let last = self.book.frames.last().and_then(|frame| frame.id.clone()).unwrap_or_else(|| "0:0:0".to_owned());
            let mut path = format!("/api/sessions/{}/stream?includePartialMessages=true", self.toll.id);
            // Both forms of the parameter.
            let header = if self.dice.below(2) == 0 {
                Some(last.as_str())
            } else {
                path.push_str(&format!("&after={last}"));
                None
            };
            match self.link.open(Method::GET, &path, header, None).await {
                Ok(answer) if answer.status() == 200 => {
                    self.book.rejoins += 1;
                    if matches!(self.read(Stream::of(answer)).await, End::Done) {
                        return;
                    }
                }
                Ok(answer) if answer.status() == 503 => {}
                Ok(answer) => {
                    let status = answer.status();
                    let said = json(answer).await.unwrap_or_default();
                    return self.fault(format!("rejoining after {last}: {status} {}", said["error"]));
                }
                Err(Lost::Silent) => return self.fault("no answer to a rejoin".to_owned()),
                Err(Lost::Away) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
