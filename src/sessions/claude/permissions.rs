//! Answers when claude asks whether a tool may run. The API has no user to ask, so the session's
//! `permissionMode` decides. A refusal tells the model what to change.

use serde_json::json;
use serde_json::value::RawValue;

use super::PermissionMode;
use super::line::{Line, member, string};
use super::requests::{InputLine, line, refuse_line};
use ash_model::raw::on_one_line;

/// The answer to a `control_request` of claude. `raw` is its line, or empty when that was too long
/// to hold. Every request gets an answer: an unanswered one blocks the turn forever.
pub fn answer_permission(mode: PermissionMode, request_id: &str, raw: &str) -> InputLine {
    let unreadable = || refuse_line(request_id, "the request could not be read");
    if raw.is_empty() {
        return refuse_line(request_id, "the request exceeds the limit of 4 MiB");
    }
    let Some(request) = Line::parse(raw).and_then(|line| line.request) else { return unreadable() };
    let Some(subtype) = string(member(request, "subtype")) else { return unreadable() };
    if subtype != "can_use_tool" {
        return refuse_line(request_id, &format!("ashd does not support \"{subtype}\" requests"));
    }
    let tool = string(member(request, "tool_name")).unwrap_or_default();
    let message = match mode {
        PermissionMode::BypassPermissions => {
            // The input goes back unchanged.
            let input = member(request, "input").map_or("null", RawValue::get);
            let line = format!(
                r#"{{"type":"control_response","response":{{"subtype":"success","request_id":{},"response":{{"behavior":"allow","updatedInput":{}}}}}}}"#,
                json!(request_id),
                on_one_line(input),
            );
            return (line + "\n").into_bytes();
        }
        PermissionMode::PermissionsByAgent => denied(
            &tool,
            "allow it under permissions.allow in the agent's .claude/settings.json, or in the session's allowedTools",
        ),
        PermissionMode::Default => denied(
            &tool,
            "name it in the session's allowedTools, or create the session with permissionMode bypassPermissions",
        ),
    };
    line(&json!({
        "type": "control_response",
        "response": {
            "subtype": "success",
            "request_id": request_id,
            "response": { "behavior": "deny", "message": message },
        },
    }))
}

fn denied(tool: &str, way_out: &str) -> String {
    format!("{tool} is not permitted in this session, and there is no user to ask. To permit it, {way_out}.")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn ask(mode: PermissionMode, raw: &str) -> Value {
        serde_json::from_slice(&answer_permission(mode, "r1", raw)).expect("one object")
    }

    #[test]
    fn the_mode_decides() {
        let raw = r#"{"type":"control_request","request_id":"r1","request":{"subtype":"can_use_tool",
            "tool_name":"Bash","input":{"command":"ls"}}}"#;
        let allowed = ask(PermissionMode::BypassPermissions, raw);
        assert_eq!(allowed["response"]["response"], json!({"behavior":"allow","updatedInput":{"command":"ls"}}));
        assert_eq!(allowed["response"]["request_id"], "r1");
        for mode in [PermissionMode::PermissionsByAgent, PermissionMode::Default] {
            let denied = ask(mode, raw);
            assert_eq!(denied["response"]["response"]["behavior"], "deny");
            let message = denied["response"]["response"]["message"].as_str().unwrap_or_default();
            assert!(message.contains("Bash") && message.contains("allowedTools"), "{message}");
        }
    }

    #[test]
    fn every_other_request_is_refused_at_once() {
        for raw in ["", "x", "{}", r#"{"request":{"subtype":"hook_callback"}}"#, r#"{"request":7}"#] {
            let answer = ask(PermissionMode::BypassPermissions, raw);
            assert_eq!(answer["response"]["subtype"], "error", "{raw}");
            assert_eq!(answer["response"]["request_id"], "r1");
        }
    }
}
