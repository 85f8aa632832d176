//! The lines in `testdata/` are claude 2.1.330's own, of runs against a stand-in of the Messages API; only the long
//! lists of the init message and of the answer to `initialize` are emptied.

use serde_json::Value;

use super::*;

const TOOL: &str = include_str!("testdata/tool.jsonl");
const INTERRUPT: &str = include_str!("testdata/interrupt.jsonl");
const DENY: &str = include_str!("testdata/deny.jsonl");
const ERROR: &str = include_str!("testdata/error.jsonl");

fn all(capture: &str) -> Vec<Classified> {
    let mut classifier = Classifier::default();
    capture.lines().map(|line| classifier.classify(line.as_bytes())).collect()
}

fn events(classified: &[Classified]) -> Vec<(&'static str, Value)> {
    let events = classified.iter().flat_map(|c| &c.events);
    events.map(|(kind, data)| (*kind, serde_json::from_str(data).expect("JSON"))).collect()
}

fn results(classified: &[Classified]) -> Vec<&TurnResult> {
    let kinds = classified.iter().map(|c| &c.kind);
    kinds.filter_map(|kind| if let Kind::Result(result) = kind { Some(result) } else { None }).collect()
}

#[test]
fn nothing_of_a_real_run_is_unknown() {
    for capture in [TOOL, INTERRUPT, DENY, ERROR] {
        for (line, classified) in capture.lines().zip(all(capture)) {
            assert!(!matches!(classified.kind, Kind::Other | Kind::NotJson), "{line}");
            if let Some((_, stored)) = &classified.messages {
                assert_eq!(stored, line, "stored as it came");
            }
        }
    }
}

#[test]
fn a_turn_with_a_tool_makes_its_timeline() {
    let classified = all(TOOL);
    let events = events(&classified);
    let kinds: Vec<_> = events.iter().map(|(kind, _)| *kind).collect();
    let expected = ["reasoning", "tool_start", "tool_result", "text", "turn_complete", "text", "turn_complete"];
    assert_eq!(kinds, expected);
    assert_eq!(events[0].1, json!({ "thinking": "let me see" }));
    assert_eq!(events[1].1["toolName"], "Bash");
    assert_eq!(events[1].1["input"]["command"], "echo out; echo err >&2; false");
    assert_eq!(events[2].1["toolName"], "Bash");
    assert_eq!(events[2].1["toolId"], events[1].1["toolId"]);
    assert_eq!((&events[2].1["stdout"], &events[2].1["stderr"]), (&json!(""), &json!("Exit code 1\nout\nerr")));
    assert_eq!(events[3].1, json!({ "text": "Done with the tool." }));
    assert_eq!(events[4].1, json!({ "numTurns": 2, "result": "Done with the tool." }));
    assert_eq!(events[5].1, json!({ "text": "Hello \u{2028} there" }));

    let roles: Vec<_> = classified.iter().filter_map(|c| c.messages.as_ref()).map(|(role, _)| *role).collect();
    use Role::{Assistant as A, User as U};
    assert_eq!(roles, [A, A, U, A, A, A, A]);

    let used = classified.iter().filter_map(|c| c.usage.as_ref());
    let (input, output, calls) =
        used.fold((0, 0, 0), |sum, u| (sum.0 + u.input_tokens, sum.1 + u.output_tokens, sum.2 + u.tool_calls));
    assert_eq!((input, output, calls), (30, 21, 1));
}

#[test]
fn every_turn_has_its_init_and_its_result_and_says_whose_it_is() {
    let classified = all(TOOL);
    let inits = classified.iter().filter(|c| c.kind == Kind::SystemInit { model: Some("claude-opus-5-5".into()) });
    assert_eq!(inits.count(), 2);
    let results = results(&classified);
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|r| r.subtype == "success" && !r.is_error && r.failure().is_none()));
    let asked = |n| vec![format!("aaaaaaaa-0000-4000-8000-00000000000{n}")];
    assert_eq!((&results[0].user_messages, &results[1].user_messages), (&asked(1), &asked(2)));
    let states: Vec<_> = classified
        .iter()
        .filter_map(|c| if let Kind::CommandLifecycle { state, .. } = &c.kind { Some(state.as_str()) } else { None })
        .collect();
    assert_eq!(states, ["queued", "started", "completed", "queued", "started", "completed"]);
}

#[test]
fn an_interrupted_turn_is_told_apart_and_paid_for() {
    let classified = all(INTERRUPT);
    let results = results(&classified);
    assert!(results[0].interrupted() && results[0].is_error);
    assert_eq!(results[0].failure().as_deref(), Some("the turn was interrupted"));
    assert!(!results[1].interrupted());
    let usage = classified.iter().find_map(|c| c.usage.clone()).expect("a result");
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.cache_read_tokens), (10, 2, 4));
    let answers: Vec<_> = classified
        .iter()
        .filter_map(|c| match &c.kind {
            Kind::ControlResponse { request_id, ok, .. } => Some((request_id.as_str(), *ok)),
            _ => None,
        })
        .collect();
    assert!(answers.starts_with(&[("i1", true), ("int1", true), ("m", true), ("m2", true)]), "{answers:?}");
    // What claude prints about a new model is shown and not kept.
    let replays: Vec<_> = classified.iter().filter(|c| c.kind == Kind::User { replay: true }).collect();
    assert_eq!(replays.len(), 2);
    assert!(replays.iter().all(|c| c.messages.is_none() && c.events.is_empty()));
}

#[test]
fn claude_asks_and_is_answered_from_its_own_line() {
    let classified = all(DENY);
    let (id, raw) = classified
        .iter()
        .find_map(|c| match &c.kind {
            Kind::ControlRequest { request_id, subtype, raw } if subtype == "can_use_tool" => Some((request_id, raw)),
            _ => None,
        })
        .expect("a request");
    let mode = crate::sessions::claude::PermissionMode::Default;
    let answer = crate::sessions::claude::answer_permission(mode, id, raw);
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(answer["response"]["request_id"], json!(id));
    assert_eq!(answer["response"]["response"]["behavior"], "deny");
}

#[test]
fn an_api_error_with_subtype_success_is_a_failure() {
    let classified = all(ERROR);
    let results = results(&classified);
    assert_eq!((results[0].subtype.as_str(), results[0].is_error), ("success", true));
    assert_eq!(results[0].failure().as_deref(), Some("API Error: 400 bad thing"));
    assert_eq!(results[0].api_error_status, Some(400));
    let kinds: Vec<_> = events(&classified).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["text", "error", "turn_complete"]);
}

#[test]
fn whatever_a_result_holds_it_ends_the_turn() {
    for line in [
        r#"{"type":"result"}"#,
        r#"{"type":"result","usage":null,"errors":"x","num_turns":-1,"is_error":"yes","result":[],"duration_ms":"x"}"#,
        r#"{"subtype":7,"usage":{"input_tokens":1e300},"model_usage_since_last_result":[],"type":"result"}"#,
    ] {
        assert!(matches!(classify(line.as_bytes()).kind, Kind::Result(_)), "{line}");
    }
    let limit = classify(br#"{"type":"result","subtype":"error_max_turns","is_error":true}"#);
    let Kind::Result(result) = limit.kind else { panic!() };
    assert!(result.failure().is_some_and(|why| why.contains("maxTurns")));
}

#[test]
fn tool_results_in_their_forms() {
    let one = |line: &str| {
        let event = classify(line.as_bytes()).events.remove(0);
        assert_eq!(event.0, "tool_result");
        let data: Value = serde_json::from_str(&event.1).expect("JSON");
        (data["stdout"].as_str().expect("text").to_owned(), data["stderr"].as_str().expect("text").to_owned())
    };
    let line = |block: &str, more: &str| {
        format!(
            r#"{{"type":"user","message":{{"content":[{{"type":"tool_result","tool_use_id":"t",{block}}}]}}{more}}}"#
        )
    };
    let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(one(&line(r#""content":"x""#, r#","tool_use_result":{"stdout":"a","stderr":"b"}"#)), own("a", "b"));
    assert_eq!(one(&line(r#""content":"x""#, r#","tool_use_result":{"file":{}}"#)), own("x", ""));
    assert_eq!(one(&line(r#""content":"x","is_error":true"#, "")), own("", "x"));
    let blocks = r#""content":[{"type":"text","text":"a"},{"type":"image"},{"type":"text","text":"b"}]"#;
    assert_eq!(one(&line(blocks, "")), own("a\nb", ""));
    assert_eq!(one(&line(r#""content":null"#, "")), own("", ""));
}

#[test]
fn forged_lines_are_named_and_cost_little() {
    for (line, expected) in [
        ("hello", Kind::NotJson),
        ("", Kind::NotJson),
        ("{\"type\":\"result\"", Kind::NotJson),
        (r#"{"type":"control_response"}"#, Kind::Other),
        (r#"{"type":"control_request","request_id":1}"#, Kind::Other),
        (r#"{"type":"x"}"#, Kind::Other),
        (r#"{"type":"stream_event","cut"#, Kind::StreamEvent),
        (r#"{"uuid":"u","type":"stream_event"}"#, Kind::StreamEvent),
    ] {
        assert_eq!(classify(line.as_bytes()).kind, expected, "{line}");
    }
    let mut classifier = Classifier::default();
    for n in 0..10_000 {
        let block = format!(r#"{{"type":"tool_use","id":"t{n}","name":"N"}}"#);
        classifier.classify(format!(r#"{{"type":"assistant","message":{{"content":[{block}]}}}}"#).as_bytes());
    }
    assert_eq!((classifier.names.len(), classifier.order.len()), (REMEMBERED_TOOLS, REMEMBERED_TOOLS));
}
