//! Compares four independent records of one session: the frames its client received, the lines of
//! its stdout file, the rows of the database, and claude's own record of the conversation. Reads
//! all of them without code of ashd.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::client::{Book, Toll};
use crate::common::wire::Frame;
use crate::rows::{Rows, TurnRow};

struct Line<'a> {
    at: u64,
    text: &'a str,
    json: Value,
}

impl Line<'_> {
    fn kind(&self) -> &str {
        self.json["type"].as_str().unwrap_or("")
    }

    fn shown(&self) -> bool {
        !matches!(self.kind(), "" | "control_request" | "control_response" | "command_lifecycle" | "keep_alive")
    }

    /// Whether the history contains it.
    fn kept(&self) -> bool {
        matches!(self.kind(), "assistant" | "user" | "result")
    }
}

pub fn check(data: &Path, book: &Book, toll: &Toll, rows: &Rows, listed: &[Value]) -> Vec<String> {
    let dir = data.join("sessions").join(&toll.id);
    let bytes = std::fs::read(dir.join("stdout")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines = lines(&text);
    let mut check = Check { faults: Vec::new(), id: &toll.id };
    check.turns(book, rows, &lines);
    check.order(book);
    for turn in &rows.turns {
        check.turn(turn, book, &lines);
    }
    check.history(book, rows, listed, &lines);
    check.delivered(&dir, book, rows, &lines);
    check.causes(toll, rows, &lines);
    check.timeline(rows);
    check.faults
}

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut at = 0;
    let mut all = Vec::new();
    for whole in text.split_inclusive('\n') {
        if let Some(line) = whole.strip_suffix('\n') {
            all.push(Line { at, text: line, json: serde_json::from_str(line).unwrap_or(Value::Null) });
        }
        at += whole.len() as u64;
    }
    all
}

fn within<'a, 'b>(turn: &TurnRow, lines: &'b [Line<'a>]) -> impl Iterator<Item = &'b Line<'a>> {
    let (from, to) = (turn.from, turn.to.unwrap_or(u64::MAX));
    lines.iter().filter(move |line| line.at >= from && line.at < to)
}

fn id(frame: &Frame) -> (i64, u64, u32) {
    let text = frame.id.as_deref().unwrap_or("");
    let mut parts = text.split(':').map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (i64::try_from(next()).unwrap(), next(), u32::try_from(next()).unwrap())
}

struct Check<'a> {
    faults: Vec<String>,
    id: &'a str,
}

impl Check<'_> {
    fn say(&mut self, what: String) {
        self.faults.push(format!("{}: {what}", self.id));
    }

    /// Turns follow one another, all have ended, and no part of an answer lies outside of them.
    fn turns(&mut self, book: &Book, rows: &Rows, lines: &[Line<'_>]) {
        if rows.turns.len() != book.sent.len() {
            self.say(format!("{} messages were accepted, {} turns are recorded", book.sent.len(), rows.turns.len()));
        }
        let mut end = 0;
        for (n, turn) in rows.turns.iter().enumerate() {
            if turn.number != n as i64 + 1 || turn.from < end {
                self.say(format!("turn {} begins at {}, the one before ends at {end}", turn.number, turn.from));
            }
            match turn.to {
                Some(to) => end = to,
                None => self.say(format!("turn {} has no end", turn.number)),
            }
        }
        for line in lines.iter().filter(|line| line.shown()) {
            if !rows.turns.iter().any(|turn| line.at >= turn.from && line.at < turn.to.unwrap_or(u64::MAX)) {
                self.say(format!("a line at {} is in no turn: {:.200}", line.at, line.text));
            }
        }
    }

    /// Ids only grow: duplicates and late frames are found here. Events of the session are inserted
    /// at the place reached in its output.
    fn order(&mut self, book: &Book) {
        for pair in book.frames.windows(2) {
            let beside = pair[1].event == "lifecycle" && id(&pair[1]) == id(&pair[0]);
            if id(&pair[1]) <= id(&pair[0]) && !beside {
                self.say(format!("frame {:?} came after {:?}", pair[1].id, pair[0].id));
            }
        }
        if let Some(gap) = book.frames.iter().find(|frame| frame.event == "gap") {
            self.say(format!("a gap: {}", gap.raw));
        }
    }

    /// The client received of a turn what the file holds of it.
    fn turn(&mut self, turn: &TurnRow, book: &Book, lines: &[Line<'_>]) {
        let n = turn.number;
        let got: Vec<&Frame> = book.frames.iter().filter(|frame| id(frame).0 == n).collect();
        let messages: Vec<&str> = got.iter().filter(|f| f.event == "message").map(|f| f.raw.as_str()).collect();
        let want: Vec<&str> = within(turn, lines).filter(|line| line.shown()).map(|line| line.text).collect();
        if messages != want {
            let at = messages.iter().zip(&want).take_while(|(a, b)| a == b).count();
            let (came, file) = (messages.len(), want.len());
            let near = want.get(at).or(messages.get(at)).copied().unwrap_or("");
            self.say(format!("turn {n}: {came} messages came, the file has {file}; they differ at {at}: {near:.200}"));
        }
        let count = |event: &str| got.iter().filter(|frame| frame.event == event).count();
        let ends = (count("session_start"), count("error"), count("done"));
        if ends != (1, usize::from(turn.error.is_some()), 1) || got.last().is_none_or(|frame| frame.event != "done") {
            self.say(format!("turn {n} (error {:?}): session_start, error, done came {ends:?} times", turn.error));
        }
        let said = got.iter().rev().find(|frame| frame.event == "error").map(|frame| frame.data["error"].clone());
        if said.is_some() && said != turn.error.clone().map(Value::from) {
            self.say(format!("turn {n}: the client was told {said:?}, the row says {:?}", turn.error));
        }
        self.words(turn, book, &got, lines);
    }

    /// Every word once and in order; all of them when the turn succeeded.
    fn words(&mut self, turn: &TurnRow, book: &Book, got: &[&Frame], lines: &[Line<'_>]) {
        let Some(text) = book.sent.get(turn.number as usize - 1) else { return };
        let want: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("@text ")).flat_map(str::split_whitespace).collect();
        let deltas: Vec<&str> = got
            .iter()
            .filter(|frame| frame.event == "text_delta")
            .filter_map(|frame| frame.data["delta"].as_str())
            .map(str::trim)
            .collect();
        let whole = within(turn, lines).any(|line| line.json["subtype"] == "success");
        let right = if whole { deltas == want } else { want.starts_with(&deltas) };
        if !right {
            let at = deltas.iter().zip(&want).take_while(|(a, b)| a == b).count();
            let (came, all) = (deltas.len(), want.len());
            self.say(format!("turn {} (whole: {whole}): {came} words of {all} came, wrong from {at} on", turn.number));
        }
    }

    /// The history: each accepted message, then the lines of its answer, in one gapless sequence.
    fn history(&mut self, book: &Book, rows: &Rows, listed: &[Value], lines: &[Line<'_>]) {
        let mut want: Vec<Value> = Vec::new();
        for (turn, text) in rows.turns.iter().zip(&book.sent) {
            want.push(serde_json::json!({"type": "user", "content": text}));
            want.extend(within(turn, lines).filter(|line| line.kept()).map(|line| line.json.clone()));
        }
        let have: Vec<Value> = rows.messages.iter().map(|(_, text)| serde_json::from_str(text).unwrap()).collect();
        if have != want {
            let at = have.iter().zip(&want).take_while(|(a, b)| a == b).count();
            let (rows, all) = (have.len(), want.len());
            let (row, file) = (have.get(at).map(Value::to_string), want.get(at).map(Value::to_string));
            self.say(format!(
                "{rows} messages are recorded, {all} are right; at {at} the row is {:.200}, should be {:.200}",
                row.unwrap_or_default(),
                file.unwrap_or_default()
            ));
        }
        let gapless = |sequences: &[i64]| sequences.iter().enumerate().all(|(n, s)| *s == n as i64 + 1);
        let sequences: Vec<i64> = rows.messages.iter().map(|(s, _)| *s).collect();
        let events: Vec<i64> = rows.events.iter().map(|(s, _, _)| *s).collect();
        if !gapless(&sequences) || !gapless(&events) {
            self.say("sequence numbers with a gap".to_owned());
        }
        let shown: Vec<&str> = listed.iter().filter_map(|m| m["content"].as_str()).collect();
        if shown != rows.messages.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>() {
            self.say(format!("the API lists {} messages, the database holds {}", shown.len(), rows.messages.len()));
        }
        let results = lines.iter().filter(|line| line.kind() == "result").count();
        if results != rows.results {
            self.say(format!("{results} results, {} of them counted as usage", rows.results));
        }
    }

    /// claude got no message twice, and got each message whose turn succeeded.
    fn delivered(&mut self, dir: &Path, book: &Book, rows: &Rows, lines: &[Line<'_>]) {
        let record = dir.join(format!("home/.claude/projects/-workspace/{}.jsonl", self.id));
        let record = std::fs::read(&record).unwrap_or_else(|why| {
            let beside = std::fs::read_dir(record.parent().expect("its directory"));
            let beside = beside.map(|dir| dir.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>());
            self.say(format!("claude's record of the conversation: {why}; beside it: {beside:?}"));
            Vec::new()
        });
        let record = String::from_utf8_lossy(&record);
        let heard: Vec<String> = record
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|entry| entry["type"] == "user")
            .filter_map(|entry| entry["message"]["content"].as_str().map(str::to_owned))
            .collect();
        for (turn, text) in rows.turns.iter().zip(&book.sent) {
            let times = heard.iter().filter(|heard| *heard == text).count();
            let ended = within(turn, lines).any(|line| line.kind() == "result");
            if times > 1 || (ended && times == 0) {
                self.say(format!("claude got the message of turn {} {times} times", turn.number));
            }
        }
    }

    /// A turn fails only if its own processes were killed.
    fn causes(&mut self, toll: &Toll, rows: &Rows, lines: &[Line<'_>]) {
        let kills = toll.kills.load(Ordering::SeqCst) as usize;
        let failed: Vec<&TurnRow> = rows.turns.iter().filter(|turn| turn.error.is_some()).collect();
        if failed.len() > kills {
            let errors: Vec<_> = failed.iter().map(|turn| (turn.number, &turn.error)).collect();
            self.say(format!("{} turns failed, {kills} kills: {errors:?}", failed.len()));
        }
        let interrupted = lines.iter().filter(|line| line.json["subtype"] == "error_during_execution").count();
        let interrupts = toll.interrupts.load(Ordering::SeqCst) as usize;
        if interrupted > interrupts {
            self.say(format!("{interrupted} turns were interrupted, {interrupts} should be"));
        }
        for turn in rows.turns.iter().filter(|turn| turn.error.is_none()) {
            if !within(turn, lines).any(|line| line.kind() == "result") {
                self.say(format!("turn {} ended well without a result", turn.number));
            }
        }
    }

    /// Every change of state is one event, and they follow one another.
    fn timeline(&mut self, rows: &Rows) {
        let mut status = "none";
        for (sequence, kind, data) in &rows.events {
            if kind != "lifecycle" {
                continue;
            }
            let data: Value = serde_json::from_str(data).unwrap();
            let (from, to): (&[&str], &str) = match data["action"].as_str().unwrap_or("") {
                "created" => (&["none"], "active"),
                "paused" => (&["active"], "paused"),
                "resumed" => (&["paused", "error"], "active"),
                "error" => (&["active"], "error"),
                _ => continue,
            };
            if !from.contains(&status) {
                self.say(format!("event {sequence} says {data} of a session that is {status}"));
            }
            status = to;
        }
    }
}
