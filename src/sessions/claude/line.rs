//! One line of claude's stdout, parsed as far as routing needs and no further: every field stays the raw text it was,
//! so that passing a part on never re-serialises it.

use serde::Deserialize;
use serde_json::value::RawValue;

/// A line that is one JSON object in UTF-8. Fields that routing does not need are validated and skipped.
///
/// The payload can write to stdout too, so nothing is trusted: a field of an unexpected type is treated as absent.
#[derive(Debug, Deserialize)]
pub struct Line<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    subtype: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub tool_use_result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub num_turns: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "isReplay")]
    is_replay: Option<&'a RawValue>,
}

impl<'a> Line<'a> {
    /// `None` when the line is not one JSON object in UTF-8 (or names a field twice, which readers of JSON understand
    /// differently).
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        // serde would take an array of the fields' values for a struct.
        text.trim_start().starts_with('{').then_some(())?;
        serde_json::from_str(text).ok()
    }

    /// The `type`, or the empty string.
    pub fn kind(&self) -> &'a str {
        plain(self.kind)
    }

    /// The `subtype`, or the empty string.
    pub fn subtype(&self) -> &'a str {
        plain(self.subtype)
    }

    /// A user message that claude repeats (from the client or the history): shown, but it tells nothing new.
    pub fn is_replay(&self) -> bool {
        is_true(self.is_replay)
    }

    /// The blocks of `message.content`; none when the content is a plain string.
    pub fn blocks(&self) -> Vec<Block<'a>> {
        #[derive(Deserialize)]
        struct Content<'a> {
            #[serde(borrow, default)]
            content: Option<&'a RawValue>,
        }
        let content = self.message.and_then(object::<Content<'a>>).and_then(|message| message.content);
        let raw: Vec<&'a RawValue> =
            content.and_then(|content| serde_json::from_str(content.get()).ok()).unwrap_or_default();
        raw.into_iter().filter_map(object).collect()
    }
}

/// One content block of an assistant or user message.
#[derive(Debug, Deserialize)]
pub struct Block<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub thinking: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub tool_use_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub is_error: Option<&'a RawValue>,
}

impl<'a> Block<'a> {
    pub fn kind(&self) -> &'a str {
        plain(self.kind)
    }
}

/// Parses an object; `None` for anything else.
pub fn object<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok()).flatten()
}

/// The characters of a JSON string that needs no unescaping, as protocol words do not; else the empty string.
fn plain(raw: Option<&RawValue>) -> &str {
    let text = raw.map_or("", RawValue::get);
    text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).filter(|t| !t.contains('\\')).unwrap_or("")
}

/// The value of a JSON string, unescaped; `None` for anything else.
pub fn string(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

pub fn is_true(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get() == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_object_in_utf8_is_a_line() {
        for good in [r#"{}"#, r#"{"type":"x"}"#, r#" {"type":1} "#, r#"{"a":{"b":[1,2,{}]}}"#] {
            assert!(Line::parse(good.as_bytes()).is_some(), "{good}");
        }
        let bad: [&[u8]; 9] = [
            b"",
            b"null",
            b"[]",
            b"[null,null,null,null,null,null,null,null,null,null,null,null]",
            b"{} {}",
            b"{\"type\":\"x\"",
            b"{\"type\":\"a\",\"type\":\"b\"}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"raw \x1e control\"}",
        ];
        for bad in bad {
            assert!(Line::parse(bad).is_none(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn fields_of_a_wrong_type_are_absent() {
        let line = Line::parse(br#"{"type":7,"subtype":{},"message":"x","isReplay":"yes"}"#).expect("an object");
        assert_eq!((line.kind(), line.subtype(), line.is_replay()), ("", "", false));
        assert!(line.blocks().is_empty());
        let line = Line::parse(br#"{"message":{"content":[1,"x",null,{"type":"text","text":"hi"}]}}"#).expect("object");
        assert_eq!(line.blocks().len(), 1);
        assert_eq!(string(line.blocks()[0].text).as_deref(), Some("hi"));
    }
}
