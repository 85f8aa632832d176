//! What ashd answers when claude asks whether a tool may run. Nobody can be asked through the API, so the session's
//! `permissionMode` decides, and a refusal tells the model (and through it the user) what to change.

use serde::Deserialize;
use serde_json::{Value, json};

use super::PermissionMode;
use super::requests::{InputLine, line, refuse_line};

/// The answer to a `control_request` of claude's (`raw` is its line). Every request gets one: an unanswered request
/// holds the turn for ever.
pub fn answer_permission(mode: PermissionMode, request_id: &str, raw: &str) -> InputLine {
    #[derive(Deserialize)]
    struct Outer {
        request: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        subtype: String,
        #[serde(default)]
        tool_name: String,
        #[serde(default)]
        input: Value,
    }
    let Ok(Outer { request }) = serde_json::from_str::<Outer>(raw) else {
        return refuse_line(request_id, "the request could not be read");
    };
    if request.subtype != "can_use_tool" {
        return refuse_line(request_id, &format!("ashd does not answer \"{}\"", request.subtype));
    }
    let answer = match mode {
        PermissionMode::BypassPermissions => json!({ "behavior": "allow", "updatedInput": request.input }),
        PermissionMode::PermissionsByAgent => json!({ "behavior": "deny", "message": denied(
            &request.tool_name,
            "allow it under permissions.allow in the agent's .claude/settings.json, or in the session's allowedTools",
        )}),
        PermissionMode::Default => json!({ "behavior": "deny", "message": denied(
            &request.tool_name,
            "name it in the session's allowedTools, or create the session with permissionMode bypassPermissions",
        )}),
    };
    line(&json!({
        "type": "control_response",
        "response": { "subtype": "success", "request_id": request_id, "response": answer },
    }))
}

fn denied(tool: &str, way_out: &str) -> String {
    format!("{tool} is not permitted in this session, and nobody can be asked. To permit it: {way_out}.")
}

#[cfg(test)]
mod tests {
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
        for raw in ["", "{}", r#"{"request":{"subtype":"hook_callback"}}"#, r#"{"request":7}"#] {
            let answer = ask(PermissionMode::BypassPermissions, raw);
            assert_eq!(answer["response"]["subtype"], "error", "{raw}");
            assert_eq!(answer["response"]["request_id"], "r1");
        }
    }
}
