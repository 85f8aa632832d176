//! A client's message, parsed once: its content, and the options of its turn.
//!
//! ```text
//!   request body --serde--> SendMessage --NewMessage::read--> NewMessage --> the session's task
//!                                               |
//!                                               +--> 400 that names the field,
//!                                                    413 when the model cannot take it
//! ```

use serde_json::Value;
use serde_json::value::RawValue;

use crate::sessions::claude::{self, ProcessFlags};
use crate::sessions::launch::running::Applied;
use crate::sessions::{SendMessage, SessionError};
use ash_model::raw::{elements, kind, members, text};
use ash_model::{RawJson, bounded};

/// Types of content blocks that a client may send, and the required member of each.
const BLOCKS: [(&str, &str); 3] = [("text", "text"), ("image", "source"), ("document", "source")];
/// Efforts that claude knows.
const EFFORTS: [&str; 4] = ["low", "medium", "high", "max"];
/// Maximum bytes of a model's name.
const MODEL: usize = 1024;
/// Maximum bytes of an option of a message.
const OPTION: usize = 4096;
/// Maximum bytes of text in one message. A request to the model has at most 32 MiB, including
/// system prompt and tools. A larger text would stay in the conversation and make every later turn
/// fail as well. Images and files have their own bounds.
pub const MAX_TEXT: u64 = 31 << 20;

/// A message whose every part was checked.
#[derive(Clone, Debug, Default)]
pub struct NewMessage {
    /// A string or an array of content blocks, unchanged.
    pub content: RawJson,
    /// Whether the sender's stream has partial messages.
    pub partial: bool,
    options: TurnOptions,
}

/// Options of a message's turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnOptions {
    /// Set by requests to the running process.
    pub applied: Applied,
    /// Set by flags of a new process.
    pub flags: ProcessFlags,
}

impl NewMessage {
    /// # Errors
    /// `Invalid` with the field's name; `TooLarge` when the model cannot take the text.
    pub fn read(body: SendMessage) -> Result<Self, SessionError> {
        let options = options_of(&body).map_err(SessionError::Invalid)?;
        let bytes = check_content(&body.content).map_err(SessionError::Invalid)?;
        if bytes > MAX_TEXT {
            return Err(SessionError::TooLarge(format!(
                "content has {bytes} bytes of text, maximum {MAX_TEXT} (31 MiB) for a request to the model. Put the text into a \
                 file of the workspace and refer to it in the message"
            )));
        }
        Ok(Self { content: body.content, partial: body.include_partial_messages, options })
    }

    /// A text without options.
    ///
    /// # Errors
    /// As for [`NewMessage::read`].
    pub fn of_text(text: &str) -> Result<Self, SessionError> {
        Self::read(SendMessage { content: RawJson::of(text), ..SendMessage::default() })
    }

    /// The options of its turn, in a session with this model.
    pub fn options(&self, session_model: Option<&str>) -> TurnOptions {
        let mut options = self.options.clone();
        options.applied.model = options.applied.model.or_else(|| session_model.map(str::to_owned));
        options
    }
}

fn options_of(body: &SendMessage) -> Result<TurnOptions, String> {
    if body.max_turns == Some(0) {
        return Err("maxTurns must be 1 or more".to_owned());
    }
    if body.max_budget_usd.is_some_and(|budget| !budget.is_finite() || budget <= 0.0) {
        return Err("maxBudgetUsd must be more than 0".to_owned());
    }
    if let Some(model) = body.model.as_ref().filter(|model| model.len() > MODEL) {
        return Err(format!("model has {} bytes, maximum {MODEL}", model.len()));
    }
    let given = |name: &str, value: &Option<RawJson>| -> Result<Option<Value>, String> {
        let value = value.as_ref().filter(|value| !value.is_null());
        value.map(|value| bounded::read(value.raw(), OPTION).map_err(|why| format!("{name}: {why}"))).transpose()
    };
    let thinking = given("thinking", &body.thinking)?;
    let thinking = thinking.map(|thinking| claude::thinking_tokens(&thinking)).transpose()?.flatten();
    let json_schema = body.output_format.as_ref().filter(|format| !format.is_null());
    let json_schema = json_schema.map(claude::output_schema).transpose()?;
    let effort = given("effort", &body.effort)?;
    if let Some(wrong) = effort.as_ref().filter(|effort| !effort.as_str().is_some_and(|word| EFFORTS.contains(&word))) {
        let shown: String = wrong.to_string().chars().take(80).collect();
        return Err(format!("effort must be one of {}, not {shown}", EFFORTS.join(", ")));
    }
    Ok(TurnOptions {
        applied: Applied { model: body.model.clone(), effort, thinking },
        flags: ProcessFlags { max_turns: body.max_turns, max_budget_usd: body.max_budget_usd, json_schema },
    })
}

/// Bytes of text, as the model gets them.
fn check_content(content: &RawJson) -> Result<u64, String> {
    if content.is_null() {
        return Err("content is required: a string or an array of content blocks".to_owned());
    }
    if content.get() == "\"\"" {
        return Err("content must not be empty".to_owned());
    }
    if content.is_string() {
        return Ok(text_bytes(content.get()));
    }
    if !content.is_array() {
        return Err(format!("content must be a string or an array of content blocks, not {}", content.kind()));
    }
    let (mut at, mut bytes, mut wrong) = (0, 0, None);
    elements(content.get(), |block| {
        match check_block(block) {
            Ok(text) => bytes += text,
            Err(why) => wrong = Some(format!("content[{at}]{why}")),
        }
        at += 1;
        wrong.is_none()
    });
    match wrong {
        Some(why) => Err(why),
        None if at == 0 => Err("content must not be empty".to_owned()),
        None => Ok(bytes),
    }
}

/// Bytes of text in a block. The error completes the block's position.
fn check_block(block: &RawValue) -> Result<u64, String> {
    let (mut type_, mut part_text, mut source) = (None, None, None);
    let mut twice = false;
    let is_object = members(block.get(), |name, value| {
        let field = match name {
            "type" => &mut type_,
            "text" => &mut part_text,
            "source" => &mut source,
            _ => return,
        };
        twice |= field.replace(value).is_some();
    });
    let type_ = type_.filter(|_| is_object).and_then(text).ok_or(" must be an object with a type")?;
    if twice {
        return Err(" has a field twice".to_owned());
    }
    let Some((_, part)) = BLOCKS.iter().find(|(known, _)| *known == type_) else {
        let shown: String = type_.chars().take(64).collect();
        return Err(format!(".type must be text, image or document, not \"{shown}\""));
    };
    let (value, expected) = if *part == "text" { (part_text, "a string") } else { (source, "an object") };
    match value.map_or("null", RawValue::get) {
        json if kind(json) == expected => Ok(if *part == "text" { text_bytes(json) } else { document_text(json) }),
        "null" => Err(format!(".{part} is required: {expected}")),
        json => Err(format!(".{part} must be {expected}, not {}", kind(json))),
    }
}

/// A plain text document goes to the model as text.
fn document_text(source: &str) -> u64 {
    let (mut plain, mut bytes) = (false, 0);
    members(source, |name, value| match name {
        "type" => plain = value.get() == "\"text\"",
        "data" => bytes = text_bytes(value.get()),
        _ => {}
    });
    if plain { bytes } else { 0 }
}

/// Bytes of a JSON string in claude's encoding, which escapes only what it must. The text is not
/// copied.
fn text_bytes(json: &str) -> u64 {
    let (mut bytes, mut left) = (0, json.as_bytes());
    while let Some(at) = memchr::memchr(b'\\', left) {
        bytes += at as u64;
        let unicode = left.get(at + 1) == Some(&b'u');
        let hex = left.get(at + 2..at + 6).filter(|_| unicode).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = hex.and_then(|hex| u16::from_str_radix(hex, 16).ok());
        bytes += match code {
            Some(0x20..=0x7F) => 1,
            Some(0x80..=0x7FF) => 2,
            // A surrogate pair has four bytes.
            Some(0xD800..=0xDFFF) => 2,
            Some(0x800..) => 3,
            Some(_) => 6,
            None => 2,
        };
        left = &left[(at + if code.is_some() { 6 } else { 2 }).min(left.len())..];
    }
    bytes + left.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<NewMessage, SessionError> {
        NewMessage::read(serde_json::from_str(json).expect(json))
    }

    /// claude never begins a turn for a block that it cannot read.
    #[test]
    fn each_field_is_checked_and_named() {
        for (json, text) in [
            ("{}", "content is required: a string or an array of content blocks"),
            (r#"{"content":""}"#, "content must not be empty"),
            (r#"{"content":[]}"#, "content must not be empty"),
            (r#"{"content":5}"#, "content must be a string or an array of content blocks, not a number"),
            (r#"{"content":{}}"#, "content must be a string or an array of content blocks, not an object"),
            (r#"{"content":true}"#, "content must be a string or an array of content blocks, not a boolean"),
            (r#"{"content":["x"]}"#, "content[0] must be an object with a type"),
            (r#"{"content":[{"type":7}]}"#, "content[0] must be an object with a type"),
            (r#"{"content":[{"type":"text"}]}"#, "content[0].text is required: a string"),
            (r#"{"content":[{"type":"text","text":null}]}"#, "content[0].text is required: a string"),
            (r#"{"content":[{"type":"text","text":7}]}"#, "content[0].text must be a string, not a number"),
            (r#"{"content":[{"type":"image"}]}"#, "content[0].source is required: an object"),
            (r#"{"content":[{"type":"text","type":"image","text":"x"}]}"#, "content[0] has a field twice"),
            (
                r#"{"content":[{"type":"text","text":"a"},{"type":"tool_use"}]}"#,
                "content[1].type must be text, image or document, not \"tool_use\"",
            ),
            (r#"{"content":"x","maxTurns":0}"#, "maxTurns must be 1 or more"),
            (r#"{"content":"x","maxBudgetUsd":-1}"#, "maxBudgetUsd must be more than 0"),
            (r#"{"content":"x","effort":"ultra"}"#, "effort must be one of low, medium, high, max, not \"ultra\""),
            (r#"{"content":"x","effort":3}"#, "effort must be one of low, medium, high, max, not 3"),
        ] {
            match read(json) {
                Err(SessionError::Invalid(why)) => assert_eq!(why, text, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        let long = format!(r#"{{"content":[{{"type":"{}"}}]}}"#, "x".repeat(1 << 20));
        assert!(read(&long).is_err_and(|why| why.to_string().len() < 200));
        for json in [
            r#"{"content":"5","effort":null}"#,
            r#"{"content":[{"type":"image","source":{}}],"maxTurns":1,"effort":"max"}"#,
            r#"{"content":[{"type":"text","text":"\ud99c","cache_control":{"":1e999}}]}"#,
        ] {
            assert!(read(json).is_ok(), "{json}");
        }
    }

    /// If accepted, it makes every later turn fail:
    /// <https://github.com/anthropics/claude-code/issues/9269>.
    #[test]
    fn a_text_that_the_model_cannot_take_is_refused_with_the_bound() {
        let most = usize::try_from(MAX_TEXT).unwrap();
        let of = |text: &str| NewMessage::of_text(text);
        assert!(of(&"x".repeat(most - 2)).is_ok(), "two quotes and the text");
        let refused = of(&"x".repeat(most - 1));
        assert!(
            matches!(&refused, Err(SessionError::TooLarge(why)) if why.contains("32505857 bytes") && why.contains("31 MiB"))
        );
        // Images have their own bound; plain text in a document is text.
        let source = |kind: &str, type_: &str| {
            let data = "x".repeat(most);
            read(&format!(r#"{{"content":[{{"type":"{kind}","source":{{"type":"{type_}","data":"{data}"}}}}]}}"#))
        };
        assert!(source("image", "base64").is_ok() && source("document", "base64").is_ok());
        assert!(matches!(source("document", "text"), Err(SessionError::TooLarge(_))));
    }

    #[test]
    fn a_text_counts_as_the_model_gets_it_however_it_was_escaped() {
        for (json, bytes) in [
            (r#""abc""#, 5),
            (r#""\u0041\u00e9\u4e2d""#, 1 + 2 + 3 + 2),
            (r#""\ud83d\ude00""#, 4 + 2),
            (r#""\n\"\\""#, 6 + 2),
            (r#""\u0000""#, 6 + 2),
            ("\"\u{1F600}\"", 4 + 2),
        ] {
            assert_eq!(text_bytes(json), bytes, "{json}");
        }
    }

    #[test]
    fn the_sessions_model_is_taken_where_the_message_names_none() {
        let model = |json: &str| read(json).unwrap().options(Some("session's")).applied.model;
        assert_eq!(model(r#"{"content":"x"}"#).as_deref(), Some("session's"));
        assert_eq!(model(r#"{"content":"x","model":"own"}"#).as_deref(), Some("own"));
    }
}
