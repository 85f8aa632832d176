//! The lines ashd writes to claude's stdin. Each ends with a newline and is written whole or not at
//! all: a partial line makes claude exit.

use super::{LaunchOptions, MAX_ARG_BYTES};
use ash_model::RawJson;
use serde_json::{Map, Value, json};

/// Maximum bytes of a schema: it is one argument of the process, with the flag's name.
const MAX_SCHEMA: usize = MAX_ARG_BYTES - "--json-schema=".len();

/// One line for claude's stdin, newline included.
pub type InputLine = Vec<u8>;

/// The first request. Its answer is the sign of readiness: claude prints nothing before.
///
/// It carries the system prompt, because the kernel limits one argument to 128 KiB.
pub fn initialize_line(request_id: &str, options: &LaunchOptions) -> InputLine {
    let mut request = Map::new();
    request.insert("subtype".into(), "initialize".into());
    if let Some(prompt) = options.system_prompt.as_deref().filter(|p| !p.is_empty()) {
        request.insert("appendSystemPrompt".into(), prompt.into());
    }
    control(request_id, Value::Object(request))
}

/// Ends the running turn; harmless when none runs. The answer comes before the turn's `result`.
pub fn interrupt_line(request_id: &str) -> InputLine {
    control(request_id, json!({ "subtype": "interrupt" }))
}

/// Applies from the next model call on; `None` restores claude's default.
pub fn set_model_line(request_id: &str, model: Option<&str>) -> InputLine {
    control(request_id, json!({ "subtype": "set_model", "model": model.unwrap_or("default") }))
}

/// `effort` as the client sent it (low, medium, high, ...); `null` restores the default.
pub fn set_effort_line(request_id: &str, effort: &Value) -> InputLine {
    control(request_id, json!({ "subtype": "apply_flag_settings", "settings": { "effortLevel": effort } }))
}

/// `None` removes the limit. Models with adaptive thinking ignore it.
pub fn set_thinking_line(request_id: &str, max_tokens: Option<u64>) -> InputLine {
    control(request_id, json!({ "subtype": "set_max_thinking_tokens", "max_thinking_tokens": max_tokens }))
}

/// Thinking tokens that the `thinking` of a message asks for: a number,
/// `{"type":"enabled","budget_tokens":n}` (the Messages API's form, also with `budgetTokens`),
/// `{"type":"disabled"}` is 0, `{"type":"adaptive"}` no limit.
pub fn thinking_tokens(thinking: &Value) -> Result<Option<u64>, String> {
    const FORMS: &str = "thinking must be {\"type\":\"enabled\",\"budgetTokens\":n}, {\"type\":\"adaptive\"}, \
                         {\"type\":\"disabled\"} or a number of tokens";
    if let Some(tokens) = thinking.as_u64() {
        return Ok(Some(tokens));
    }
    match thinking.get("type").and_then(Value::as_str) {
        Some("enabled") => match thinking.get("budgetTokens").or_else(|| thinking.get("budget_tokens")) {
            None | Some(Value::Null) => Ok(None),
            Some(tokens) => tokens.as_u64().map(Some).ok_or_else(|| FORMS.to_owned()),
        },
        Some("disabled") => Ok(Some(0)),
        Some("adaptive") => Ok(None),
        _ => Err(FORMS.to_owned()),
    }
}

/// The JSON schema of a message's `outputFormat`: `{"type":"json_schema","schema":{...}}`, as in
/// the SDK.
pub fn output_schema(format: &RawJson) -> Result<RawJson, String> {
    const FORM: &str = "outputFormat must be {\"type\":\"json_schema\",\"schema\":{...}}";
    if format.member("type").is_none_or(|kind| kind.get() != "\"json_schema\"") {
        return Err(FORM.to_owned());
    }
    let schema = format.member("schema").filter(|schema| schema.get().starts_with('{')).ok_or(FORM)?;
    if schema.get().len() > MAX_SCHEMA {
        let length = schema.get().len();
        return Err(format!("outputFormat.schema is too long: {length} bytes, maximum {MAX_SCHEMA}"));
    }
    RawJson::parse(schema.get()).map_err(|error| format!("outputFormat.schema: {error}"))
}

/// Refuses an unknown control request, so that claude does not wait forever.
pub fn refuse_line(request_id: &str, why: &str) -> InputLine {
    line(&json!({
        "type": "control_response",
        "response": { "subtype": "error", "request_id": request_id, "error": why },
    }))
}

pub(super) fn control(request_id: &str, request: Value) -> InputLine {
    line(&json!({ "type": "control_request", "request_id": request_id, "request": request }))
}

pub(super) fn line(value: &Value) -> InputLine {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_line() {
        let options = LaunchOptions { system_prompt: Some("a\nb".into()), ..LaunchOptions::default() };
        for line in [
            initialize_line("i", &options),
            interrupt_line("x"),
            set_model_line("m", None),
            set_effort_line("e", &json!("high")),
            set_thinking_line("t", Some(1)),
            refuse_line("r", "no\nway"),
        ] {
            assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
            assert_eq!(line.last(), Some(&b'\n'));
            assert!(serde_json::from_slice::<Value>(&line).is_ok());
        }
    }

    #[test]
    fn thinking_in_all_its_forms() {
        let table = [
            (json!(2000), Ok(Some(2000))),
            (json!({ "type": "enabled", "budgetTokens": 10 }), Ok(Some(10))),
            (json!({ "type": "enabled", "budget_tokens": 10 }), Ok(Some(10))),
            (json!({ "type": "enabled" }), Ok(None)),
            (json!({ "type": "adaptive" }), Ok(None)),
            (json!({ "type": "disabled" }), Ok(Some(0))),
            (json!({ "type": "enabled", "budget_tokens": -1 }), Err(())),
            (json!("much"), Err(())),
            (json!({}), Err(())),
        ];
        for (thinking, expected) in table {
            assert_eq!(thinking_tokens(&thinking).map_err(|_| ()), expected, "{thinking}");
        }
    }

    /// Properties keep the order that was sent:
    /// <https://github.com/vllm-project/router/issues/186>.
    #[test]
    fn output_format_must_be_a_schema() {
        let raw = |text: &str| RawJson::parse(text).unwrap();
        let schema = r#"{"zebra":{"type":"string"},"apple":1}"#;
        let format = raw(&format!(r#"{{"type":"json_schema","schema":{schema}}}"#));
        assert_eq!(output_schema(&format), Ok(raw(schema)), "its properties keep their order");
        for bad in
            ["{}", "\"json\"", r#"{"type":"json_schema"}"#, r#"{"schema":{}}"#, r#"{"type":"json_schema","schema":1}"#]
        {
            assert!(output_schema(&raw(bad)).is_err(), "{bad}");
        }
        let long = raw(&format!(r#"{{"type":"json_schema","schema":{{"a":"{}"}}}}"#, "x".repeat(MAX_ARG_BYTES)));
        assert!(output_schema(&long).is_err_and(|why| why.contains("too long")));
    }
}
