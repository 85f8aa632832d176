//! Marks history rows that differ from claude's output: a member `omitted` at the end of the
//! object.
//!
//! ```text
//!   a line or event of more than 4 MiB -> abridged ([`crate::sessions::stream::abridge`]):
//!       {"type":...,"result":"xxx [cut by ashd, N bytes]","omitted":{...}}
//!   what a turn adds beyond its bound  -> one stub:
//!       {"type":"assistant","omitted":{...}}
//! ```

use serde_json::{Value, json};

use crate::sessions::stream::abridge::{Abridger, Bounds};

/// Why a long line is abridged.
pub const LONG_LINE: &str = "the line exceeds the history limit of 4 MiB";

/// The member's value: bytes of the line, its offset in the session's output, why something is
/// missing, and where to read the whole line while it is kept.
pub fn omitted(bytes: u64, offset: u64, why: &str) -> Value {
    json!({ "bytes": bytes, "outputOffset": offset, "reason": why, "readFrom": "GET /api/sessions/:id/stream" })
}

/// Appends the member to a JSON object. `omitted` is JSON text.
pub fn marked(object: &str, omitted: &str) -> String {
    let open = object.trim_end().strip_suffix('}').unwrap_or("{");
    let comma = if open.trim_end().ends_with('{') { "" } else { "," };
    format!("{open}{comma}\"omitted\":{omitted}}}")
}

/// Abridges a JSON object in memory; `None` when it is no object. `offset`: where its line begins
/// in the session's output.
pub fn abridged(object: &str, bounds: Bounds, offset: u64, why: &str) -> Option<String> {
    let mut abridger = Abridger::new(bounds);
    abridger.feed(object.as_bytes());
    // Strings are cut between characters, so the conversion loses nothing.
    abridger.finish(offset, why).map(|kept| String::from_utf8_lossy(&kept).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_the_last_member() {
        for (object, expected) in
            [("{}", r#"{"omitted":1}"#), (r#"{"a":{}}"#, r#"{"a":{},"omitted":1}"#), ("{ } ", "{ \"omitted\":1}")]
        {
            assert_eq!(marked(object, "1"), expected);
        }
    }

    #[test]
    fn what_is_cut_says_how_long_it_was_and_where() {
        let line = format!(r#"{{"type":"result","result":"{}","n":1}}"#, "ä".repeat(1 << 20));
        let kept = abridged(&line, Bounds::LINE, 77, LONG_LINE).expect("an object");
        let json: Value = serde_json::from_str(&kept).expect("JSON");
        assert_eq!(json["omitted"], omitted(line.len() as u64, 77, LONG_LINE));
        assert_eq!((&json["type"], &json["n"]), (&json!("result"), &json!(1)));
        let result = json["result"].as_str().expect("text");
        assert!(result.ends_with(" [cut by ashd, 2097152 bytes]") && result.len() > 250 << 10, "{}", result.len());
        assert!(kept.len() < 260 << 10);
        let kept = abridged(&line, Bounds::RESULT, 77, LONG_LINE).expect("an object");
        assert!(kept.len() < 17 << 10, "{}", kept.len());
        assert_eq!(abridged(r#"{"a": 1}"#, Bounds::LINE, 0, "").as_deref(), Some(r#"{"a":1}"#), "nothing is missing");
        assert_eq!(abridged("[]", Bounds::LINE, 0, ""), None);
    }
}
