//! The lines in `testdata/` are recorded from claude 2.1.330 against a stand-in of the Messages
//! API. The long lists of the init message and of the answer to `initialize` are emptied.

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
                assert_eq!(&**stored, line, "stored as it came");
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
    let (tokens, results, calls) = used
        .fold((0, 0, 0), |sum, u| (sum.0 + u.input_tokens + u.output_tokens, sum.1 + u.messages, sum.2 + u.tool_calls));
    assert_eq!((tokens, results, calls), (0, 2, 1), "the gateway counts tokens");
}

#[test]
fn every_turn_has_its_init_and_its_result_and_says_whose_it_is() {
    let classified = all(TOOL);
    let inits = classified
        .iter()
        .filter(|c| matches!(&c.kind, Kind::SystemInit { model: Some(model), .. } if model == "claude-opus-5-5"));
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
fn an_interrupted_turn_is_told_apart_and_counted() {
    let classified = all(INTERRUPT);
    let results = results(&classified);
    assert!(results[0].interrupted() && results[0].is_error);
    assert_eq!(results[0].failure().as_deref(), Some("the turn was interrupted"));
    assert!(!results[1].interrupted());
    let usage = classified.iter().find_map(|c| c.usage.clone()).expect("a result");
    assert_eq!(usage.messages, 1);
    let answers: Vec<_> = classified
        .iter()
        .filter_map(|c| match &c.kind {
            Kind::ControlResponse { request_id, ok, .. } => Some((request_id.as_str(), *ok)),
            _ => None,
        })
        .collect();
    assert!(answers.starts_with(&[("i1", true), ("int1", true), ("m", true), ("m2", true)]), "{answers:?}");
    // What claude prints about a new model is shown and not stored.
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
fn agents_in_the_background_are_told_apart_from_commands() {
    let line = |types: &[&str]| {
        let tasks: Vec<_> =
            types.iter().map(|kind| json!({"task_id": "t", "task_type": kind, "description": "d"})).collect();
        json!({"type": "system", "subtype": "background_tasks_changed", "tasks": tasks}).to_string()
    };
    for (types, agents) in
        [(&[][..], 0), (&["local_bash"][..], 0), (&["local_agent", "local_bash", "local_workflow"][..], 2)]
    {
        assert_eq!(classify(line(types).as_bytes()).kind, Kind::Background { agents }, "{types:?}");
    }
    // Tasks are counted, not collected: only the line bounds their number.
    let huge = line(&vec!["local_agent"; 10_000]);
    assert_eq!(classify(huge.as_bytes()).kind, Kind::Background { agents: 10_000 });
    assert_eq!(classify(br#"{"type":"system","subtype":"background_tasks_changed"}"#).kind, Kind::Other);
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
        ("{\"type\":\"raw \u{1} control\"}", Kind::NotJson),
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

#[test]
fn what_cannot_be_understood_takes_nothing_else_of_its_line_with_it() {
    let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
    let odd = [
        r#""\ud99c""#,
        r#"{"a":"\udc00\ud800"}"#,
        "1e999",
        "123456789012345678901234567890123456789012345678901234567890",
        "-0.0e-0",
        r#"{"a":1,"a":{"a":2},"a":[3]}"#,
        r#"{"\ud800":1,"":{}}"#,
        deep.as_str(),
    ];
    for odd in odd {
        // A tool's input goes into the timeline unchanged.
        let line = format!(
            r#"{{"type":"assistant","message":{{"id":"m","content":[{{"type":"text","text":"a"}},{{"type":"tool_use","id":"t","name":"N","input":{odd}}},{{"type":"text","text":"b"}}]}}}}"#
        );
        let mut classifier = Classifier::default();
        let classified = classifier.classify(line.as_bytes());
        assert_eq!(classified.kind, Kind::Assistant { message_id: Some("m".into()) });
        assert_eq!(classified.messages.as_ref().map(|(_, text)| &**text), Some(line.as_str()));
        let kinds: Vec<_> = classified.events.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, ["text", "tool_start", "text"]);
        assert_eq!(&*classified.events[1].1, format!(r#"{{"toolName":"N","toolId":"t","input":{odd}}}"#));
        assert_eq!(classified.usage.map(|usage| usage.tool_calls), Some(1));

        // A result with it, in an unknown field and as its text.
        for field in ["structured_output", "result", "usage", "errors", "num_turns"] {
            let line =
                format!(r#"{{"type":"result","{field}":{odd},"is_error":true,"subtype":"success","duration_ms":5}}"#);
            let classified = classify(line.as_bytes());
            let Kind::Result(result) = &classified.kind else { panic!("{field}") };
            assert!(result.is_error && result.failure().is_some(), "{field}");
            let usage = classified.usage.as_ref().expect("usage");
            let expected = Usage { compute_ms: 5, messages: 1, ..Usage::default() };
            assert_eq!(*usage, expected, "{field}: the gateway counts tokens");
            assert_eq!(classified.events.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["error", "turn_complete"]);
        }

        // A request is answered with its own input.
        let request = format!(
            r#"{{"type":"control_request","request_id":"r","request":{{"subtype":"can_use_tool","tool_name":"T","input":{odd}}}}}"#
        );
        let Kind::ControlRequest { request_id, raw, .. } = classify(request.as_bytes()).kind else { panic!() };
        let mode = crate::sessions::claude::PermissionMode::BypassPermissions;
        let answer = crate::sessions::claude::answer_permission(mode, &request_id, &raw);
        assert!(String::from_utf8(answer).expect("UTF-8").contains(&format!(r#""updatedInput":{odd}"#)));
    }
}

#[test]
fn a_lone_surrogate_leaves_the_result_of_a_turn_what_it_is() {
    let line = r#"{"type":"result","subtype":"success","is_error":true,"result":"API Error: \ud99c","num_turns":3,"usage":{"input_tokens":4}}"#;
    let classified = classify(line.as_bytes());
    let Kind::Result(result) = classified.kind else { panic!() };
    assert_eq!(result.failure().as_deref(), Some("API Error: \u{FFFD}"));
    assert_eq!(classified.usage, Some(Usage { messages: 1, ..Usage::default() }), "the gateway counts tokens");
    assert_eq!(&*classified.events[1].1, r#"{"numTurns":3,"result":"API Error: \ud99c"}"#);
}

#[test]
fn bytes_that_are_no_utf8_do_not_hide_the_end_of_a_turn() {
    let classified = classify(b"{\"type\":\"result\",\"is_error\":false,\"num_turns\":1,\"result\":\"a\xffb\"}");
    assert!(matches!(&classified.kind, Kind::Result(result) if result.num_turns == Some(1)));
    assert_eq!(&*classified.events[0].1, "{\"numTurns\":1,\"result\":\"a\u{FFFD}b\"}");
}

#[test]
fn a_line_of_a_million_blocks_is_bounded_in_what_is_made_of_it() {
    let line = format!(
        r#"{{"type":"assistant","message":{{"content":[{}{{}}]}}}}"#,
        r#"{"type":"tool_use"},"#.repeat(200_000)
    );
    let classified = classify(line.as_bytes());
    assert_eq!(classified.events.len(), BLOCKS);
    assert!(classified.messages.is_some_and(|(_, text)| text.len() == line.len()));
    let line = format!(
        r#"{{"type":"result","is_error":true,"result":"{}","errors":[{}""],"user_message_uuids":[{}""]}}"#,
        "x".repeat(1 << 20),
        "\"\",".repeat(300_000),
        "\"\",".repeat(300_000)
    );
    let Kind::Result(result) = classify(line.as_bytes()).kind else { panic!() };
    assert!(result.failure().is_some_and(|why| why.len() <= 16 << 10));
    assert!(result.errors.len() <= 256 && result.user_messages.len() <= 256);
}

#[test]
fn a_request_that_is_abridged_is_refused() {
    let line =
        r#"{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool","input":{}},"omitted":{}}"#;
    let Kind::ControlRequest { request_id, raw, .. } = Classifier::default().classify_abridged(line.as_bytes()).kind
    else {
        panic!()
    };
    let mode = crate::sessions::claude::PermissionMode::BypassPermissions;
    let answer = crate::sessions::claude::answer_permission(mode, &request_id, &raw);
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!((&answer["response"]["subtype"], &answer["response"]["request_id"]), (&json!("error"), &json!("r")));
}

proptest::proptest! {
    /// For any line: no panic, and timeline data is JSON.
    #[test]
    fn no_line_breaks_the_classifier(
        kind in "(assistant|user|result|system|control_request|control_response|command_lifecycle)",
        field in "(message|result|usage|errors|request|response|tool_use_result|model_usage_since_last_result|is_error|num_turns)",
        value in "\\PC{0,40}|[\\[\\]{}:,\"ue0-9.\\\\+-]{0,40}|\\{\"content\":\\[\\{\"type\":\"(text|tool_use|tool_result)\",\"(text|input|content|id)\":[\\[\\]{}:,\"u0-9.+-]{0,20}\\}\\]\\}|\"\\\\u[d9][89a-c][0-9a-f]{2}\"",
    ) {
        let line = format!(r#"{{"type":"{kind}","{field}":{value}}}"#);
        for classified in [classify(line.as_bytes()), Classifier::default().classify_abridged(line.as_bytes())] {
            for (_, data) in &classified.events {
                proptest::prop_assert!(ash_model::RawJson::parse(&**data).is_ok_and(|json| json.is_object()), "{}", data);
            }
            if let Kind::ControlRequest { request_id, raw, .. } = &classified.kind {
                let mode = crate::sessions::claude::PermissionMode::BypassPermissions;
                let answer = crate::sessions::claude::answer_permission(mode, request_id, raw);
                let text = String::from_utf8(answer).expect("UTF-8");
                proptest::prop_assert!(text.ends_with('\n') && ash_model::RawJson::parse(text.trim_end()).is_ok());
            }
        }
    }
}
