//! Server-sent events, read more strictly than any client does: every frame must have exactly the form the contract
//! gives (§6), else the test fails.

use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Frame {
    pub id: Option<String>,
    pub event: String,
    pub data: Value,
    /// The text of the `data:` line as it came.
    pub raw: String,
}

/// Cuts whole frames off the front of `buffer`.
///
/// # Panics
/// When a frame breaks the form.
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
    assert!(!block.contains(['\u{2028}', '\u{2029}', '\u{85}', '\r']), "a line separator left unescaped: {block:?}");
    let lines: Vec<&str> = block.split('\n').collect();
    // Comments and retry stand alone.
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
    let data: Value = serde_json::from_str(&raw).unwrap_or_else(|e| panic!("data is not JSON ({e}): {raw}"));
    assert!(data.is_object(), "data is not one object: {raw}");
    let event = only("event: ").unwrap_or_else(|| panic!("a frame names no event: {block}"));
    Some(Frame { id: only("id: "), event, data, raw })
}
