//! One line of claude's stdout as SSE frames (contract §6).
//!
//! ```text
//! stream_event --(includePartialMessages)--> text_delta | thinking_delta, then message
//! assistant -------------------------------> tool_use ..., then message
//! user ------------------------------------> tool_result ..., then message
//! result ----------------------------------> turn_complete, then message
//! control_*, command_lifecycle, transcript_mirror, keep_alive
//! -----------------------------------------> nothing: they are between ashd and claude
//! not one JSON object in UTF-8 ------------> nothing
//! anything else ---------------------------> message
//! ```
//!
//! A frame is `id: T:O:F\nevent: K\ndata: J\n\n`. `J` is the line as it came, with two exceptions. U+2028, U+2029 and
//! U+0085 leave as `\uXXXX`: the published Python client ends a line at each of them and loses the frame (measured).
//! A raw carriage return, which JSON allows between tokens, leaves as a space: SSE would end the line there. Since
//! every line is validated, neither can be used to forge a frame.

use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::api::EventId;
use super::classify::STREAM_EVENT;
use super::claude::Line;
use super::claude::line::{Block, object};
use super::event_id::FRAME_FIRST;

/// Appends the frames of `line`, which lies at `offset` in `turn`. Frames numbered up to `skip` are left out: the
/// client has them (0: none). A line has the same frame numbers with and without `partial`.
pub fn frames(line: &[u8], turn: i64, offset: u64, skip: u32, partial: bool, out: &mut BytesMut) {
    // Most lines of a turn are these; a client that did not ask for them pays for a comparison only.
    if !partial && line.starts_with(STREAM_EVENT) {
        return;
    }
    let Some(parsed) = Line::parse(line) else { return };
    let mut frames = Frames { out, turn, offset, next: FRAME_FIRST, skip };
    match parsed.kind() {
        "stream_event" if !partial => return,
        "stream_event" => delta(&parsed, &mut frames),
        "assistant" => {
            for block in parsed.blocks().iter().filter(|block| block.kind() == "tool_use") {
                frames.object("tool_use", &[("id", block.id), ("name", block.name), ("input", block.input)]);
            }
        }
        "user" if !parsed.is_replay() => {
            for block in parsed.blocks().iter().filter(|block| block.kind() == "tool_result") {
                tool_result(block, &mut frames);
            }
        }
        "result" => {
            frames.object("turn_complete", &[("numTurns", parsed.num_turns), ("result", parsed.result)]);
        }
        "control_request"
        | "control_response"
        | "control_cancel_request"
        | "command_lifecycle"
        | "transcript_mirror"
        | "keep_alive" => return,
        _ => {}
    }
    frames.frame("message", |out| put_line(out, line));
}

/// A frame of ashd's own: session_start, error, done, gap. `data` is one JSON object on one line.
pub fn own_frame(id: EventId, event: &str, data: &serde_json::Value, out: &mut BytesMut) {
    let mut frames = Frames { out, turn: id.turn, offset: id.offset, next: id.frame, skip: 0 };
    // Not `frame`: number 0 is a place like any other here.
    frames.head(event);
    put_line(frames.out, data.to_string().as_bytes());
    frames.out.put_slice(b"\n\n");
}

fn delta(line: &Line<'_>, frames: &mut Frames<'_>) {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow, default)]
        delta: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Delta<'a> {
        #[serde(borrow, default, rename = "type")]
        kind: Option<&'a RawValue>,
        #[serde(borrow, default)]
        text: Option<&'a RawValue>,
        #[serde(borrow, default)]
        thinking: Option<&'a RawValue>,
    }
    let Some(delta) = line.event.and_then(object::<Event<'_>>).and_then(|e| e.delta).and_then(object::<Delta<'_>>)
    else {
        return;
    };
    match delta.kind.map(RawValue::get) {
        Some("\"text_delta\"") => frames.object("text_delta", &[("delta", delta.text)]),
        Some("\"thinking_delta\"") => frames.object("thinking_delta", &[("delta", delta.thinking)]),
        _ => {}
    }
}

fn tool_result(block: &Block<'_>, frames: &mut Frames<'_>) {
    let is_error = super::claude::line::is_true(block.is_error);
    frames.frame("tool_result", |out| {
        out.put_slice(b"{\"tool_use_id\":");
        put_value(out, block.tool_use_id);
        out.put_slice(b",\"content\":");
        put_value(out, block.content);
        out.put_slice(if is_error { b",\"is_error\":true}" } else { b",\"is_error\":false}" });
    });
}

struct Frames<'a> {
    out: &'a mut BytesMut,
    turn: i64,
    offset: u64,
    next: u32,
    skip: u32,
}

impl Frames<'_> {
    fn frame(&mut self, event: &str, data: impl FnOnce(&mut BytesMut)) {
        let wanted = self.next > self.skip;
        if wanted {
            self.head(event);
            data(self.out);
            self.out.put_slice(b"\n\n");
        }
        self.next += 1;
    }

    fn object(&mut self, event: &str, fields: &[(&str, Option<&RawValue>)]) {
        self.frame(event, |out| {
            for (n, (name, value)) in fields.iter().enumerate() {
                out.put_slice(if n == 0 { b"{\"" } else { b",\"" });
                out.put_slice(name.as_bytes());
                out.put_slice(b"\":");
                put_value(out, *value);
            }
            out.put_u8(b'}');
        });
    }

    fn head(&mut self, event: &str) {
        self.out.put_slice(b"id: ");
        put_number(self.out, u64::try_from(self.turn).unwrap_or(0));
        self.out.put_u8(b':');
        put_number(self.out, self.offset);
        self.out.put_u8(b':');
        put_number(self.out, u64::from(self.next));
        self.out.put_slice(b"\nevent: ");
        self.out.put_slice(event.as_bytes());
        self.out.put_slice(b"\ndata: ");
    }
}

fn put_value(out: &mut BytesMut, value: Option<&RawValue>) {
    put_line(out, value.map_or("null", RawValue::get).as_bytes());
}

/// Decimal digits, without the machinery of `fmt`: three of these are in every frame.
fn put_number(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// Valid JSON in UTF-8, as it is but for what would end a line (see the module's page).
fn put_line(out: &mut BytesMut, json: &[u8]) {
    let mut copied = 0;
    // U+2028 and U+2029 are E2 80 A8 and E2 80 A9, U+0085 is C2 85.
    for at in memchr::memchr3_iter(0xE2, 0xC2, b'\r', json) {
        let (length, replacement): (usize, &[u8]) = match &json[at..] {
            [0xE2, 0x80, 0xA8, ..] => (3, b"\\u2028"),
            [0xE2, 0x80, 0xA9, ..] => (3, b"\\u2029"),
            [0xC2, 0x85, ..] => (2, b"\\u0085"),
            [b'\r', ..] => (1, b" "),
            _ => continue,
        };
        out.put_slice(&json[copied..at]);
        out.put_slice(replacement);
        copied = at + length;
    }
    out.put_slice(&json[copied..]);
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
