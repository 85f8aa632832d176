//! One line of claude's stdout, parsed only as far as routing needs. Every field stays raw text:
//! passing a part on never re-serialises it, and no content (a lone surrogate, a huge number, deep
//! nesting) makes the rest of the line unreadable.

use std::borrow::Cow;

use serde_json::value::RawValue;

use ash_model::raw::{elements, members, text};

/// A line that is one JSON object. Fields that routing does not need are validated and skipped. Of
/// a repeated field the last counts, as for claude's own clients.
///
/// The payload can write to stdout too: a field of an unexpected type counts as absent.
#[derive(Debug, Default)]
pub struct Line<'a> {
    kind: Option<&'a RawValue>,
    subtype: Option<&'a RawValue>,
    pub message: Option<&'a RawValue>,
    pub event: Option<&'a RawValue>,
    pub tool_use_result: Option<&'a RawValue>,
    pub result: Option<&'a RawValue>,
    pub num_turns: Option<&'a RawValue>,
    pub model: Option<&'a RawValue>,
    pub request: Option<&'a RawValue>,
    pub request_id: Option<&'a RawValue>,
    pub response: Option<&'a RawValue>,
    pub command_uuid: Option<&'a RawValue>,
    pub state: Option<&'a RawValue>,
    pub tasks: Option<&'a RawValue>,
    pub session_id: Option<&'a RawValue>,
    is_replay: Option<&'a RawValue>,
}

/// A line's bytes as text. Invalid UTF-8 becomes U+FFFD, so that the rest of the line is not lost.
pub fn utf8(line: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(line)
}

impl<'a> Line<'a> {
    /// `None` when the line is not one JSON object.
    pub fn parse(line: &'a str) -> Option<Self> {
        let mut all = Self::default();
        let whole = members(line, |name, value| {
            let field = match name {
                "type" => &mut all.kind,
                "subtype" => &mut all.subtype,
                "message" => &mut all.message,
                "event" => &mut all.event,
                "tool_use_result" => &mut all.tool_use_result,
                "result" => &mut all.result,
                "num_turns" => &mut all.num_turns,
                "model" => &mut all.model,
                "request" => &mut all.request,
                "request_id" => &mut all.request_id,
                "response" => &mut all.response,
                "command_uuid" => &mut all.command_uuid,
                "state" => &mut all.state,
                "tasks" => &mut all.tasks,
                "session_id" => &mut all.session_id,
                "isReplay" => &mut all.is_replay,
                _ => return,
            };
            *field = Some(value);
        });
        whole.then_some(all)
    }

    /// The `type`, or the empty string.
    pub fn kind(&self) -> &'a str {
        plain(self.kind)
    }

    /// The `subtype`, or the empty string.
    pub fn subtype(&self) -> &'a str {
        plain(self.subtype)
    }

    /// A user message that claude repeats (from the client or the history): shown, not stored.
    pub fn is_replay(&self) -> bool {
        is_true(self.is_replay)
    }

    /// Calls `each` with the blocks of `message.content` until it returns `false`. Plain string
    /// content has none. Blocks are not collected: a line of a few MiB can hold a million.
    pub fn each_block(&self, mut each: impl FnMut(Block<'a>) -> bool) {
        let Some(content) = self.message.and_then(|message| member(message, "content")) else { return };
        elements(content.get(), |raw| Block::read(raw).is_none_or(&mut each));
    }
}

/// One content block of an assistant or user message.
#[derive(Debug, Default)]
pub struct Block<'a> {
    kind: Option<&'a RawValue>,
    pub id: Option<&'a RawValue>,
    pub name: Option<&'a RawValue>,
    pub input: Option<&'a RawValue>,
    pub text: Option<&'a RawValue>,
    pub thinking: Option<&'a RawValue>,
    pub tool_use_id: Option<&'a RawValue>,
    pub content: Option<&'a RawValue>,
    pub is_error: Option<&'a RawValue>,
}

impl<'a> Block<'a> {
    /// `None` when it is not an object.
    pub fn read(raw: &'a RawValue) -> Option<Self> {
        let mut all = Self::default();
        let whole = members(raw.get(), |name, value| {
            let field = match name {
                "type" => &mut all.kind,
                "id" => &mut all.id,
                "name" => &mut all.name,
                "input" => &mut all.input,
                "text" => &mut all.text,
                "thinking" => &mut all.thinking,
                "tool_use_id" => &mut all.tool_use_id,
                "content" => &mut all.content,
                "is_error" => &mut all.is_error,
                _ => return,
            };
            *field = Some(value);
        });
        whole.then_some(all)
    }

    pub fn kind(&self) -> &'a str {
        plain(self.kind)
    }
}

/// The object's member with this name; `None` for anything else.
pub fn member<'a>(raw: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let mut found = None;
    let whole = members(raw.get(), |key, value| {
        if key == name {
            found = Some(value);
        }
    });
    found.filter(|_| whole)
}

/// The content of a JSON string without escapes, as protocol words are; else the empty string.
pub fn plain(raw: Option<&RawValue>) -> &str {
    let text = raw.map_or("", RawValue::get);
    text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).filter(|t| !t.contains('\\')).unwrap_or("")
}

/// The value of a JSON string, unescaped; `None` for anything else.
pub fn string(raw: Option<&RawValue>) -> Option<String> {
    raw.and_then(text).map(Cow::into_owned)
}

/// The raw text of a JSON string, quotes included; `None` for anything else.
pub fn quoted(raw: Option<&RawValue>) -> Option<&str> {
    raw.map(RawValue::get).filter(|text| text.starts_with('"'))
}

pub fn is_true(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get() == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_object_is_a_line() {
        for good in [
            r#"{}"#,
            r#"{"type":"x"}"#,
            r#" {"type":1} "#,
            r#"{"a":{"b":[1,2,{}]}}"#,
            r#"{"a":"\ud99c","b":1e999,"a":2}"#,
            r#"{"a\u0000":1}"#,
        ] {
            assert!(Line::parse(good).is_some(), "{good}");
        }
        let bad = [
            "",
            "null",
            "[]",
            "[null,null,null,null,null,null,null,null,null,null,null,null]",
            "{} {}",
            "{\"type\":\"x\"",
            "{\"a\":\"raw \x1e control\"}",
            "{\"raw \x1e control\":1}",
        ];
        for bad in bad {
            assert!(Line::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn fields_of_a_wrong_type_are_absent_and_of_two_the_last_counts() {
        let blocks = |line: &Line<'_>| {
            let mut texts = Vec::new();
            line.each_block(|block| {
                texts.push(string(block.text));
                true
            });
            texts
        };
        let line = Line::parse(r#"{"type":7,"subtype":{},"message":"x","isReplay":"yes"}"#).expect("an object");
        assert_eq!((line.kind(), line.subtype(), line.is_replay()), ("", "", false));
        assert!(blocks(&line).is_empty());
        let line = Line::parse(r#"{"message":{"content":[1,"x",null,{"type":"text","text":"hi"}]}}"#).expect("object");
        assert_eq!(blocks(&line), [Some("hi".to_owned())]);
        let line = Line::parse(r#"{"type":"a","type":"b"}"#).expect("an object");
        assert_eq!(line.kind(), "b");
    }
}
