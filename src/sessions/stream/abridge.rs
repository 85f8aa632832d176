//! Abridges a line that is too long to hold: the same JSON object with long strings cut and long
//! lists ended early. It works on pieces while the line is read, and needs no more memory than its
//! output.
//!
//! ```text
//!   {"type":"result","result":"xxxx ... 31 MB ...","usage":{...}}   -->
//!   {"type":"result","result":"xxxx [cut by ashd, 32505856 bytes]","usage":{...},
//!    "omitted":{"bytes":32506011,...}}
//! ```
//!
//! [`omitted`] marks everything in the history that differs from claude's output.
//!
//! Each member of the outer object has its own budget, so that a huge one takes nothing from later
//! ones: the cost of a turn is at the end of its line. Members that ashd does not read share one
//! budget.

use crate::sessions::claude::omitted::omitted;

/// Bounds in bytes of JSON text.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// One string.
    pub string: usize,
    /// A string that is a direct member: `result`, which the timeline and the queue show.
    pub answer: usize,
    /// One member that routing reads.
    pub member: usize,
    /// `message` and `result`.
    pub large: usize,
    /// All other members together.
    pub rest: usize,
}

impl Bounds {
    /// About 1.5 MiB in total.
    pub const LINE: Self =
        Self { string: 32 << 10, answer: 256 << 10, member: 32 << 10, large: 256 << 10, rest: 256 << 10 };
    /// For frames derived from a line, before the one that carries all of it.
    pub const FRAMES: Self = Self { answer: 32 << 10, ..Self::LINE };
    /// About 80 KiB in total, for results of a tenant whose storage is full.
    pub const RESULT: Self =
        Self { string: 4 << 10, answer: 16 << 10, member: 2 << 10, large: 16 << 10, rest: 2 << 10 };
}

/// Members that ashd reads, in any kind of line; the first two have the large budget.
const KNOWN: [&[u8]; 22] = [
    b"message",
    b"result",
    b"type",
    b"subtype",
    b"uuid",
    b"session_id",
    b"parent_tool_use_id",
    b"is_error",
    b"errors",
    b"num_turns",
    b"total_cost_usd",
    b"terminal_reason",
    b"api_error_status",
    b"user_message_uuids",
    b"duration_ms",
    b"usage",
    b"model_usage_since_last_result",
    b"isReplay",
    b"request_id",
    b"request",
    b"response",
    b"tool_use_result",
];
const LARGE: usize = 2;

/// Longest name of a kept member, in bytes; members with longer names are left out.
const NAME: usize = 256;
/// Longest kept number, in bytes; a longer one becomes null.
const NUMBER: usize = 64;
/// Minimum bytes of a value: a number, or a string that is cut at once.
const LEAST: usize = NUMBER + 8;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// A value must come.
    Value,
    /// The first element of a list, or its end.
    Element,
    /// The first name of an object, or its end.
    Name,
    /// A further name of an object.
    NextName,
    Colon,
    /// A comma, or the end of the open container.
    Next,
    /// In a string, name or value.
    Text,
    /// After a backslash.
    Escape,
    /// Missing digits of `\uXXXX`.
    Digits(u8),
    Number(Digit),
    /// In `true`, `false` or `null`: the missing part.
    Word(&'static [u8]),
    /// After the outer object.
    Over,
    Broken,
}

/// Takes a line piece by piece.
#[derive(Debug)]
pub struct Abridger {
    bounds: Bounds,
    state: State,
    /// Open containers, one bit each: 1 is an object. A line of brackets only needs an eighth of
    /// its length.
    open: Vec<u64>,
    depth: usize,
    out: Vec<u8>,
    /// Number of open containers that are in `out`.
    kept_depth: usize,
    /// The rest of this direct member is left out.
    muted: bool,
    /// Budget left of this member, and of all unknown ones.
    left: usize,
    rest: usize,
    unknown: bool,
    /// Known members seen so far, one bit each.
    seen: u32,
    /// The current string is a name.
    is_name: bool,
    /// The last name, without quotes; `None` when it is too long.
    name: Option<Vec<u8>>,
    /// The current number or escape.
    token: Vec<u8>,
    /// Of the current string: budget left, length so far, and whether something was cut.
    room: usize,
    length: u64,
    cut: bool,
    shortened: bool,
    /// Bytes fed.
    fed: u64,
}

impl Abridger {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: State::Value,
            open: Vec::new(),
            depth: 0,
            out: Vec::new(),
            kept_depth: 0,
            muted: false,
            left: bounds.member,
            rest: bounds.rest,
            unknown: false,
            seen: 0,
            is_name: false,
            name: None,
            token: Vec::new(),
            room: 0,
            length: 0,
            cut: false,
            shortened: false,
            fed: 0,
        }
    }

    /// The abridged line; `None` when the input is not one JSON object. When something is missing,
    /// [`omitted`] is appended with the line's `offset` and the reason.
    pub fn finish(self, offset: u64, why: &str) -> Option<Vec<u8>> {
        if self.state != State::Over {
            return None;
        }
        let mut out = self.out;
        if self.shortened {
            out.pop();
            if out.last() != Some(&b'{') {
                out.push(b',');
            }
            out.extend_from_slice(format!("\"omitted\":{}}}", omitted(self.fed, offset, why)).as_bytes());
        }
        Some(out)
    }

    pub fn feed(&mut self, mut bytes: &[u8]) {
        self.fed += bytes.len() as u64;
        while let Some(&byte) = bytes.first() {
            let taken = match self.state {
                State::Broken => return,
                State::Text => self.text(bytes),
                _ => {
                    self.byte(byte);
                    1
                }
            };
            bytes = &bytes[taken..];
        }
    }

    fn byte(&mut self, byte: u8) {
        let space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        self.state = match (self.state, byte) {
            (State::Number(at), _) => match number(at, byte) {
                Some(at) => {
                    self.push_token(byte);
                    State::Number(at)
                }
                None if matches!(at, Digit::Zero | Digit::Whole | Digit::Fraction | Digit::Power) => {
                    self.end_number();
                    self.state = State::Next;
                    return self.byte(byte);
                }
                None => State::Broken,
            },
            (State::Word(missing), _) => match missing.split_first() {
                Some((first, [])) if *first == byte => State::Next,
                Some((first, more)) if *first == byte => State::Word(more),
                _ => State::Broken,
            },
            (State::Escape, b'u') => {
                self.token.push(byte);
                State::Digits(4)
            }
            (State::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.token.push(byte);
                self.escape();
                State::Text
            }
            (State::Digits(left), _) if byte.is_ascii_hexdigit() => {
                self.token.push(byte);
                if left == 1 {
                    self.escape();
                    State::Text
                } else {
                    State::Digits(left - 1)
                }
            }
            (State::Escape | State::Digits(_), _) => State::Broken,
            (state, _) if space => state,
            (State::Element, b']') | (State::Name, b'}') => self.close(),
            (State::Value | State::Element, _) => self.value(byte),
            (State::Name | State::NextName, b'"') => {
                self.begin_string(true);
                State::Text
            }
            (State::Colon, b':') => State::Value,
            (State::Next, b',') if self.depth > 0 => {
                if self.is_object() {
                    State::NextName
                } else {
                    State::Value
                }
            }
            (State::Next, b']') if self.depth > 0 && !self.is_object() => self.close(),
            (State::Next, b'}') if self.depth > 0 && self.is_object() => self.close(),
            _ => State::Broken,
        };
    }

    fn value(&mut self, byte: u8) -> State {
        // A line is an object.
        if self.depth == 0 && byte != b'{' {
            return State::Broken;
        }
        let kept = self.begin_value();
        match byte {
            b'{' | b'[' => {
                let object = byte == b'{';
                let (word, bit) = (self.depth / 64, 1 << (self.depth % 64));
                if word == self.open.len() {
                    self.open.push(0);
                }
                self.open[word] = if object { self.open[word] | bit } else { self.open[word] & !bit };
                if kept {
                    self.put(&[byte]);
                    self.kept_depth += 1;
                    // For the closing bracket.
                    self.left = self.left.saturating_sub(1);
                }
                self.depth += 1;
                if object { State::Name } else { State::Element }
            }
            b'"' => {
                self.begin_string(false);
                if kept {
                    self.put(b"\"");
                }
                State::Text
            }
            b't' | b'f' | b'n' => {
                let word: &'static [u8] = match byte {
                    b't' => b"true",
                    b'f' => b"false",
                    _ => b"null",
                };
                if kept {
                    self.put(word);
                }
                State::Word(&word[1..])
            }
            b'-' | b'0'..=b'9' => {
                self.token.clear();
                self.token.push(byte);
                State::Number(match byte {
                    b'-' => Digit::Minus,
                    b'0' => Digit::Zero,
                    _ => Digit::Whole,
                })
            }
            _ => State::Broken,
        }
    }

    /// Whether the beginning value is kept. If so, writes its comma and name.
    fn begin_value(&mut self) -> bool {
        let name = self.name.take();
        if self.depth == 0 {
            return true;
        }
        if self.depth == 1 {
            self.begin_member(name.as_deref());
        }
        if self.muted || self.depth != self.kept_depth {
            return false;
        }
        let needed = LEAST + name.as_ref().map_or(0, |name| name.len() + 4);
        if (self.is_object() && name.is_none()) || needed > self.left {
            self.mute();
            return false;
        }
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.put(b",");
        }
        if let Some(name) = name {
            self.put(b"\"");
            self.put(&name);
            self.put(b"\":");
        }
        true
    }

    fn begin_member(&mut self, name: Option<&[u8]>) {
        self.settle();
        self.muted = false;
        let known = KNOWN.iter().position(|known| name.is_some_and(|name| name == *known));
        // A repeated member counts as unknown.
        let known = known.filter(|at| self.seen >> at & 1 == 0);
        self.unknown = known.is_none();
        self.left = match known {
            Some(at) if at < LARGE => self.bounds.large,
            Some(_) => self.bounds.member,
            None => self.rest.min(self.bounds.member),
        };
        match known {
            Some(at) => self.seen |= 1 << at,
            // The rest is returned at the member's end.
            None => self.rest -= self.left,
        }
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.unknown) {
            self.rest += self.left;
        }
    }

    fn mute(&mut self) {
        self.muted = true;
        self.shortened = true;
    }

    fn close(&mut self) -> State {
        let closer = if self.is_object() { b'}' } else { b']' };
        if self.depth == self.kept_depth {
            self.out.push(closer);
            self.kept_depth -= 1;
        }
        self.depth -= 1;
        if self.depth == 0 { State::Over } else { State::Next }
    }

    fn is_object(&self) -> bool {
        let at = self.depth - 1;
        self.open[at / 64] >> (at % 64) & 1 == 1
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.left = self.left.saturating_sub(bytes.len());
    }
}

#[path = "abridge_tokens.rs"]
mod tokens;
use tokens::{Digit, number};

#[cfg(test)]
#[path = "abridge_tests.rs"]
mod tests;
