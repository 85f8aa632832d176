//! Lines of stdout in the formats of the real one.

use std::io::Write;

use serde_json::{Value, json};

/// Placeholder for a text of tens of MiB, which a debug build would escape slowly again and again.
pub const HUGE: &str = "@huge@";

pub struct Voice {
    session: String,
    pub model: String,
    lines: u64,
    messages: u64,
    pub output_tokens: u64,
    /// The text that replaces [`HUGE`] in the lines.
    pub huge: String,
    /// The uuid of the message that the turn answers.
    pub answers: Value,
}

impl Voice {
    pub fn new(session: &str, model: &str) -> Self {
        Self {
            session: session.to_owned(),
            model: model.to_owned(),
            lines: 0,
            messages: 0,
            output_tokens: 0,
            huge: String::new(),
            answers: Value::Null,
        }
    }

    /// Writes one line in one write, with `type` as its first field, as the real one does: a daemon
    /// may rely on either.
    pub fn line(&mut self, value: &Value) {
        let mut rest = value.clone();
        let kind = rest.as_object_mut().and_then(|o| o.remove("type")).unwrap_or_default();
        let mut rest = rest.to_string();
        if !self.huge.is_empty() {
            rest = rest.replace(HUGE, &self.huge);
        }
        let comma = if rest == "{}" { "" } else { "," };
        self.bytes(format!("{{\"type\":{kind}{comma}{}\n", &rest[1..]).as_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }

    fn stamped(&mut self, mut value: Value) -> Value {
        self.lines += 1;
        value["session_id"] = json!(self.session);
        value["uuid"] = json!(format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), self.lines));
        value
    }

    pub fn say(&mut self, value: Value) {
        let value = self.stamped(value);
        self.line(&value);
    }

    pub fn init(&mut self) {
        let cwd = std::env::current_dir().unwrap_or_default();
        let model = self.model.clone();
        self.say(json!({
            "type": "system", "subtype": "init", "cwd": cwd, "tools": ["Bash", "Write"], "mcp_servers": [],
            "model": model, "permissionMode": "bypassPermissions", "slash_commands": [], "apiKeySource": "ANTHROPIC_API_KEY",
            "claude_code_version": "2.1.330", "output_style": "default",
        }));
    }

    pub fn report(&mut self, message: &Value, state: &str) {
        self.say(json!({"type": "command_lifecycle", "command_uuid": message, "state": state}));
    }

    pub fn event(&mut self, event: Value) {
        self.say(json!({"type": "stream_event", "event": event, "parent_tool_use_id": null}));
    }

    pub fn message_start(&mut self) {
        self.messages += 1;
        let message = self.message(&[]);
        self.event(json!({"type": "message_start", "message": message}));
    }

    pub fn message_stop(&mut self, reason: &str) {
        let tokens = self.output_tokens;
        self.event(json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": tokens}}));
        self.event(json!({"type": "message_stop"}));
    }

    fn message(&self, content: &[Value]) -> Value {
        json!({
            "id": format!("msg_fake_{}_{}", std::process::id(), self.messages), "type": "message", "role": "assistant",
            "model": self.model, "content": content, "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": 10, "output_tokens": self.output_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        })
    }

    /// The whole block, which arrives before its `content_block_stop`.
    pub fn assistant(&mut self, index: usize, block: Value) {
        let message = self.message(&[block]);
        self.say(json!({"type": "assistant", "message": message, "parent_tool_use_id": null}));
        self.event(json!({"type": "content_block_stop", "index": index}));
    }

    pub fn result(&mut self, subtype: &str, is_error: bool, text: &str, turns: u64) {
        let tokens = self.output_tokens;
        let answers: Vec<&Value> = Some(&self.answers).filter(|uuid| uuid.is_string()).into_iter().collect();
        self.say(json!({
            "user_message_uuids": answers, "type": "result", "subtype": subtype, "is_error": is_error, "duration_ms": 5, "duration_api_ms": 3,
            "num_turns": turns, "result": text, "total_cost_usd": 0.0, "permission_denials": [],
            "usage": {"input_tokens": 10, "output_tokens": tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        }));
    }
}
