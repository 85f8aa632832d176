//! A client's message, kept as the original text.

use std::io::{self, Write};
use std::ops::Range;

use uuid::Uuid;

use crate::store::Text;
use ash_model::RawJson;
use ash_model::raw::{members, on_one_line};

const HEAD: &str = r#"{"type":"user","content":"#;

/// The message as the history stores it, `{"type":"user","content":...}`, on one line.
pub fn stored(content: &RawJson) -> Text {
    let mut json = String::with_capacity(HEAD.len() + content.get().len() + 1);
    json.push_str(HEAD);
    // In valid JSON, line ends stand between tokens only.
    for part in content.get().split_inclusive(['\n', '\r']) {
        match part.strip_suffix(['\n', '\r']) {
            Some(line) => {
                json.push_str(line);
                json.push(' ');
            }
            None => json.push_str(part),
        }
    }
    json.push('}');
    json.into()
}

/// A message's line for claude's stdin. Shares the content with the stored message.
#[derive(Clone, Debug)]
pub struct UserLine {
    stored: Text,
    content: Range<usize>,
    uuid: Uuid,
}

impl UserLine {
    /// From the result of [`stored`]. `uuid` comes back in `command_lifecycle` lines.
    pub fn of(stored: Text, uuid: Uuid) -> Self {
        let content = HEAD.len()..stored.len() - 1;
        Self { stored, content, uuid }
    }

    /// From a row of the history, possibly written by an older ashd.
    ///
    /// # Errors
    /// The row is not a user's message.
    pub fn again(stored: Text, uuid: Uuid) -> Result<Self, String> {
        let mut content = None;
        members(&stored, |name, value| {
            if name == "content" {
                let start = value.get().as_ptr().addr() - stored.as_ptr().addr();
                content = Some(start..start + value.get().len());
            }
        });
        let content = content.ok_or("the stored message has no content")?;
        Ok(Self { stored, content, uuid })
    }

    /// Approximate bytes.
    pub fn len(&self) -> usize {
        self.content.len() + 256
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(br#"{"type":"user","message":{"role":"user","content":"#)?;
        out.write_all(on_one_line(&self.stored[self.content.clone()]).as_bytes())?;
        writeln!(out, r#"}},"parent_tool_use_id":null,"session_id":"","uuid":"{}"}}"#, self.uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_is_passed_on_as_it_came() {
        let sent = "[ {\"zebra\":1,\n \"apple\":\"\\ud99c\\n\",\r\n\"n\":1e999} ]";
        let one_line = "[ {\"zebra\":1,  \"apple\":\"\\ud99c\\n\",  \"n\":1e999} ]";
        let text = stored(&RawJson::parse(sent).unwrap());
        assert_eq!(&*text, format!(r#"{{"type":"user","content":{one_line}}}"#));
        let uuid = Uuid::nil();
        let expected = format!(
            r#"{{"type":"user","message":{{"role":"user","content":{one_line}}},"parent_tool_use_id":null,"session_id":"","uuid":"{uuid}"}}"#
        ) + "\n";
        for line in [UserLine::of(Text::clone(&text), uuid), UserLine::again(text, uuid).unwrap()] {
            let mut out = Vec::new();
            line.write(&mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        // An older ashd sorted the names.
        let older = UserLine::again(r#"{"content":"hi","type":"user"}"#.into(), uuid).unwrap();
        let mut out = Vec::new();
        older.write(&mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains(r#""content":"hi"}"#));
        assert!(UserLine::again("{}".into(), uuid).is_err());
    }
}
