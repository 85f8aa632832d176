//! What one line of claude's stdout means to the driver and to the database.
//!
//! ```text
//!                    +--> kind       what the driver acts on (turns, requests, responses)
//! line --classify--> +--> messages   at most one row of the history: the raw line
//!                    +--> events     rows of the timeline, from complete messages only
//!                    +--> usage      results and their time, number of tool calls
//! ```
//!
//! The payload can write to that file as well: a forged line can lie about its own session only.

use std::collections::{HashMap, VecDeque};

use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Line;
use super::line::{Block, is_true, member, plain, quoted, string, utf8};
pub use super::turn_result::TurnResult;
use crate::sessions::claude::omitted::marked;
use crate::store::{Role, Text, Usage};
use ash_model::raw::{elements, members};

/// Tool calls whose name is kept until their result comes. Above it the oldest is dropped, and its
/// `tool_result` has an empty `toolName`.
const REMEMBERED_TOOLS: usize = 256;
/// Content blocks of one line that become timeline events and frames. claude writes one per line.
/// The message itself, in the stream and in the history, has all of them.
pub const BLOCKS: usize = 1000;

#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    pub kind: Kind,
    pub messages: Option<(Role, Text)>,
    /// (type, data as JSON). Only the timeline types of the API.
    pub events: Vec<(&'static str, Text)>,
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Comes at the start of every turn, never before the first input: no sign of readiness.
    SystemInit {
        model: Option<String>,
        /// claude's id of the conversation.
        conversation: Option<Uuid>,
    },
    /// Number of background agents that work now.
    Background {
        agents: usize,
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
    /// claude's answer to one of ashd's control requests.
    ControlResponse {
        request_id: String,
        ok: bool,
        error: Option<String>,
    },
    /// A request of claude. `raw` is the whole line, from which [`super::answer_permission`]
    /// answers.
    ControlRequest {
        request_id: String,
        subtype: String,
        raw: String,
    },
    /// State of the message with this uuid: queued, started, then (after the turn's result)
    /// completed or cancelled.
    CommandLifecycle {
        command: String,
        state: String,
    },
    /// Any other type. It is passed on.
    Other,
    /// Not one JSON object in UTF-8: forged, or output of a library. It is never passed on.
    NotJson,
}

/// Classifies line after line. Remembers the name of each tool call, which a tool's result lacks.
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
        // By far the most frequent line; only the readers parse it.
        if line.starts_with(STREAM_EVENT) {
            return Classified::nothing(Kind::StreamEvent);
        }
        let text = utf8(line);
        let Some(parsed) = Line::parse(&text) else { return Classified::nothing(Kind::NotJson) };
        match parsed.kind() {
            "stream_event" => Classified::nothing(Kind::StreamEvent),
            "system" if parsed.subtype() == "init" => {
                let conversation = uuid(parsed.session_id);
                Classified::nothing(Kind::SystemInit { model: string(parsed.model), conversation })
            }
            "system" if parsed.subtype() == "background_tasks_changed" => Classified::nothing(background(&parsed)),
            "system" => Classified::nothing(Kind::System { subtype: parsed.subtype().to_owned() }),
            "assistant" => self.assistant(&parsed, &text),
            "user" if parsed.is_replay() => Classified::nothing(Kind::User { replay: true }),
            "user" => self.user(&parsed, &text),
            "result" => result(&parsed, &text),
            "control_response" => Classified::nothing(control_response(&parsed)),
            "control_request" => Classified::nothing(control_request(&parsed, &text)),
            "command_lifecycle" => Classified::nothing(match (string(parsed.command_uuid), string(parsed.state)) {
                (Some(command), Some(state)) => Kind::CommandLifecycle { command, state },
                _ => Kind::Other,
            }),
            _ => Classified::nothing(Kind::Other),
        }
    }

    /// A line too long to hold: `abridged` is what [`crate::sessions::stream::abridge`] kept of it.
    /// Its events carry the same mark. A request in it cannot be answered, so its `raw` is empty.
    pub fn classify_abridged(&mut self, abridged: &[u8]) -> Classified {
        let mut classified = self.classify(abridged);
        let mut mark = None;
        members(&utf8(abridged), |name, value| {
            if name == "omitted" {
                mark = Some(value.get().to_owned());
            }
        });
        if let Some(mark) = mark {
            classified.events.iter_mut().for_each(|(_, data)| *data = marked(data, &mark).into());
        }
        if let Kind::ControlRequest { raw, .. } = &mut classified.kind {
            raw.clear();
        }
        classified
    }

    fn assistant(&mut self, line: &Line<'_>, text: &str) -> Classified {
        let message_id = string(line.message.and_then(|message| member(message, "id")));
        let mut events = Vec::new();
        let mut tool_calls = 0;
        line.each_block(|block| {
            match block.kind() {
                "text" => events.push(("text", object(&[("text", quoted(block.text))]))),
                "thinking" => events.push(("reasoning", object(&[("thinking", quoted(block.thinking))]))),
                "tool_use" => {
                    tool_calls += 1;
                    let (name, id) = (quoted(block.name), quoted(block.id));
                    let (name, id) = (name.unwrap_or(EMPTY), id.unwrap_or(EMPTY));
                    let input = block.input.map(RawValue::get);
                    let data = object(&[("toolName", Some(name)), ("toolId", Some(id)), ("input", input)]);
                    events.push(("tool_start", data));
                    self.remember(id.to_owned(), name.to_owned());
                }
                _ => {}
            }
            events.len() < BLOCKS
        });
        Classified {
            kind: Kind::Assistant { message_id },
            messages: Some((Role::Assistant, text.into())),
            events,
            usage: (tool_calls > 0).then(|| Usage { tool_calls, ..Usage::default() }),
        }
    }

    fn user(&mut self, line: &Line<'_>, text: &str) -> Classified {
        let mut results = 0;
        line.each_block(|block| {
            results += usize::from(block.kind() == "tool_result");
            results < 2
        });
        // `tool_use_result` belongs to the line; with several results its owner is ambiguous.
        let output = line.tool_use_result.filter(|_| results == 1);
        let mut events = Vec::new();
        line.each_block(|block| {
            if block.kind() == "tool_result" {
                events.push(("tool_result", self.tool_result(&block, output)));
            }
            events.len() < BLOCKS
        });
        Classified {
            kind: Kind::User { replay: false },
            events,
            messages: Some((Role::User, text.into())),
            usage: None,
        }
    }

    /// `output`: what shell-like tools report beside the text that the model sees.
    fn tool_result(&self, block: &Block<'_>, output: Option<&RawValue>) -> Text {
        let id = quoted(block.tool_use_id).unwrap_or(EMPTY);
        let name = self.names.get(id).map_or(EMPTY, String::as_str);
        let of_tool = |name| output.and_then(|output| quoted(member(output, name)));
        let content;
        let (stdout, stderr) = match of_tool("stdout") {
            Some(stdout) => (stdout, of_tool("stderr").unwrap_or(EMPTY)),
            None => {
                content = content_text(block.content);
                if is_true(block.is_error) { (EMPTY, content.as_str()) } else { (content.as_str(), EMPTY) }
            }
        };
        object(&[("toolName", Some(name)), ("toolId", Some(id)), ("stdout", Some(stdout)), ("stderr", Some(stderr))])
    }

    fn remember(&mut self, id: String, name: String) {
        // As JSON text. Names may be hostile; no real tool has one this long.
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

/// How claude writes every stream event. A line spelled differently takes the slow path.
pub const STREAM_EVENT: &[u8] = br#"{"type":"stream_event""#;

impl Classified {
    fn nothing(kind: Kind) -> Self {
        Self { kind, messages: None, events: Vec::new(), usage: None }
    }
}

/// The JSON text of the empty string.
const EMPTY: &str = "\"\"";

/// An object of JSON texts, which are copied unread. `None` is null.
fn object(members: &[(&str, Option<&str>)]) -> Text {
    let part = |(name, value): &(&str, Option<&str>)| name.len() + value.map_or(4, str::len) + 4;
    let mut json = String::with_capacity(2 + members.iter().map(part).sum::<usize>());
    for (n, (name, value)) in members.iter().enumerate() {
        json.push_str(if n == 0 { "{\"" } else { ",\"" });
        json.push_str(name);
        json.push_str("\":");
        json.push_str(value.unwrap_or("null"));
    }
    json.push('}');
    json.into()
}

fn uuid(value: Option<&RawValue>) -> Option<Uuid> {
    string(value)?.parse().ok()
}

/// A tool's content as a JSON string: a string unchanged, of blocks their texts joined by newlines.
fn content_text(content: Option<&RawValue>) -> String {
    if let Some(text) = quoted(content) {
        return text.to_owned();
    }
    let mut joined = String::from('"');
    elements(content.map_or("null", RawValue::get), |block| {
        if let Some(text) = Block::read(block).and_then(|block| quoted(block.text)) {
            if joined.len() > 1 {
                joined.push_str("\\n");
            }
            joined.push_str(&text[1..text.len() - 1]);
        }
        true
    });
    joined.push('"');
    joined
}

fn result(line: &Line<'_>, text: &str) -> Classified {
    let (turn, usage) = TurnResult::read(text);
    let mut events = Vec::new();
    if let Some(why) = turn.failure() {
        events.push(("error", json!({ "error": why }).to_string().into()));
    }
    let num_turns = turn.num_turns.map(|n| n.to_string());
    events.push(("turn_complete", object(&[("numTurns", num_turns.as_deref()), ("result", quoted(line.result))])));
    Classified { kind: Kind::Result(turn), messages: Some((Role::Assistant, text.into())), events, usage: Some(usage) }
}

/// Only agents ask the model; a background command is no reason to admit requests.
fn background(line: &Line<'_>) -> Kind {
    let Some(tasks) = line.tasks.filter(|tasks| tasks.get().starts_with('[')) else { return Kind::Other };
    let mut agents = 0;
    elements(tasks.get(), |task| {
        let kind = plain(member(task, "task_type"));
        agents += usize::from(["agent", "workflow", "teammate"].iter().any(|word| kind.contains(word)));
        true
    });
    Kind::Background { agents }
}

fn control_response(line: &Line<'_>) -> Kind {
    let Some(response) = line.response else { return Kind::Other };
    let (subtype, request_id) = (member(response, "subtype"), string(member(response, "request_id")));
    match (quoted(subtype), request_id) {
        (Some(_), Some(request_id)) => Kind::ControlResponse {
            request_id,
            ok: plain(subtype) == "success",
            error: member(response, "error")
                .filter(|error| error.get() != "null")
                .map(|error| string(Some(error)).unwrap_or_else(|| error.get().to_owned()))
                // Bounded, because it is logged.
                .map(|error| error.chars().take(1000).collect()),
        },
        _ => Kind::Other,
    }
}

fn control_request(line: &Line<'_>, raw: &str) -> Kind {
    let subtype = line.request.and_then(|request| member(request, "subtype"));
    match (string(line.request_id), string(subtype)) {
        (Some(request_id), Some(subtype)) => Kind::ControlRequest { request_id, subtype, raw: raw.to_owned() },
        _ => Kind::Other,
    }
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
