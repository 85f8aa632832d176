use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use futures_util::{FutureExt, StreamExt};
use tempfile::NamedTempFile;

use super::*;
use crate::sessions::stream::read_lines::PIECE_BYTES;

/// A session as a driver leaves it: the file, the recorded turns, and the published state.
struct Fixture {
    file: NamedTempFile,
    turns: Recorded,
    published: watch::Sender<Published>,
}

#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<BTreeMap<i64, Turn>>>);

impl Turns for Recorded {
    async fn turn(&self, _session: Uuid, number: i64) -> Result<Option<Turn>, String> {
        Ok(self.0.lock().expect("no panic").get(&number).cloned())
    }
}

const SESSION: Uuid = Uuid::from_u128(5);

fn system(text: &str) -> String {
    format!("{{\"type\":\"system\",\"t\":\"{text}\"}}\n")
}

impl Fixture {
    fn new() -> Self {
        let file = NamedTempFile::new().expect("a temporary file");
        Self { file, turns: Recorded::default(), published: watch::Sender::new(Published::default()) }
    }

    fn write(&mut self, text: &str) -> u64 {
        self.file.write_all(text.as_bytes()).expect("written");
        let end = self.file.as_file().metadata().expect("its size").len();
        self.published.send_modify(|p| p.watermark = end);
        end
    }

    fn begin(&mut self) -> Turn {
        let start = self.file.as_file().metadata().expect("its size").len();
        let number = self.turns.0.lock().expect("no panic").len() as i64 + 1;
        let turn = Turn {
            session: SESSION,
            id: Uuid::new_v4(),
            number,
            start,
            end: None,
            error: None,
            delivered: true,
            unasked: false,
            partial: false,
            started_at: 0,
            ended_at: None,
        };
        self.record(turn.clone());
        turn
    }

    fn end(&mut self, error: Option<&str>) {
        let now = self.published.borrow().clone();
        let turn = now.turn.expect("a turn");
        self.record(Turn { end: Some(now.watermark), error: error.map(str::to_owned), ..turn });
    }

    fn record(&self, turn: Turn) {
        self.turns.0.lock().expect("no panic").insert(turn.number, turn.clone());
        self.published.send_modify(|p| p.turn = Some(turn));
    }

    fn turn_stream(&self, turn: Turn) -> FrameStream {
        let path = self.file.path().to_owned();
        turn_stream(path, SESSION, self.turns.clone(), turn, self.published.subscribe(), false)
    }

    async fn join(&self, from: Option<&str>) -> Result<FrameStream, ReaderError> {
        let from = from.map(|text| text.parse().expect("an id"));
        let path = self.file.path().to_owned();
        session_stream(path, SESSION, self.turns.clone(), from, self.published.subscribe(), None).await
    }

    /// Three turns, the second failed, and a fourth that runs.
    fn long() -> Self {
        let mut fixture = Self::new();
        fixture.begin();
        fixture.write(&(system("a") + &system("b")));
        fixture.end(None);
        fixture.write(&system("between turns"));
        fixture.begin();
        fixture.write(&system("c"));
        fixture.end(Some("it broke"));
        fixture.begin();
        fixture.end(None);
        fixture.begin();
        fixture.write(&system("d"));
        fixture
    }
}

/// What is available without waiting, as "id event data" lines; and whether the stream ended.
fn now(stream: &mut FrameStream) -> (Vec<String>, bool) {
    let mut text = String::new();
    let mut ended = false;
    loop {
        match stream.next().now_or_never() {
            Some(Some(Ok(bytes))) => text += std::str::from_utf8(&bytes).expect("UTF-8"),
            Some(None) => {
                ended = true;
                break;
            }
            None => break,
        }
    }
    let frames = text.split_terminator("\n\n").filter(|frame| *frame != "retry: 1000").map(|frame| {
        let words = frame.lines().map(|line| line.split_once(": ").map_or(line, |(_, value)| value));
        words.collect::<Vec<_>>().join(" ")
    });
    (frames.collect(), ended)
}

/// Only "id event".
fn places(stream: &mut FrameStream) -> Vec<String> {
    now(stream).0.into_iter().map(|f| f.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn one_turn_live() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let mut stream = fixture.turn_stream(turn);
    let (frames, ended) = now(&mut stream);
    assert_eq!(frames.len(), 1);
    assert!(frames[0].starts_with("1:0:0 session_start {\"sessionId\":\"00000000"), "{frames:?}");
    assert!(!ended);
    fixture.write(&system("x"));
    assert_eq!(now(&mut stream), (vec![r#"1:0:1 message {"type":"system","t":"x"}"#.to_owned()], false));
    assert_eq!(now(&mut stream), (vec![], false));
    fixture.end(None);
    let (frames, ended) = now(&mut stream);
    assert_eq!(frames, [format!("1:{}:2 done {{\"sessionId\":\"{SESSION}\"}}", system("x").len())]);
    assert!(ended);
}

#[tokio::test]
async fn a_failed_turn_says_why_and_then_done() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let mut stream = fixture.turn_stream(turn);
    now(&mut stream);
    fixture.end(Some("claude was killed by signal 9"));
    let (frames, ended) = now(&mut stream);
    assert_eq!(frames[0], r#"1:0:1 error {"error":"claude was killed by signal 9"}"#);
    assert!(frames[1].starts_with("1:0:2 done") && ended && frames.len() == 2, "{frames:?}");
}

#[tokio::test]
async fn a_reader_that_was_stalled_over_later_turns_still_gets_its_own_end() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let mut stream = fixture.turn_stream(turn);
    fixture.write(&system("mine"));
    fixture.end(Some("mine failed"));
    fixture.begin();
    fixture.write(&system("not mine"));
    let (frames, ended) = now(&mut stream);
    let events: Vec<_> = frames.iter().map(|f| f.split(' ').nth(1).unwrap_or_default()).collect();
    assert_eq!(events, ["session_start", "message", "error", "done"]);
    assert!(frames[1].contains("\"mine\"") && frames[2].contains("mine failed") && ended);
}

#[tokio::test]
async fn a_closed_session_ends_the_turn_with_its_reason() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let mut stream = fixture.turn_stream(turn);
    fixture.write(&system("x"));
    fixture.published.send_modify(|p| p.closed = Some("the session was ended".to_owned()));
    let (frames, ended) = now(&mut stream);
    let events: Vec<_> = frames.iter().map(|f| f.split(' ').nth(1).unwrap_or_default()).collect();
    assert_eq!(events, ["session_start", "message", "error", "done"]);
    assert!(frames[2].contains("the session was ended") && ended);
}

#[tokio::test]
async fn a_daemon_that_goes_away_never_says_done() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let mut stream = fixture.turn_stream(turn);
    now(&mut stream);
    fixture.published = watch::Sender::new(Published::default());
    let (frames, ended) = now(&mut stream);
    assert!(ended && frames.len() == 1 && frames[0].contains("stopping"), "{frames:?}");
}

#[tokio::test]
async fn silence_is_broken_by_a_comment() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let (path, turns, rx) = (fixture.file.path().to_owned(), fixture.turns.clone(), fixture.published.subscribe());
    let place = Place { number: turn.number, start: 0, offset: 0, skip: 0 };
    let mut reader = Reader::new(path, SESSION, turns, rx, Partial::Never, Step::Lines(place), false);
    assert_eq!(reader.heartbeat, Duration::from_secs(15));
    reader.heartbeat = Duration::from_millis(50);
    let mut stream = reader.into_stream();
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        assert_eq!(stream.next().await, Some(Ok(Bytes::from_static(b": ping\n\n"))));
        assert!(begun.elapsed() >= Duration::from_millis(49));
    }
}

#[tokio::test]
async fn a_replay_is_the_same_frames_with_the_same_ids_from_any_place() {
    let fixture = Fixture::long();
    let mut whole = fixture.join(Some("0:0:0")).await.expect("a stream");
    let (all, ended) = now(&mut whole);
    assert!(!ended);
    let events: Vec<_> = all.iter().map(|f| f.split(' ').nth(1).unwrap_or_default()).collect();
    let expected = "session_start message message done session_start message error done session_start done \
                    session_start message";
    assert_eq!(events, expected.split_whitespace().collect::<Vec<_>>());
    let ids: Vec<EventId> =
        all.iter().map(|f| f.split(' ').next().unwrap_or_default().parse().expect("an id")).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    for (n, id) in ids.iter().enumerate() {
        let mut rest = fixture.join(Some(&id.to_string())).await.expect("a stream");
        assert_eq!(now(&mut rest).0, all[n + 1..], "after {id}");
    }
}

#[tokio::test]
async fn without_an_id_it_is_from_now_on() {
    let mut fixture = Fixture::long();
    let mut stream = fixture.join(None).await.expect("a stream");
    assert_eq!(stream.next().await, Some(Ok(Bytes::from_static(b"retry: 1000\n\n"))));
    assert_eq!(now(&mut stream), (vec![], false));
    fixture.write(&system("new"));
    fixture.end(None);
    let turn = fixture.begin();
    let (frames, ended) = now(&mut stream);
    assert!(frames[0].contains("\"new\"") && frames[1].contains(" done "), "{frames:?}");
    assert!(frames[2].starts_with(&format!("5:{}:0 session_start", turn.start)) && !ended);
    fixture.end(None);
    fixture.published.send_modify(|p| p.closed = Some("ended".to_owned()));
    let (frames, ended) = now(&mut stream);
    assert!(frames.len() == 1 && frames[0].contains(" done ") && ended, "{frames:?}");
}

#[tokio::test]
async fn a_place_that_does_not_exist_is_refused() {
    let fixture = Fixture::long();
    let (a, end) = (system("a").len(), system("a").len() * 2);
    for (id, why) in [
        ("9:0:0".to_owned(), "no turn 9"),
        (format!("1:{}:1", a + 1), "no line begins"),
        (format!("1:{}:0", end + 1), "ends at"),
        ("2:0:1".to_owned(), "begins at"),
        ("4:999999:1".to_owned(), "no line begins"),
    ] {
        let error = fixture.join(Some(&id)).await.err().expect(&id).to_string();
        assert!(error.contains(why) && error.contains(&id), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_longer_kept_is_a_gap_and_never_silence() {
    let fixture = Fixture::long();
    let second = system("a").len() * 2 + system("between turns").len();
    // Within the first turn.
    fixture.published.send_modify(|p| p.floor = system("a").len() as u64);
    let mut stream = fixture.join(Some("0:0:0")).await.expect("a stream");
    let (frames, _) = now(&mut stream);
    assert!(frames[1].starts_with(&format!("1:{}:0 gap", system("a").len())), "{frames:?}");
    assert!(frames[2].contains("\"b\""), "{frames:?}");
    // Over whole turns.
    fixture.published.send_modify(|p| p.floor = (second + system("c").len()) as u64);
    let mut stream = fixture.join(Some("0:0:0")).await.expect("a stream");
    let seen = places(&mut stream);
    assert!(seen[0].ends_with(" gap") && seen[0].starts_with("3:") && seen[1].ends_with(" session_start"), "{seen:?}");
    assert_eq!(seen.iter().filter(|f| f.ends_with(" gap")).count(), 1);
}

#[tokio::test]
async fn a_gap_up_to_now_can_be_rejoined() {
    let mut fixture = Fixture::new();
    fixture.begin();
    let end = fixture.write(&system("a"));
    fixture.end(None);
    fixture.published.send_modify(|p| p.floor = end);
    let mut stream = fixture.join(Some("0:0:0")).await.expect("a stream");
    assert_eq!(places(&mut stream), [format!("1:{end}:2 gap")]);
    let mut again = fixture.join(Some(&format!("1:{end}:2"))).await.expect("a stream");
    assert_eq!(now(&mut again), (vec![], false));
}

#[tokio::test]
async fn a_file_that_was_cut_short_is_an_error_and_done() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    fixture.write(&system("x"));
    fixture.file.as_file().set_len(3).expect("truncated");
    let (frames, ended) = now(&mut fixture.turn_stream(turn));
    assert!(frames[1].contains(" error ") && frames[1].contains("truncated"), "{frames:?}");
    assert!(frames[2].contains(" done ") && ended && frames.len() == 3);
}

#[tokio::test]
async fn a_long_turn_comes_in_pieces_and_whole() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let long = system(&"y".repeat(2 << 20));
    fixture.write(&(system("x").repeat(20_000) + &long + &system("z").repeat(10)));
    fixture.end(None);
    let mut stream = fixture.turn_stream(turn);
    let (mut messages, mut bytes) = (0, 0);
    while let Some(Ok(piece)) = stream.next().await {
        assert!(piece.len() < (3 << 20));
        bytes += piece.len();
        messages += memchr::memmem::find_iter(&piece, b"\nevent: message\n").count();
    }
    assert_eq!(messages, 20_011);
    assert!(bytes > (2 << 20));
}

/// The rest of a stream that ends.
async fn rest(stream: &mut FrameStream) -> (String, usize) {
    let (mut text, mut largest) = (Vec::new(), 0);
    while let Some(Ok(bytes)) = stream.next().await {
        largest = largest.max(bytes.len());
        text.extend_from_slice(&bytes);
    }
    (String::from_utf8(text).expect("UTF-8"), largest)
}

#[tokio::test]
async fn a_line_too_long_to_be_held_leaves_in_pieces_and_whole() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    let text = "€\u{2028}".repeat(1 << 20);
    let long = format!(r#"{{"type":"result","num_turns":2,"result":"{text}","x":1}}"#);
    fixture.write(&system("before"));
    fixture.write(&format!("{long}\n"));
    fixture.write(&system("behind"));
    fixture.end(None);
    let (shown, largest) = rest(&mut fixture.turn_stream(turn)).await;
    assert!(largest < 2 * PIECE_BYTES as usize, "{largest}");
    let data: Vec<(&str, &str)> = shown
        .split_terminator("\n\n")
        .map(|frame| {
            let lines: Vec<&str> = frame.lines().collect();
            (lines[1].trim_start_matches("event: "), lines[2].trim_start_matches("data: "))
        })
        .collect();
    let names: Vec<&str> = data.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["session_start", "message", "turn_complete", "message", "message", "done"]);
    assert!(data[2].1.starts_with(r#"{"numTurns":2,"result":"€"#) && data[2].1.len() < 64 << 10, "{}", data[2].1.len());
    assert!(data[3].1 == long.replace('\u{2028}', r"\u2028"));
    // A client that has only earlier frames gets it again; one that has it does not.
    let id = |frame: u32| format!("1:{}:{frame}", system("before").len());
    for (frame, expected) in [(1, "message message done"), (2, "message done")] {
        let mut stream = fixture.join(Some(&id(frame))).await.expect("a place");
        let mut got = String::new();
        while !got.ends_with("\n\n") || !got.contains("event: done") {
            let Some(Ok(bytes)) = stream.next().await else { break };
            got += std::str::from_utf8(&bytes).expect("whole characters");
        }
        let names: Vec<&str> = got.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(names.join(" "), expected);
    }
}

#[tokio::test]
async fn what_is_given_back_in_the_middle_of_a_long_line_ends_the_stream_there() {
    let mut fixture = Fixture::new();
    let turn = fixture.begin();
    fixture.write(&format!("{{\"t\":\"{}\"}}\n", "x".repeat(6 << 20)));
    let end = fixture.write(&system("behind"));
    fixture.end(None);
    let stopping = tokio_util::sync::CancellationToken::new();
    let mut stream = until(&stopping, fixture.turn_stream(turn));
    for _ in 0..3 {
        stream.next().await.expect("a piece").expect("bytes");
    }
    fixture.published.send_modify(|p| p.floor = end);
    stopping.cancel();
    let (last, _) = rest(&mut stream).await;
    assert!(!last.contains("event: ") && !last.contains(": ashd"), "nothing is inserted into a partial frame: {last}");
}
