//! A strict parser of server-sent events: a frame that differs from the documented form
//! (docs/streaming.md) fails the test.

use std::borrow::Cow;

use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Clone, Debug)]
pub struct Frame {
    pub id: Option<String>,
    pub event: String,
    pub data: Value,
    /// The text of the `data:` line, unchanged.
    pub raw: String,
}

/// Removes complete frames from the front of `buffer`.
///
/// # Panics
/// A frame has a wrong form.
pub fn frames(buffer: &mut Vec<u8>) -> Vec<Frame> {
    let mut found = Vec::new();
    while let Some(end) = memchr::memmem::find(buffer, b"\n\n") {
        let block: Vec<u8> = buffer.drain(..end + 2).collect();
        let text = String::from_utf8(block).expect("a stream is UTF-8");
        found.extend(frame(text.trim_end_matches('\n')));
    }
    found
}

fn frame(block: &str) -> Option<Frame> {
    let separators = ["\u{2028}", "\u{2029}", "\u{85}", "\r"];
    let unescaped = separators.iter().any(|one| memchr::memmem::find(block.as_bytes(), one.as_bytes()).is_some());
    assert!(!unescaped, "a line separator left unescaped: {block:?}");
    let lines: Vec<&str> = block.split('\n').collect();
    // Comments and retry are frames of their own.
    if lines.iter().all(|line| line.is_empty() || line.starts_with(':') || line.starts_with("retry: ")) {
        return None;
    }
    let only = |field: &str| {
        let mut of_field = lines.iter().filter_map(|line| line.strip_prefix(field));
        let first = of_field.next().map(str::to_owned);
        assert!(of_field.next().is_none(), "two \"{field}\" lines in one frame: {block}");
        first
    };
    for line in &lines {
        let known = ["id: ", "event: ", "data: "].iter().any(|field| line.starts_with(field));
        assert!(known, "a line of a frame has no field of the contract: {line:?}");
    }
    let raw = only("data: ").unwrap_or_else(|| panic!("a frame without data: {block}"));
    let data: Value = serde_json::from_str(&readable(&raw)).unwrap_or_else(|e| panic!("data is not JSON ({e}): {raw}"));
    assert!(data.is_object(), "data is not one object: {raw}");
    let event = only("event: ").unwrap_or_else(|| panic!("a frame names no event: {block}"));
    Some(Frame { id: only("id: "), event, data, raw })
}

/// Replaces each unpaired surrogate in JSON by U+FFFD. JSON allows such a string (JavaScript reads
/// it) and ashd passes it on unchanged, but a `Value` cannot hold it.
fn readable(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    if memchr::memmem::find(bytes, b"\\ud").or_else(|| memchr::memmem::find(bytes, b"\\uD")).is_none()
        || serde_json::from_str::<&RawValue>(json).is_err()
    {
        return Cow::Borrowed(json);
    }
    let unit = |at: usize| {
        let escape = bytes.get(at..at + 6).filter(|escape| escape.starts_with(b"\\u"))?;
        u16::from_str_radix(std::str::from_utf8(&escape[2..]).ok()?, 16).ok()
    };
    let (mut out, mut copied, mut at) = (String::with_capacity(json.len()), 0, 0);
    while let Some(next) = memchr::memchr(b'\\', &bytes[at..]) {
        at += next;
        let is_low = |unit: Option<u16>| matches!(unit, Some(0xDC00..=0xDFFF));
        at += match unit(at) {
            Some(0xD800..=0xDBFF) if is_low(unit(at + 6)) => 12,
            Some(0xD800..=0xDFFF) => {
                out.push_str(&json[copied..at]);
                out.push_str("\\ufffd");
                copied = at + 6;
                6
            }
            Some(_) => 6,
            None => 2,
        };
    }
    out.push_str(&json[copied..]);
    Cow::Owned(out)
}
