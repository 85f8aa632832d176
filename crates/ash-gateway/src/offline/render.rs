//! Turns the model's acts into the events of the Messages API, one by one. Pure.
//!
//! ```text
//!  message_start (content_block_start delta* content_block_stop)* message_delta message_stop
//!  with pings, as in the API
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::conversation::{BYTES_PER_TOKEN, Conversation};
use super::plan::Act;
use crate::answer::{ErrorDetail, error_kind};

/// Characters of a tool's input per delta.
const JSON_PIECE: usize = 40;

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    MessageStart { message: Message },
    ContentBlockStart { index: usize, content_block: Block },
    Ping,
    ContentBlockDelta { index: usize, delta: Delta },
    ContentBlockStop { index: usize },
    MessageDelta { delta: End, usage: Usage },
    MessageStop,
    Error { error: Fault },
}

impl Event {
    /// Bytes of its text.
    pub fn text(&self) -> usize {
        match self {
            Event::ContentBlockDelta { delta, .. } => match delta {
                Delta::TextDelta { text: said }
                | Delta::ThinkingDelta { thinking: said }
                | Delta::SignatureDelta { signature: said }
                | Delta::InputJsonDelta { partial_json: said } => said.len(),
            },
            _ => 0,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Event::MessageStart { .. } => "message_start",
            Event::ContentBlockStart { .. } => "content_block_start",
            Event::Ping => "ping",
            Event::ContentBlockDelta { .. } => "content_block_delta",
            Event::ContentBlockStop { .. } => "content_block_stop",
            Event::MessageDelta { .. } => "message_delta",
            Event::MessageStop => "message_stop",
            Event::Error { .. } => "error",
        }
    }
}

/// A whole message; in `message_start` its content is empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub role: &'static str,
    pub model: String,
    pub content: Vec<Block>,
    pub stop_reason: Option<String>,
    pub stop_sequence: Option<String>,
    pub usage: Usage,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    Text { text: String },
    Thinking { thinking: String, signature: String },
    ToolUse { id: String, name: String, input: Value },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Delta {
    TextDelta { text: String },
    ThinkingDelta { thinking: String },
    SignatureDelta { signature: String },
    InputJsonDelta { partial_json: String },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct End {
    pub stop_reason: Option<String>,
    pub stop_sequence: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    pub input_tokens: u64,
    pub cache_creation_input_tokens: u64,
    pub cache_read_input_tokens: u64,
    pub output_tokens: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub message: String,
}

impl<'a> From<&'a Fault> for ErrorDetail<'a> {
    fn from(fault: &'a Fault) -> Self {
        ErrorDetail { kind: fault.kind, message: &fault.message }
    }
}

/// The next event on the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Event(Event),
    Wait(Duration),
    /// The connection closes.
    Cut,
}

/// Text that is sent word by word.
#[derive(Debug)]
enum Saying {
    Text { text: String, at: usize },
    Repeat { left: u64, word: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Text,
    Thinking,
}

/// Iterator over the events of an answer.
#[derive(Debug)]
pub struct Render<I: FnMut() -> String> {
    acts: std::vec::IntoIter<Act>,
    ready: VecDeque<Next>,
    saying: Option<Saying>,
    open: Open,
    /// Index of the open or next block.
    index: usize,
    delay: Duration,
    usage: Usage,
    max_tokens: u64,
    stop: &'static str,
    asked_stop: Option<String>,
    pinged: bool,
    over: bool,
    ids: I,
}

impl<I: FnMut() -> String> Render<I> {
    /// `ids` returns a new word for each id.
    pub fn new(acts: Vec<Act>, conversation: &Conversation, mut ids: I) -> Self {
        let usage = Usage { input_tokens: conversation.tokens, output_tokens: 1, ..Usage::default() };
        let message = Message {
            id: format!("msg_{}", ids()),
            kind: "message",
            role: "assistant",
            model: conversation.model.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage,
        };
        Self {
            acts: acts.into_iter(),
            ready: VecDeque::from([Next::Event(Event::MessageStart { message })]),
            saying: None,
            open: Open::Nothing,
            index: 0,
            delay: Duration::ZERO,
            usage: Usage { output_tokens: 0, ..usage },
            max_tokens: conversation.max_tokens,
            stop: "end_turn",
            asked_stop: None,
            pinged: false,
            over: false,
            ids,
        }
    }

    fn event(&mut self, event: Event) {
        self.ready.push_back(Next::Event(event));
    }

    fn begin(&mut self, block: Block) {
        self.event(Event::ContentBlockStart { index: self.index, content_block: block });
        if !self.pinged {
            self.pinged = true;
            self.event(Event::Ping);
        }
    }

    fn close(&mut self) {
        if self.open != Open::Nothing {
            if self.open == Open::Thinking {
                let signature = (self.ids)();
                self.event(Event::ContentBlockDelta { index: self.index, delta: Delta::SignatureDelta { signature } });
            }
            self.end_block();
        }
    }

    fn end_block(&mut self) {
        self.event(Event::ContentBlockStop { index: self.index });
        self.index += 1;
        self.open = Open::Nothing;
    }

    /// One text delta, if the request's `max_tokens` allows it; else the answer ends here.
    fn delta(&mut self, text: String) {
        if self.usage.output_tokens >= self.max_tokens {
            self.stop = "max_tokens";
            self.saying = None;
            self.acts = Vec::new().into_iter();
            return;
        }
        self.usage.output_tokens += (text.len() as u64).div_ceil(BYTES_PER_TOKEN).max(1);
        let delta = if self.open == Open::Thinking {
            Delta::ThinkingDelta { thinking: text }
        } else {
            Delta::TextDelta { text }
        };
        self.event(Event::ContentBlockDelta { index: self.index, delta });
        self.pause();
    }

    fn pause(&mut self) {
        if self.delay > Duration::ZERO {
            self.ready.push_back(Next::Wait(self.delay));
        }
    }

    /// Continues text in the open block, on a new line.
    fn say(&mut self, saying: Saying) {
        if self.open == Open::Text {
            self.delta("\n".into());
        } else {
            self.close();
            self.begin(Block::Text { text: String::new() });
            self.open = Open::Text;
        }
        self.saying = Some(saying);
    }

    fn call(&mut self, name: String, input: &Value) {
        self.close();
        let id = format!("toolu_{}", (self.ids)());
        self.begin(Block::ToolUse { id, name, input: Value::Object(serde_json::Map::new()) });
        let json: Vec<char> = input.to_string().chars().collect();
        let pieces = std::iter::once(String::new()).chain(json.chunks(JSON_PIECE).map(|piece| piece.iter().collect()));
        for partial_json in pieces {
            self.usage.output_tokens += (partial_json.len() as u64).div_ceil(BYTES_PER_TOKEN);
            self.event(Event::ContentBlockDelta { index: self.index, delta: Delta::InputJsonDelta { partial_json } });
            self.pause();
        }
        self.end_block();
        self.stop = "tool_use";
    }

    fn advance(&mut self) {
        match self.saying.take() {
            Some(Saying::Text { text, at }) if at < text.len() => {
                let end = text[at..].find(' ').map_or(text.len(), |space| at + space + 1);
                let word = text[at..end].to_owned();
                self.saying = Some(Saying::Text { text, at: end });
                return self.delta(word);
            }
            Some(Saying::Repeat { left, word }) if left > 0 => {
                let said = format!("{word} ");
                self.saying = Some(Saying::Repeat { left: left - 1, word });
                return self.delta(said);
            }
            _ => {}
        }
        match self.acts.next() {
            Some(Act::Say(text)) => self.say(Saying::Text { text, at: 0 }),
            Some(Act::Repeat { count, word }) => self.say(Saying::Repeat { left: count, word }),
            Some(Act::Think(text)) => {
                self.close();
                self.begin(Block::Thinking { thinking: String::new(), signature: String::new() });
                self.open = Open::Thinking;
                self.saying = Some(Saying::Text { text, at: 0 });
            }
            Some(Act::Call { name, input }) => self.call(name, &input),
            Some(Act::Delay(pause)) => self.delay = pause,
            Some(Act::Hang(pause)) => self.ready.push_back(Next::Wait(pause)),
            Some(Act::Stop(reason)) => self.asked_stop = Some(reason),
            Some(Act::Cut) => {
                self.ready.push_back(Next::Cut);
                self.over = true;
            }
            Some(Act::Fail { status, message }) => {
                self.event(Event::Error { error: Fault { kind: error_kind(status), message } });
                self.over = true;
            }
            None => self.finish(),
        }
    }

    fn finish(&mut self) {
        self.close();
        let stop_reason = Some(self.asked_stop.take().unwrap_or_else(|| self.stop.to_owned()));
        self.event(Event::MessageDelta { delta: End { stop_reason, stop_sequence: None }, usage: self.usage });
        self.event(Event::MessageStop);
        self.over = true;
    }
}

impl<I: FnMut() -> String> Iterator for Render<I> {
    type Item = Next;

    fn next(&mut self) -> Option<Next> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Some(next);
            }
            if self.over {
                return None;
            }
            self.advance();
        }
    }
}

/// Assembles a message from its events, as a client does.
#[derive(Debug, Default)]
pub struct Assembly {
    message: Option<Message>,
    json: String,
}

impl Assembly {
    /// Takes the next event; returns a fault.
    pub fn take(&mut self, event: Event) -> Result<(), Fault> {
        match event {
            Event::MessageStart { message } => self.message = Some(message),
            Event::ContentBlockStart { content_block, .. } => {
                self.json.clear();
                self.content().push(content_block);
            }
            Event::ContentBlockDelta { delta, .. } => match (delta, self.content().last_mut()) {
                (Delta::TextDelta { text: more }, Some(Block::Text { text })) => text.push_str(&more),
                (Delta::ThinkingDelta { thinking: more }, Some(Block::Thinking { thinking, .. })) => {
                    thinking.push_str(&more);
                }
                (Delta::SignatureDelta { signature: whole }, Some(Block::Thinking { signature, .. })) => {
                    *signature = whole
                }
                (Delta::InputJsonDelta { partial_json }, _) => self.json.push_str(&partial_json),
                _ => {}
            },
            Event::ContentBlockStop { .. } => {
                let json = serde_json::from_str(&self.json);
                if let (Ok(whole), Some(Block::ToolUse { input, .. })) = (json, self.content().last_mut()) {
                    *input = whole;
                }
            }
            Event::MessageDelta { delta, usage } => {
                if let Some(message) = &mut self.message {
                    message.stop_reason = delta.stop_reason;
                    message.usage = usage;
                }
            }
            Event::Error { error } => return Err(error),
            Event::Ping | Event::MessageStop => {}
        }
        Ok(())
    }

    fn content(&mut self) -> &mut Vec<Block> {
        &mut self.message.as_mut().expect("message_start comes first").content
    }

    pub fn into_message(self) -> Option<Message> {
        self.message
    }
}
