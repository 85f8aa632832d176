//! Renders a turn for a terminal: streamed text, one line per tool. Pure: frames in, text out.

use serde_json::Value;

/// Characters shown of a tool's input or result.
const PREVIEW: usize = 100;

/// Removes control characters, which could move the cursor or rewrite the screen: an agent's
/// output is not trusted.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || *c == '\t' || !c.is_control()).collect()
}

/// Remembers what was printed, to decide where lines must be broken.
#[derive(Debug, Default)]
pub struct Renderer {
    /// The cursor is in the middle of a line.
    mid_line: bool,
    /// Text arrived in pieces, so whole messages repeat it.
    deltas: bool,
    /// Print dim text with escape codes.
    pub colour: bool,
}

impl Renderer {
    /// The output for this frame; may be empty.
    pub fn frame(&mut self, event: &str, data: &Value) -> String {
        match event {
            "text_delta" => {
                self.deltas = true;
                self.text(data["delta"].as_str().unwrap_or_default())
            }
            "message" if !self.deltas && data["type"] == "assistant" => {
                let blocks = data["message"]["content"].as_array().map(Vec::as_slice).unwrap_or_default();
                let text: String =
                    blocks.iter().filter(|b| b["type"] == "text").filter_map(|b| b["text"].as_str()).collect();
                self.text(&text)
            }
            "tool_use" => {
                let name = printable(data["name"].as_str().unwrap_or("tool"));
                let input = one_line(&summary(&data["input"]));
                self.note(&format!("> {name} {input}"))
            }
            "tool_result" => {
                let sign = if data["is_error"] == true { "! " } else { "< " };
                let content = match &data["content"] {
                    Value::String(text) => text.clone(),
                    Value::Array(blocks) => blocks.iter().filter_map(|b| b["text"].as_str()).collect(),
                    _ => String::new(),
                };
                self.note(&format!("{sign}{}", one_line(&content)))
            }
            "turn_complete" => self.end_line(),
            "gap" => self.note("~ some events are no longer available"),
            _ => String::new(),
        }
    }

    fn note(&mut self, text: &str) -> String {
        let start = self.end_line();
        if self.colour { format!("{start}\x1b[2m{text}\x1b[0m\n") } else { format!("{start}{text}\n") }
    }

    fn text(&mut self, text: &str) -> String {
        let shown = printable(text);
        if let Some(last) = shown.chars().next_back() {
            self.mid_line = last != '\n';
        }
        shown
    }

    /// Ends the line unless it is empty.
    pub fn end_line(&mut self) -> String {
        if std::mem::take(&mut self.mid_line) { "\n".to_owned() } else { String::new() }
    }
}

/// The most informative part of a tool's input.
fn summary(input: &Value) -> String {
    for field in ["command", "file_path", "path", "pattern", "url", "query", "description", "prompt"] {
        if let Some(text) = input[field].as_str() {
            return text.to_owned();
        }
    }
    if input.is_null() { String::new() } else { input.to_string() }
}

fn one_line(text: &str) -> String {
    let flat = printable(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= PREVIEW {
        return flat;
    }
    let cut: String = flat.chars().take(PREVIEW - 3).collect();
    format!("{cut}...")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn show(frames: &[(&str, Value)]) -> String {
        let mut renderer = Renderer::default();
        frames.iter().map(|(event, data)| renderer.frame(event, data)).collect()
    }

    #[test]
    fn a_turn_with_partial_messages() {
        let text = show(&[
            ("session_start", json!({"sessionId": "x"})),
            ("text_delta", json!({"delta": "I will"})),
            ("text_delta", json!({"delta": " look."})),
            (
                "message",
                json!({"type": "assistant", "message": {"content": [{"type": "text", "text": "I will look."}]}}),
            ),
            ("tool_use", json!({"id": "1", "name": "Bash", "input": {"command": "ls\n-l"}})),
            ("tool_result", json!({"tool_use_id": "1", "content": "total 0", "is_error": false})),
            ("text_delta", json!({"delta": "Nothing."})),
            ("turn_complete", json!({"numTurns": 2, "result": "Nothing."})),
            ("done", json!({})),
        ]);
        assert_eq!(text, "I will look.\n> Bash ls -l\n< total 0\nNothing.\n");
    }

    #[test]
    fn a_turn_without_partial_messages() {
        let message = json!({"type": "assistant", "message": {"content": [{"type": "text", "text": "Hello"}]}});
        assert_eq!(show(&[("message", message), ("turn_complete", json!({}))]), "Hello\n");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(show(&[("text_delta", json!({"delta": "a\u{1b}]0;title\u{7}b\u{9b}2J\tc"}))]), "a]0;titleb2J\tc");
        assert_eq!(show(&[("tool_use", json!({"name": "X\u{1b}[2J", "input": {}}))]), "> X[2J {}\n");
    }
}
