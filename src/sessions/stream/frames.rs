//! One line of claude's stdout as SSE frames.
//!
//! ```text
//! stream_event --(includePartialMessages)--> text_delta | thinking_delta, then message
//! assistant -------------------------------> tool_use ..., then message
//! user ------------------------------------> tool_result ..., then message
//! result ----------------------------------> turn_complete, then message
//! control_*, command_lifecycle, transcript_mirror, keep_alive
//! -----------------------------------------> nothing: internal between ashd and claude
//! not one JSON object in UTF-8 ------------> nothing
//! anything else ---------------------------> message
//! ```
//!
//! A frame is `id: T:O:F\nevent: K\ndata: J\n\n`. `J` is the unchanged line, with these exceptions.
//! U+2028, U+2029 and U+0085 become `\uXXXX`: the published Python client ends a line at each of
//! them and loses the frame. A raw carriage return, which JSON allows between tokens, becomes a
//! space: SSE would end the line there. Every line is validated, so neither can forge a frame.
//! Invalid UTF-8 becomes U+FFFD.
//!
//! A line that is too long to hold is sent in pieces ([`long_frames`]): frames before its `message`
//! come from the abridged line, the `message` frame carries all of it.

use bytes::{BufMut, BytesMut};
use serde_json::value::RawValue;

use super::event_id::FRAME_FIRST;
use crate::sessions::claude::Line;
use crate::sessions::claude::classify::{BLOCKS, STREAM_EVENT};
use crate::sessions::claude::line::{Block, is_true, member, utf8};
use crate::sessions::stream::EventId;

/// Appends the frames of `line`, which lies at `offset` in `turn`. Leaves out frames numbered up to
/// `skip`, which the client has (0: none). Frame numbers do not depend on `partial`.
pub fn frames(line: &[u8], turn: i64, offset: u64, skip: u32, partial: bool, out: &mut BytesMut) {
    // Most lines of a turn; a client that did not ask for them costs only this comparison.
    if !partial && line.starts_with(STREAM_EVENT) {
        return;
    }
    let text = utf8(line);
    let Some(parsed) = Line::parse(&text) else { return };
    let mut frames = Frames { out, turn, offset, next: FRAME_FIRST, skip };
    if derived(&parsed, partial, &mut frames) {
        frames.frame("message", |out| put_line(out, text.as_bytes()));
    }
}

/// The frames of a line that is too long to hold, up to the head of its `message` frame. `abridged`
/// is what is kept of it. Returns whether the line itself follows: its pieces ([`piece_of`]), then
/// [`END`].
pub fn long_frames(abridged: &[u8], turn: i64, offset: u64, skip: u32, partial: bool, out: &mut BytesMut) -> bool {
    let text = utf8(abridged);
    let Some(parsed) = Line::parse(&text) else { return false };
    let mut frames = Frames { out, turn, offset, next: FRAME_FIRST, skip };
    let shown = derived(&parsed, partial, &mut frames) && frames.next > frames.skip;
    if shown {
        frames.head("message");
    }
    shown
}

/// Ends a frame.
pub const END: &[u8] = b"\n\n";

/// Writes a piece of a line. Returns the bytes taken: all of them or, unless it is the `last`, all
/// but at most three at the end whose meaning depends on what follows.
pub fn piece_of(piece: &[u8], last: bool, out: &mut BytesMut) -> usize {
    let mut taken = piece.len();
    for chunk in piece.utf8_chunks() {
        put_line(out, chunk.valid().as_bytes());
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let at = invalid.as_ptr().addr() - piece.as_ptr().addr();
        let unfinished = at + invalid.len() == piece.len()
            && std::str::from_utf8(invalid).is_err_and(|wrong| wrong.error_len().is_none());
        if unfinished && !last {
            taken = at;
        } else {
            out.put_slice("\u{FFFD}".as_bytes());
        }
    }
    taken
}

/// Writes the frames derived from a line; returns whether its `message` frame follows.
fn derived(parsed: &Line<'_>, partial: bool, frames: &mut Frames<'_>) -> bool {
    // Each frame is larger than its block may be.
    let mut left = BLOCKS;
    let mut another = || {
        left -= 1;
        left > 0
    };
    match parsed.kind() {
        "stream_event" if !partial => return false,
        "stream_event" => delta(parsed, frames),
        "assistant" => parsed.each_block(|block| {
            if block.kind() != "tool_use" {
                return true;
            }
            frames.object("tool_use", &[("id", block.id), ("name", block.name), ("input", block.input)]);
            another()
        }),
        "user" if !parsed.is_replay() => parsed.each_block(|block| {
            if block.kind() != "tool_result" {
                return true;
            }
            tool_result(&block, frames);
            another()
        }),
        "result" => {
            frames.object("turn_complete", &[("numTurns", parsed.num_turns), ("result", parsed.result)]);
        }
        "control_request"
        | "control_response"
        | "control_cancel_request"
        | "command_lifecycle"
        | "transcript_mirror"
        | "keep_alive" => return false,
        _ => {}
    }
    true
}

/// A frame of ashd: session_start, error, done, gap. `data` is one JSON object on one line.
pub fn own_frame(id: EventId, event: &str, data: &serde_json::Value, out: &mut BytesMut) {
    let mut frames = Frames { out, turn: id.turn, offset: id.offset, next: id.frame, skip: 0 };
    // Not `frame`: here number 0 is valid.
    frames.head(event);
    put_line(frames.out, data.to_string().as_bytes());
    frames.out.put_slice(END);
}

fn delta(line: &Line<'_>, frames: &mut Frames<'_>) {
    let Some(delta) = line.event.and_then(|event| member(event, "delta")) else { return };
    match member(delta, "type").map(RawValue::get) {
        Some("\"text_delta\"") => frames.object("text_delta", &[("delta", member(delta, "text"))]),
        Some("\"thinking_delta\"") => frames.object("thinking_delta", &[("delta", member(delta, "thinking"))]),
        _ => {}
    }
}

fn tool_result(block: &Block<'_>, frames: &mut Frames<'_>) {
    let is_error = is_true(block.is_error);
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
            self.out.put_slice(END);
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

/// Decimal digits, faster than `fmt`: every frame has three of them.
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

/// Valid JSON in UTF-8, with line terminators escaped (see the module).
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
