use super::*;

fn of(line: &str, partial: bool) -> Vec<(String, String, String)> {
    of_skipping(line, 0, partial)
}

/// (id, event, data) of each frame, parsed strictly: three lines and an empty one.
fn of_skipping(line: &str, skip: u32, partial: bool) -> Vec<(String, String, String)> {
    let mut out = BytesMut::new();
    frames(line.as_bytes(), 3, 512, skip, partial, &mut out);
    let text = String::from_utf8(out.to_vec()).expect("UTF-8");
    if text.is_empty() {
        return Vec::new();
    }
    text.strip_suffix("\n\n")
        .expect("ends with an empty line")
        .split("\n\n")
        .map(|frame| {
            let lines: Vec<&str> = frame.split('\n').collect();
            let [id, event, data] = lines[..] else { panic!("{frame:?}") };
            let part = |line: &str, head| line.strip_prefix(head).expect(head).to_owned();
            (part(id, "id: "), part(event, "event: "), part(data, "data: "))
        })
        .collect()
}

fn events(line: &str, partial: bool) -> Vec<String> {
    of(line, partial).into_iter().map(|(_, event, _)| event).collect()
}

const DELTA: &str = r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a \"b\"\n"}},"session_id":"s"}"#;
const THINK: &str = r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}}"#;

#[test]
fn which_line_becomes_what() {
    let message = vec!["message"];
    let none: Vec<&str> = vec![];
    for (line, plain, partial) in [
        (r#"{"type":"system","subtype":"init"}"#, message.clone(), message.clone()),
        (
            r#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"}]}}"#,
            message.clone(),
            message.clone(),
        ),
        (r#"{"type":"user","message":{"content":"hello"}}"#, message.clone(), message.clone()),
        (r#"{"type":"never_seen_before","x":1}"#, message.clone(), message.clone()),
        (r#"{"no":"type"}"#, message.clone(), message),
        (
            r#"{"type":"result","num_turns":1,"result":"x"}"#,
            vec!["turn_complete", "message"],
            vec!["turn_complete", "message"],
        ),
        (DELTA, none.clone(), vec!["text_delta", "message"]),
        (THINK, none.clone(), vec!["thinking_delta", "message"]),
        (r#"{"type":"stream_event","event":{"type":"message_stop"}}"#, none.clone(), vec!["message"]),
        (r#"{ "type" : "stream_event"}"#, none.clone(), vec!["message"]),
        (r#"{"type":"control_request","request_id":"1"}"#, none.clone(), none.clone()),
        (r#"{"type":"control_response","response":{}}"#, none.clone(), none.clone()),
        (r#"{"type":"control_cancel_request"}"#, none.clone(), none.clone()),
        (r#"{"type":"transcript_mirror","entries":[]}"#, none.clone(), none.clone()),
        (r#"{"type":"command_lifecycle","state":"queued"}"#, none.clone(), none.clone()),
        (r#"{"type":"keep_alive"}"#, none.clone(), none.clone()),
        ("not json", none.clone(), none.clone()),
        ("", none.clone(), none.clone()),
        ("[1]", none.clone(), none.clone()),
        ("{\"a\":\"event: done\rdata: {}\r\"}", none.clone(), none),
    ] {
        assert_eq!(events(line, false), plain, "{line}");
        assert_eq!(events(line, true), partial, "{line} (partial)");
    }
}

#[test]
fn deltas_are_the_texts_as_they_came() {
    let frames = of(DELTA, true);
    assert_eq!(frames[0], ("3:512:1".into(), "text_delta".into(), r#"{"delta":"a \"b\"\n"}"#.into()));
    assert_eq!(frames[1], ("3:512:2".into(), "message".into(), DELTA.into()));
    assert_eq!(of(THINK, true)[0].2, r#"{"delta":"hm"}"#);
}

#[test]
fn tools_come_before_the_message_that_holds_them() {
    let line = r#"{"type":"assistant","message":{"id":"m","content":[{"type":"tool_use","id":"t1","name":"Bash","input":{"command":"ls  -l"}},{"type":"tool_use","id":"t2","name":"Read","input":{}}]}}"#;
    let frames = of(line, false);
    assert_eq!(frames.iter().map(|f| f.1.as_str()).collect::<Vec<_>>(), ["tool_use", "tool_use", "message"]);
    assert_eq!(frames[0].2, r#"{"id":"t1","name":"Bash","input":{"command":"ls  -l"}}"#);
    assert_eq!(frames[2].2, line);

    let line = r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"x"}]},{"type":"tool_result","tool_use_id":"t2","content":"no","is_error":true}]}}"#;
    let frames = of(line, false);
    assert_eq!(frames[0].2, r#"{"tool_use_id":"t1","content":[{"type":"text","text":"x"}],"is_error":false}"#);
    assert_eq!(frames[1].2, r#"{"tool_use_id":"t2","content":"no","is_error":true}"#);
}

#[test]
fn a_replayed_message_tells_nothing_twice() {
    let line = r#"{"type":"user","isReplay":true,"message":{"content":[{"type":"tool_result","tool_use_id":"t"}]}}"#;
    assert_eq!(events(line, false), ["message"]);
}

#[test]
fn the_result_of_a_failed_turn_has_null() {
    let line = r#"{"type":"result","subtype":"error_during_execution","is_error":true,"num_turns":2}"#;
    assert_eq!(of(line, false)[0].2, r#"{"numTurns":2,"result":null}"#);
}

#[test]
fn what_ends_a_line_for_a_client_is_escaped_and_nothing_else() {
    let text = "a\u{2028}b\u{2029}c\u{85}d€é–\u{2027}\u{2030}\u{84}🎉";
    let line = format!("{{\"type\":\"system\",\r\"t\":\"{text}\"}}");
    let frames = of(&line, false);
    let data = &frames[0].2;
    assert!(data.contains(r"a\u2028b\u2029c\u0085d€é–"), "{data}");
    assert!(!data.contains(['\u{2028}', '\u{2029}', '\u{85}', '\r']), "{data}");
    let back: serde_json::Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(back["t"], text);
    // The same in a derived frame.
    let line = format!(r#"{{"type":"stream_event","event":{{"delta":{{"type":"text_delta","text":"{text}"}}}}}}"#);
    let frames = of(&line, true);
    assert!(frames.iter().all(|f| !f.2.contains(['\u{2028}', '\u{2029}', '\u{85}'])), "{frames:?}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&frames[0].2).expect("JSON")["delta"], text);
}

#[test]
fn skipping_goes_on_in_the_middle_of_a_line() {
    let whole = of(DELTA, true);
    assert_eq!(of_skipping(DELTA, 1, true), whole[1..]);
    assert_eq!(of_skipping(DELTA, 2, true), []);
}

#[test]
fn numbers_are_decimal() {
    for number in [0, 9, 10, 1234567890, u64::MAX] {
        let mut out = BytesMut::new();
        put_number(&mut out, number);
        assert_eq!(out, number.to_string().as_bytes());
    }
}

#[test]
fn own_frames_have_the_same_form() {
    let mut out = BytesMut::new();
    own_frame(
        EventId { turn: 1, offset: 9, frame: 0 },
        "error",
        &serde_json::json!({"error":"a\nb\u{2028}"}),
        &mut out,
    );
    assert_eq!(out, &b"id: 1:9:0\nevent: error\ndata: {\"error\":\"a\\nb\\u2028\"}\n\n"[..]);
}

/// The frames of a long line in pieces of `piece` bytes.
fn of_long(line: &[u8], abridged: &str, piece: usize) -> Vec<u8> {
    let mut out = BytesMut::new();
    if long_frames(abridged.as_bytes(), 3, 512, 0, true, &mut out) {
        let mut at = 0;
        while at < line.len() {
            let to = line.len().min(at + piece);
            at += piece_of(&line[at..to], to == line.len(), &mut out);
        }
        out.extend_from_slice(END);
    }
    out.to_vec()
}

#[test]
fn a_long_line_leaves_in_pieces_as_it_came() {
    let text = "a\u{2028}b\u{2029}c\u{85}d€é–\u{2027}🎉\r";
    for line in [
        format!("{{\"type\":\"system\",\r\"t\":\"{}\"}}", text.trim_end()),
        r#"{"type":"result","num_turns":1,"result":"x"}"#.to_owned(),
        r#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"t","input":{"a":"\ud99c"}}]}}"#
            .to_owned(),
        r#"{"type":"keep_alive"}"#.to_owned(),
        DELTA.to_owned(),
    ] {
        let mut whole = BytesMut::new();
        frames(line.as_bytes(), 3, 512, 0, true, &mut whole);
        for piece in [4, 5, 6, 7, 64, 1000] {
            assert_eq!(
                String::from_utf8_lossy(&of_long(line.as_bytes(), &line, piece)),
                String::from_utf8_lossy(&whole)
            );
        }
    }
    let bad = b"{\"a\":\"x\xff\xe2\x80y\xf0\x9f\"}";
    let shown = String::from_utf8(of_long(bad, "{}", 5)).expect("UTF-8");
    assert!(shown.ends_with("data: {\"a\":\"x\u{FFFD}\u{FFFD}y\u{FFFD}\"}\n\n"), "{shown}");
    assert!(long_frames(b"{}", 3, 512, 0, false, &mut BytesMut::new()));
    assert!(!long_frames(b"{}", 3, 512, 1, false, &mut BytesMut::new()), "the client has it");
    assert!(!long_frames(b"", 3, 512, 0, false, &mut BytesMut::new()), "no object");
}

#[test]
fn a_line_of_blocks_makes_a_bounded_number_of_frames() {
    let blocks = vec![r#"{"type":"tool_use"}"#; 3 * BLOCKS].join(",");
    let line = format!(r#"{{"type":"assistant","message":{{"content":[{blocks}]}}}}"#);
    let frames = of(&line, false);
    assert_eq!(frames.len(), BLOCKS + 1);
    assert_eq!(frames.last().expect("a message").2, line);
}

proptest::proptest! {
    /// For any payload output: frames are whole, one line each, and their data is one JSON object.
    #[test]
    fn no_line_breaks_the_framing(head in "(\\{\"type\":\"(stream_event|user|x)\",)?", body in "\\PC{0,60}|[\\r\\t \"{}:,a\\\\]{0,40}") {
        let line = format!("{head}{body}").replace('\n', "");
        for (id, _, data) in of(&line, true) {
            proptest::prop_assert!(id.parse::<EventId>().is_ok());
            proptest::prop_assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&data).is_ok());
        }
    }
}
