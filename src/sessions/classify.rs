//! What one line of claude's stdout means to the driver and to the database.
//!
//! ```text
//!                    +--> kind       what the driver acts on (a turn begins, a turn ends, claude asks, claude answers)
//! line --classify--> +--> messages   at most one row of the history: the raw line (contract §5, "the raw SDK message")
//!                    +--> events     rows of the timeline, from complete messages only
//!                    +--> usage      tokens and time (result lines), tool calls (assistant lines); to be summed up
//! ```
//!
//! The payload can write to that file as well: a forged line can lie about its own session, and nothing else.

use std::collections::{HashMap, VecDeque};

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::claude::Line;
use super::claude::line::{Block, is_true, object, string};
pub use super::turn_result::TurnResult;
use crate::store::{Role, Usage};

/// Tool calls whose name is remembered until their result comes. Past it the oldest is forgotten: its `tool_result`
/// has an empty `toolName`.
const REMEMBERED_TOOLS: usize = 256;

#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    pub kind: Kind,
    pub messages: Option<(Role, String)>,
    /// (type, data as JSON): only the types of contract §5.
    pub events: Vec<(&'static str, String)>,
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Comes at the start of *every* turn, asked for or not, and never before the first input: no sign of readiness.
    SystemInit {
        model: Option<String>,
    },
    /// Any other `system` message.
    System {
        subtype: String,
    },
    /// One line per content block; lines of one model answer share the id.
    Assistant {
        message_id: Option<String>,
    },
    User {
        replay: bool,
    },
    /// The end of a turn. Its line does not begin with its type.
    Result(TurnResult),
    StreamEvent,
    /// claude's answer to a control request of ours.
    ControlResponse {
        request_id: String,
        ok: bool,
        error: Option<String>,
    },
    /// claude asks. `raw` is the whole line, to answer from ([`super::claude::answer_permission`]).
    ControlRequest {
        request_id: String,
        subtype: String,
        raw: String,
    },
    /// What became of the message with this uuid: `state` is queued, started, then (after the turn's result)
    /// completed or cancelled.
    CommandLifecycle {
        command: String,
        state: String,
    },
    /// Of a type that nothing here acts on. It is passed on all the same.
    Other,
    /// Not one JSON object in UTF-8: forged, or a library's print. It is never passed on.
    NotJson,
}

/// Classifies line after line, and remembers which tool a call id belongs to, since a tool's result does not name it.
#[derive(Debug, Default)]
pub struct Classifier {
    names: HashMap<String, String>,
    order: VecDeque<String>,
}

/// One line by itself: `toolName` of a tool's result stays empty.
pub fn classify(line: &[u8]) -> Classified {
    Classifier::default().classify(line)
}

impl Classifier {
    pub fn classify(&mut self, line: &[u8]) -> Classified {
        // The most frequent line by far says nothing here; the full look is for the readers of it.
        if line.starts_with(STREAM_EVENT) {
            return Classified::nothing(Kind::StreamEvent);
        }
        let Some(parsed) = Line::parse(line) else { return Classified::nothing(Kind::NotJson) };
        let text = || String::from_utf8_lossy(line).into_owned();
        match parsed.kind() {
            "stream_event" => Classified::nothing(Kind::StreamEvent),
            "system" if parsed.subtype() == "init" => {
                #[derive(Deserialize)]
                struct Init {
                    model: Option<String>,
                }
                let model = serde_json::from_slice::<Init>(line).ok().and_then(|init| init.model);
                Classified::nothing(Kind::SystemInit { model })
            }
            "system" => Classified::nothing(Kind::System { subtype: parsed.subtype().to_owned() }),
            "assistant" => self.assistant(&parsed, text()),
            "user" if parsed.is_replay() => Classified::nothing(Kind::User { replay: true }),
            "user" => self.user(&parsed, text()),
            "result" => result(line, text()),
            "control_response" => Classified::nothing(control_response(line)),
            "control_request" => Classified::nothing(control_request(line, text())),
            "command_lifecycle" => {
                #[derive(Deserialize)]
                struct Lifecycle {
                    command_uuid: String,
                    state: String,
                }
                Classified::nothing(match serde_json::from_slice::<Lifecycle>(line) {
                    Ok(l) => Kind::CommandLifecycle { command: l.command_uuid, state: l.state },
                    Err(_) => Kind::Other,
                })
            }
            _ => Classified::nothing(Kind::Other),
        }
    }

    fn assistant(&mut self, line: &Line<'_>, text: String) -> Classified {
        #[derive(Deserialize)]
        struct Id {
            id: Option<String>,
        }
        let message_id = line.message.and_then(object::<Id>).and_then(|message| message.id);
        let mut events = Vec::new();
        let mut tool_calls = 0;
        for block in line.blocks() {
            match block.kind() {
                "text" => events.push(("text", json!({ "text": string(block.text) }).to_string())),
                "thinking" => events.push(("reasoning", json!({ "thinking": string(block.thinking) }).to_string())),
                "tool_use" => {
                    tool_calls += 1;
                    let (name, id) = (string(block.name).unwrap_or_default(), string(block.id).unwrap_or_default());
                    let data = json!({ "toolName": name, "toolId": id, "input": block.input });
                    events.push(("tool_start", data.to_string()));
                    self.remember(id, name);
                }
                _ => {}
            }
        }
        Classified {
            kind: Kind::Assistant { message_id },
            messages: Some((Role::Assistant, text)),
            events,
            usage: (tool_calls > 0).then(|| Usage { tool_calls, ..Usage::default() }),
        }
    }

    fn user(&mut self, line: &Line<'_>, text: String) -> Classified {
        let blocks = line.blocks();
        let results: Vec<_> = blocks.iter().filter(|block| block.kind() == "tool_result").collect();
        // `tool_use_result` belongs to the line; with several results in it nobody can say to which.
        let output = line.tool_use_result.filter(|_| results.len() == 1).and_then(object::<Output>);
        let events = results.into_iter().map(|block| ("tool_result", self.tool_result(block, output.as_ref())));
        Classified {
            kind: Kind::User { replay: false },
            events: events.collect(),
            messages: Some((Role::User, text)),
            usage: None,
        }
    }

    fn tool_result(&self, block: &Block<'_>, output: Option<&Output>) -> String {
        let id = string(block.tool_use_id).unwrap_or_default();
        let (stdout, stderr) = match output {
            Some(Output { stdout: Some(out), stderr }) => (out.clone(), stderr.clone().unwrap_or_default()),
            _ if is_true(block.is_error) => (String::new(), content_text(block.content)),
            _ => (content_text(block.content), String::new()),
        };
        let name = self.names.get(&id).map_or("", String::as_str);
        json!({ "toolName": name, "toolId": id, "stdout": stdout, "stderr": stderr }).to_string()
    }

    fn remember(&mut self, id: String, name: String) {
        // A name is hostile text too; no tool has one this long.
        if id.len() > 256 || name.len() > 256 || self.names.insert(id.clone(), name).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED_TOOLS
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }
}

/// How every stream event of claude begins. A line that spells the same differently takes the slow way.
pub const STREAM_EVENT: &[u8] = br#"{"type":"stream_event""#;

impl Classified {
    fn nothing(kind: Kind) -> Self {
        Self { kind, messages: None, events: Vec::new(), usage: None }
    }
}

/// What shell-like tools report beside the text that the model sees.
#[derive(Debug, Deserialize)]
struct Output {
    stdout: Option<String>,
    stderr: Option<String>,
}

/// A tool's content as text: a string as it is, of blocks their texts, one below the other.
fn content_text(content: Option<&RawValue>) -> String {
    let Some(raw) = content else { return String::new() };
    if let Some(text) = string(Some(raw)) {
        return text;
    }
    let blocks: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
    let texts: Vec<String> =
        blocks.into_iter().filter_map(object::<Block<'_>>).filter_map(|block| string(block.text)).collect();
    texts.join("\n")
}

fn result(line: &[u8], text: String) -> Classified {
    let (turn, usage) = TurnResult::read(line);
    let mut events = Vec::new();
    if let Some(why) = turn.failure() {
        events.push(("error", json!({ "error": why }).to_string()));
    }
    events.push(("turn_complete", json!({ "numTurns": turn.num_turns, "result": turn.result }).to_string()));
    Classified { kind: Kind::Result(turn), messages: Some((Role::Assistant, text)), events, usage: Some(usage) }
}

fn control_response(line: &[u8]) -> Kind {
    #[derive(Deserialize)]
    struct Outer {
        response: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        subtype: String,
        request_id: String,
        #[serde(default)]
        error: Option<serde_json::Value>,
    }
    match serde_json::from_slice::<Outer>(line) {
        Ok(Outer { response }) => Kind::ControlResponse {
            request_id: response.request_id,
            ok: response.subtype == "success",
            error: response.error.map(|e| e.as_str().map_or_else(|| e.to_string(), str::to_owned)),
        },
        Err(_) => Kind::Other,
    }
}

fn control_request(line: &[u8], raw: String) -> Kind {
    #[derive(Deserialize)]
    struct Outer {
        request_id: String,
        request: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        subtype: String,
    }
    match serde_json::from_slice::<Outer>(line) {
        Ok(outer) => Kind::ControlRequest { request_id: outer.request_id, subtype: outer.request.subtype, raw },
        Err(_) => Kind::Other,
    }
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
