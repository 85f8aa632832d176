//! What a `result` line says about the turn that it ends.

use serde_json::Value;

use crate::store::Usage;

/// Read field by field, and a field of an unexpected type is absent: whatever a result holds, it ends the turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnResult {
    /// success, error_during_execution, error_max_turns, error_max_budget_usd, error_max_structured_output_retries.
    pub subtype: String,
    /// Also true with subtype "success": an API error that ended the turn.
    pub is_error: bool,
    pub result: Option<String>,
    pub errors: Vec<String>,
    pub num_turns: Option<u64>,
    /// US dollars since the process started, not of this turn.
    pub total_cost_usd: Option<f64>,
    /// completed, api_error, aborted_streaming, aborted_tools, ...
    pub terminal_reason: Option<String>,
    pub api_error_status: Option<u16>,
    /// The uuids of the messages that this turn answers. None: claude began it by itself.
    pub user_messages: Vec<String>,
}

impl TurnResult {
    /// The result, and what the turn used.
    pub(super) fn read(line: &[u8]) -> (Self, Usage) {
        let json: Value = serde_json::from_slice(line).unwrap_or_default();
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        let texts = |name: &str| {
            let list = json[name].as_array().into_iter().flatten();
            list.filter_map(|item| item.as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        let result = Self {
            subtype: text("subtype").unwrap_or_default(),
            is_error: json["is_error"].as_bool().unwrap_or(false),
            result: text("result"),
            errors: texts("errors"),
            num_turns: json["num_turns"].as_u64(),
            total_cost_usd: json["total_cost_usd"].as_f64(),
            terminal_reason: text("terminal_reason"),
            api_error_status: json["api_error_status"].as_u64().and_then(|status| status.try_into().ok()),
            user_messages: texts("user_message_uuids"),
        };
        let usage =
            Usage { compute_ms: json["duration_ms"].as_f64().map_or(0, |ms| ms.max(0.0) as u64), ..tokens(&json) };
        (result, usage)
    }

    /// Ended by an interrupt request.
    pub fn interrupted(&self) -> bool {
        self.terminal_reason.as_deref().is_some_and(|reason| reason.starts_with("aborted"))
    }

    /// The budget of its message that it reached.
    pub fn spent(&self) -> Option<&'static str> {
        match self.subtype.as_str() {
            "error_max_turns" => Some("maxTurns"),
            "error_max_budget_usd" => Some("maxBudgetUsd"),
            _ => None,
        }
    }

    /// Why the turn failed, in words for the client; `None` when it did not. An interrupted turn counts as failed here:
    /// the driver knows whether that was asked for.
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
            "error_max_turns" => "the turn reached its limit of model calls (maxTurns)".to_owned(),
            "error_max_budget_usd" => "the turn reached its limit of cost (maxBudgetUsd)".to_owned(),
            other => format!("the turn ended with {other}"),
        }))
    }
}

/// The tokens of all models since the last result: `usage` alone leaves out what an interrupted answer cost (measured
/// with 2.1.330). Results of other versions without that field have `usage`.
fn tokens(json: &Value) -> Usage {
    let sum = |names: [&str; 4], parts: &[&Value]| {
        let [input_tokens, output_tokens, cache_creation_tokens, cache_read_tokens] =
            names.map(|name| parts.iter().filter_map(|part| part[name].as_u64()).fold(0, u64::saturating_add));
        Usage { input_tokens, output_tokens, cache_creation_tokens, cache_read_tokens, ..Usage::default() }
    };
    match json["model_usage_since_last_result"].as_object() {
        Some(models) => sum(
            ["inputTokens", "outputTokens", "cacheCreationInputTokens", "cacheReadInputTokens"],
            &models.values().collect::<Vec<_>>(),
        ),
        None => sum(
            ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"],
            &[&json["usage"]],
        ),
    }
}
