//! Strings and numbers of an abridged line.

use super::{Abridger, NAME, NUMBER, State};

/// Bytes of the note in a cut string.
const NOTE: usize = 64;

/// Position in a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Digit {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

impl Abridger {
    pub(super) fn begin_string(&mut self, is_name: bool) {
        // A new name ends what was left out of the previous member.
        if is_name && self.depth == 1 {
            self.muted = false;
        }
        self.is_name = is_name;
        self.length = 0;
        self.cut = false;
        let kept = !self.muted && self.depth == self.kept_depth;
        if is_name {
            self.room = NAME;
            self.name = kept.then(Vec::new);
        } else {
            let most = if self.depth == 1 { self.bounds.answer } else { self.bounds.string };
            self.room = if kept { most.min(self.left.saturating_sub(NOTE)) } else { 0 };
        }
    }

    /// Takes a string up to its end, to an escape or to the end of this piece; returns the bytes
    /// taken.
    pub(super) fn text(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20).unwrap_or(bytes.len());
        self.keep(&bytes[..end], false);
        match bytes.get(end) {
            None => return end,
            Some(b'"') => self.end_string(),
            Some(b'\\') => {
                self.token.clear();
                self.token.push(b'\\');
                self.state = State::Escape;
            }
            Some(_) => self.state = State::Broken,
        }
        end + 1
    }

    /// An escape is complete.
    pub(super) fn escape(&mut self) {
        let token = std::mem::take(&mut self.token);
        // A surrogate pair is kept whole or not at all.
        let high = matches!(token.get(1..4), Some([b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B']));
        if high && self.room < 2 * token.len() {
            self.room = 0;
        }
        self.keep(&token, true);
        self.token = token;
    }

    fn keep(&mut self, bytes: &[u8], whole: bool) {
        self.length += bytes.len() as u64;
        if self.cut || bytes.is_empty() {
            return;
        }
        let mut end = bytes.len();
        if end > self.room {
            self.cut = true;
            end = if whole { 0 } else { self.room };
            // A character is kept whole or not at all.
            while end > 0 && bytes[end] & 0xC0 == 0x80 {
                end -= 1;
            }
        }
        self.room -= end;
        let kept = !self.muted && self.depth == self.kept_depth;
        match (&mut self.name, kept) {
            (Some(name), true) if self.is_name => name.extend_from_slice(&bytes[..end]),
            (_, true) if !self.is_name => self.put(&bytes[..end]),
            _ => {}
        }
    }

    fn end_string(&mut self) {
        let kept = !self.muted && self.depth == self.kept_depth;
        if self.is_name {
            if self.cut {
                self.name = None;
            }
            self.state = State::Colon;
            return;
        }
        if kept {
            if self.cut {
                self.shortened = true;
                self.put(format!(" [cut by ashd, {} bytes]", self.length).as_bytes());
            }
            self.put(b"\"");
        }
        self.state = State::Next;
    }

    pub(super) fn push_token(&mut self, byte: u8) {
        if self.token.len() <= NUMBER {
            self.token.push(byte);
        }
    }

    pub(super) fn end_number(&mut self) {
        let token = std::mem::take(&mut self.token);
        if !self.muted && self.depth == self.kept_depth {
            if token.len() <= NUMBER {
                self.put(&token);
            } else {
                self.shortened = true;
                self.put(b"null");
            }
        }
        self.token = token;
    }
}

/// The position after this byte; `None` when the byte is not part of the number.
pub(super) fn number(at: Digit, byte: u8) -> Option<Digit> {
    use Digit as D;
    Some(match (at, byte) {
        (D::Minus, b'0') => D::Zero,
        (D::Minus, b'1'..=b'9') | (D::Whole, b'0'..=b'9') => D::Whole,
        (D::Zero | D::Whole, b'.') => D::Point,
        (D::Point | D::Fraction, b'0'..=b'9') => D::Fraction,
        (D::Zero | D::Whole | D::Fraction, b'e' | b'E') => D::Exponent,
        (D::Exponent, b'+' | b'-') => D::Sign,
        (D::Exponent | D::Sign | D::Power, b'0'..=b'9') => D::Power,
        _ => return None,
    })
}
