//! What the offline model reads from a request: the last user text, and the number of tool steps
//! since. Pure; the request is the only state.

use serde::Deserialize;
use serde_json::Value;

/// The parts of a Messages API request that the offline model uses.
#[derive(Debug, Deserialize)]
pub struct MessagesRequest {
    pub model: String,
    #[serde(default = "unbounded")]
    pub max_tokens: u64,
    #[serde(default)]
    pub stream: bool,
    #[serde(default)]
    system: Content,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Tool>,
    /// Structured output: `output_format`, or `output_config.format` in newer clients.
    #[serde(default)]
    output_format: Option<Value>,
    #[serde(default)]
    output_config: Option<Value>,
}

/// `count_tokens` has no `max_tokens`.
fn unbounded() -> u64 {
    u64::MAX
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

impl Default for Content {
    fn default() -> Self {
        Content::Blocks(Vec::new())
    }
}

/// Blocks of other types (images, thinking) have none of these.
#[derive(Debug, Deserialize)]
struct Block {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    content: Content,
    #[serde(default)]
    is_error: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Tool {
    #[serde(default)]
    name: String,
    #[serde(default)]
    input_schema: Option<Value>,
}

/// A tool's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    pub text: String,
    pub is_error: bool,
}

/// The conversation as the offline model uses it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub model: String,
    pub max_tokens: u64,
    pub stream: bool,
    pub system: String,
    /// Names of the offered tools.
    pub tools: Vec<String>,
    /// The first user text.
    pub first: String,
    /// The last user text.
    pub last: String,
    /// Messages with tool results since then: the index of the script's next step.
    pub step: usize,
    /// The results in the last of them.
    pub results: Vec<ToolResult>,
    /// Total messages.
    pub messages: usize,
    /// The client's working directory.
    pub cwd: Option<String>,
    /// The schema of the answer's text, if the request asks for structured output.
    pub schema: Option<Value>,
    /// The schema of the tool for structured answers (claude's `--json-schema`).
    pub answer_tool: Option<Value>,
    /// Tokens of the request, at 4 bytes each.
    pub tokens: u64,
}

/// Bytes per token in the offline model's estimate.
pub const BYTES_PER_TOKEN: u64 = 4;
/// The tool with which claude collects a structured answer.
pub const ANSWER_TOOL: &str = "StructuredOutput";

impl Conversation {
    /// Parses a request body.
    ///
    /// # Errors
    /// The text of the 400: not JSON, a missing field, no messages.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let request: MessagesRequest = serde_json::from_slice(body).map_err(|why| format!("body: {why}"))?;
        if request.messages.is_empty() {
            return Err("messages: at least one message is required".into());
        }
        let mut conversation = Self {
            model: request.model,
            max_tokens: request.max_tokens,
            stream: request.stream,
            system: request.system.all_text(),
            messages: request.messages.len(),
            schema: schema(request.output_format.as_ref())
                .or_else(|| schema(request.output_config.as_ref().and_then(|config| config.get("format")))),
            tokens: (body.len() as u64).div_ceil(BYTES_PER_TOKEN),
            ..Self::default()
        };
        for tool in request.tools {
            if tool.name == ANSWER_TOOL {
                conversation.answer_tool = tool.input_schema;
            } else {
                conversation.tools.push(tool.name);
            }
        }
        conversation.cwd = working_directory(&conversation.system);
        for message in &request.messages {
            conversation.take(message);
        }
        Ok(conversation)
    }

    fn take(&mut self, message: &Message) {
        if self.cwd.is_none() && message.role != "assistant" {
            self.cwd = message.content.texts().find_map(working_directory);
        }
        if message.role != "user" {
            return;
        }
        let results = message.content.results();
        if !results.is_empty() {
            self.step += 1;
            self.results = results;
        }
        // A message sent while a tool runs arrives beside its result: it is the last user text.
        if let Some(said) = message.content.texts().filter(|text| is_said(text)).last() {
            if self.first.is_empty() {
                self.first = said.trim().to_owned();
            }
            self.last = said.trim().to_owned();
            self.step = 0;
            self.results = Vec::new();
        }
    }

    pub fn has_tool(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| tool == name)
    }
}

impl Content {
    fn texts(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Content::Text(text) => Box::new(std::iter::once(text.as_str())),
            Content::Blocks(blocks) => {
                Box::new(blocks.iter().filter(|block| block.kind == "text").map(|block| block.text.as_str()))
            }
        }
    }

    fn all_text(&self) -> String {
        self.texts().collect::<Vec<_>>().join("\n")
    }

    fn results(&self) -> Vec<ToolResult> {
        let Content::Blocks(blocks) = self else { return Vec::new() };
        let results = blocks.iter().filter(|block| block.kind == "tool_result");
        results
            .map(|block| ToolResult { text: block.content.all_text(), is_error: block.is_error == Some(true) })
            .collect()
    }
}

/// Whether a text is the user's, and not a remark that claude added.
fn is_said(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && !text.starts_with("<system-reminder>") && !text.starts_with("[Request interrupted by user")
}

/// claude states it in its system prompt or in a reminder, as `Primary working directory:
/// /workspace`.
fn working_directory(text: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once("orking directory:"));
    lines.map(|(_, path)| path.trim().trim_matches('`')).find(|path| path.starts_with('/')).map(str::to_owned)
}

fn schema(format: Option<&Value>) -> Option<Value> {
    format.and_then(|format| format.get("schema")).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Conversation {
        Conversation::parse(&serde_json::to_vec(&value).unwrap()).unwrap()
    }

    fn messages(messages: Value) -> Conversation {
        parse(json!({"model": "m", "max_tokens": 10, "messages": messages}))
    }

    #[test]
    fn the_last_thing_said_is_not_a_reminder() {
        let got = messages(json!([{"role": "user", "content": [
            {"type": "text", "text": "<system-reminder>\nPrimary working directory: /workspace\n</system-reminder>"},
            {"type": "text", "text": "hello"},
            {"type": "text", "text": "<system-reminder>later</system-reminder>"}]}]));
        assert_eq!((got.first.as_str(), got.last.as_str(), got.step), ("hello", "hello", 0));
        assert_eq!(got.cwd.as_deref(), Some("/workspace"));
        assert_eq!(messages(json!([{"role": "user", "content": "plain"}])).last, "plain");
    }

    #[test]
    fn steps_are_messages_with_results_since_then() {
        let call =
            json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]});
        let two = json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "out"},
            {"type": "tool_result", "tool_use_id": "u", "is_error": true, "content": [{"type": "text", "text": "bad"}]},
            {"type": "text", "text": "<system-reminder>x</system-reminder>"}]});
        let got = messages(json!([{"role": "user", "content": "go"}, call, two, call, two]));
        assert_eq!(got.step, 2);
        let result = |text: &str, is_error| ToolResult { text: text.into(), is_error };
        assert_eq!(got.results, [result("out", false), result("bad", true)]);
        let got =
            messages(json!([{"role": "user", "content": "go"}, call, two, {"role": "assistant", "content": "done"},
            {"role": "user", "content": "again"}]));
        assert_eq!((got.first.as_str(), got.last.as_str(), got.step, got.results.len()), ("go", "again", 0, 0));
    }

    #[test]
    fn a_message_beside_a_tool_result_begins_anew_and_an_interruption_does_not() {
        let got = messages(json!([{"role": "user", "content": "go"}, {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "out"}, {"type": "text", "text": "stop that"}]}]));
        assert_eq!((got.last.as_str(), got.step), ("stop that", 0));
        let got = messages(json!([{"role": "user", "content": "go"},
            {"role": "user", "content": [{"type": "text", "text": "[Request interrupted by user]"}]}]));
        assert_eq!(got.last, "go");
    }

    #[test]
    fn tools_schemas_and_system() {
        let got = parse(json!({"model": "m", "max_tokens": 1, "stream": true,
            "system": [{"type": "text", "text": "You are\n - Primary working directory: /w\n"}],
            "tools": [{"name": "Bash"}, {"name": "StructuredOutput", "input_schema": {"type": "object"}}],
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "string"}}},
            "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}));
        assert!(got.has_tool("Bash") && !got.has_tool(ANSWER_TOOL) && got.stream);
        assert_eq!(got.answer_tool, Some(json!({"type": "object"})));
        assert_eq!(got.schema, Some(json!({"type": "string"})));
        assert_eq!(got.cwd.as_deref(), Some("/w"));
    }

    #[test]
    fn bad_requests_are_named() {
        for (body, part) in
            [("", "EOF"), ("{}", "model"), (r#"{"model":"m","messages":[]}"#, "at least one"), ("[1", "body")]
        {
            let why = Conversation::parse(body.as_bytes()).unwrap_err();
            assert!(why.contains(part), "{body}: {why}");
        }
    }
}
