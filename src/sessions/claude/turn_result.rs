//! What a `result` line says about its turn.

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::store::Usage;
use ash_model::raw::{elements, members, text};

/// Cap of a turn's reported milliseconds: 30 days. Keeps sums within SQLite's integers.
const MOST_MS: f64 = 30.0 * 86_400_000.0;

/// Read field by field; a field of an unexpected type is absent. Any result ends the turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnResult {
    /// success, error_during_execution, error_max_turns, error_max_budget_usd,
    /// error_max_structured_output_retries.
    pub subtype: String,
    /// Also true with subtype "success": an API error that ended the turn.
    pub is_error: bool,
    /// Its first 16 KiB.
    pub result: Option<String>,
    pub errors: Vec<String>,
    pub num_turns: Option<u64>,
    /// US dollars since the process started, not of this turn.
    pub total_cost_usd: Option<f64>,
    /// completed, api_error, aborted_streaming, aborted_tools, ...
    pub terminal_reason: Option<String>,
    pub api_error_status: Option<u16>,
    /// The uuids of the messages that this turn answers. Empty: claude began the turn itself.
    pub user_messages: Vec<String>,
    /// claude's id of the turn's conversation.
    pub conversation: Option<Uuid>,
}

/// Bytes kept of a result's texts, to say why a turn failed. The history has the whole text.
const TEXT_BYTES: usize = 16 * 1024;
/// Maximum errors, and message uuids, kept of a result.
const LISTED: usize = 256;

impl TurnResult {
    /// The result, and the usage it counts for: one result and its duration.
    pub(in crate::sessions) fn read(line: &str) -> (Self, Usage) {
        let mut result = Self::default();
        let mut duration = None;
        members(line, |name, value| match name {
            "subtype" => result.subtype = shortened(value).unwrap_or_default(),
            "is_error" => result.is_error = value.get() == "true",
            "result" => result.result = shortened(value),
            "errors" => result.errors = texts(value),
            "num_turns" => result.num_turns = whole(value),
            "total_cost_usd" => result.total_cost_usd = number(value),
            "terminal_reason" => result.terminal_reason = shortened(value),
            "api_error_status" => result.api_error_status = whole(value).and_then(|status| status.try_into().ok()),
            "session_id" => result.conversation = text(value).and_then(|id| id.parse().ok()),
            "user_message_uuids" => result.user_messages = texts(value),
            "duration_ms" => duration = number(value),
            _ => {}
        });
        // Tokens are not taken from here, because the payload can forge them. The gateway counts
        // them.
        let compute_ms = duration.map_or(0, |ms| ms.clamp(0.0, MOST_MS) as u64);
        (result, Usage { compute_ms, messages: 1, ..Usage::default() })
    }

    /// Ended by an interrupt request.
    pub fn interrupted(&self) -> bool {
        self.terminal_reason.as_deref().is_some_and(|reason| reason.starts_with("aborted"))
    }

    /// Whether it names the messages that it answers, and `message` (a uuid) is not among them.
    pub fn is_of_others(&self, message: &str) -> bool {
        !self.user_messages.is_empty() && !self.user_messages.iter().any(|answered| answered == message)
    }

    /// The budget of its message that it reached.
    pub fn spent(&self) -> Option<&'static str> {
        match self.subtype.as_str() {
            "error_max_turns" => Some("maxTurns"),
            "error_max_budget_usd" => Some("maxBudgetUsd"),
            _ => None,
        }
    }

    /// Why the turn failed, as a message for the client; `None` when it succeeded. An interrupted
    /// turn counts as failed: the driver knows whether a client asked for it.
    pub fn failure(&self) -> Option<String> {
        if !self.is_error {
            return None;
        }
        if self.interrupted() {
            return Some("the turn was interrupted".to_owned());
        }
        let said = self.result.clone().filter(|text| !text.trim().is_empty());
        let listed = (!self.errors.is_empty()).then(|| self.errors.join("; "));
        Some(said.or(listed).unwrap_or_else(|| match self.subtype.as_str() {
            "error_max_turns" => "the turn reached its model call limit (maxTurns)".to_owned(),
            "error_max_budget_usd" => "the turn reached its cost limit (maxBudgetUsd)".to_owned(),
            other => format!("the turn ended with {other}"),
        }))
    }
}

/// A string, cut at a bound.
fn shortened(value: &RawValue) -> Option<String> {
    let text = text(value)?;
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Some(text[..end].to_owned())
}

/// The first strings of a list.
fn texts(value: &RawValue) -> Vec<String> {
    let (mut list, mut bytes) = (Vec::new(), 0);
    elements(value.get(), |item| {
        if let Some(text) = shortened(item) {
            bytes += text.len();
            list.push(text);
        }
        list.len() < LISTED && bytes < TEXT_BYTES
    });
    list
}

fn number(value: &RawValue) -> Option<f64> {
    value.get().parse::<f64>().ok().filter(|number| number.is_finite())
}

/// A count in any notation (`12`, `12.0`, `1.2e1`), saturating.
fn whole(value: &RawValue) -> Option<u64> {
    let text = value.get();
    if let Ok(count) = text.parse() {
        return Some(count);
    }
    let number = text.parse::<f64>().ok().filter(|number| *number >= 0.0)?;
    (number.fract() == 0.0 || number.is_infinite()).then_some(number as u64)
}
