use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::*;

fn abridge(line: &[u8], bounds: Bounds, piece: usize) -> Option<String> {
    let mut abridger = Abridger::new(bounds);
    line.chunks(piece.max(1)).for_each(|piece| abridger.feed(piece));
    abridger.finish(7, "long").map(|out| String::from_utf8_lossy(&out).into_owned())
}

fn whole(line: &str) -> Option<String> {
    abridge(line.as_bytes(), Bounds::LINE, 7)
}

#[test]
fn what_fits_stays_as_it_is() {
    for line in [
        "{}",
        r#"{"type":"x","a":[1,-2.5e+10,{"b":null},[],{}],"t":true,"f":false}"#,
        r#"{"s":"\ud99c \u00e4 \\ \" ä 🎉"}"#,
        r#"{"a":1,"a":2,"type":"x","type":"y"}"#,
    ] {
        assert_eq!(whole(line).as_deref(), Some(line));
    }
    assert_eq!(whole(" { \"a\" : [ 1 , 2 ] } ").as_deref(), Some(r#"{"a":[1,2]}"#));
}

#[test]
fn what_is_not_one_object_is_nothing() {
    for line in [
        "",
        "1",
        "[]",
        "\"x\"",
        "{",
        "{} {}",
        "{}x",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{,}"#,
        r#"{"a":[1,]}"#,
        r#"{"a":[1 2]}"#,
        r#"{"a":01}"#,
        r#"{"a":1.}"#,
        r#"{"a":-}"#,
        r#"{"a":1e}"#,
        r#"{"a":tru}"#,
        r#"{"a":nulll}"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\u12g4"}"#,
        r#"{"a":]}"#,
        "{\"a\":\"\x01\"}",
        r#"{"a":1]"#,
        r#"{a:1}"#,
    ] {
        assert_eq!(whole(line), None, "{line}");
        assert!(serde_json::from_str::<&RawValue>(line).map_or(true, |raw| !raw.get().starts_with('{')), "{line}");
    }
}

#[test]
fn what_a_turn_cost_stands_behind_what_is_cut() {
    let long = "x".repeat(10 << 20);
    let line = format!(
        r#"{{"junk":"{long}","type":"result","result":"{long}","more":["{long}",1],"is_error":true,"usage":{{"input_tokens":7}},"result_index":0}}"#
    );
    let out = whole(&line).expect("an object");
    // 256 KiB of the result, 32 KiB of each of the others.
    assert!(out.len() < 336 << 10, "{}", out.len());
    let json: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json["type"], &json["is_error"]), (&json!("result"), &json!(true)));
    assert_eq!((&json["usage"]["input_tokens"], &json["omitted"]), (&json!(7), &omitted(line.len() as u64, 7, "long")));
    let result = json["result"].as_str().expect("text");
    assert!(result.starts_with("xxxx") && result.ends_with(" [cut by ashd, 10485760 bytes]"), "{}", result.len());
}

#[test]
fn a_million_members_are_bounded_and_hide_nothing() {
    let mut line = String::from("{");
    for n in 0..300_000 {
        line += &format!("\"a{n}\":{{\"\":0}},\"type\":\"junk\",");
    }
    line += r#""type":"assistant","message":{"content":[{"type":"text","text":"hi"},"#;
    line += &"{},".repeat(1_000_000);
    line += r#"{}]},"num_turns":3}"#;
    let out = whole(&line).expect("an object");
    assert!(out.len() < 1 << 20, "{}", out.len());
    let json: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json["message"]["content"][0]["text"], &json["num_turns"]), (&json!("hi"), &json!(3)));
}

#[test]
fn nesting_costs_a_bit_a_level() {
    let line = format!(r#"{{"a":{}{},"type":"x"}}"#, "[".repeat(2_000_000), "]".repeat(2_000_000));
    let mut abridger = Abridger::new(Bounds::LINE);
    abridger.feed(line.as_bytes());
    assert!(abridger.open.len() <= 2_000_000 / 64 + 1);
    let out = String::from_utf8(abridger.finish(7, "long").expect("an object")).expect("text");
    assert!(
        out.contains(&format!(r#","type":"x","omitted":{{"bytes":{},"#, line.len())),
        "{}",
        &out[out.len() - 200..]
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map("(type|message|result|usage|\\PC{0,6})", inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const SMALL: Bounds = Bounds { string: 12, answer: 40, member: 120, large: 160, rest: 200 };

proptest! {
    /// Any object in any pieces gives a bounded object; with enough budget the same one.
    #[test]
    fn every_object_is_abridged(json in any_json(), piece in 1_usize..40) {
        let line = json.to_string();
        let same = abridge(line.as_bytes(), Bounds::LINE, piece);
        prop_assert_eq!(same.as_deref(), json.is_object().then_some(line.as_str()));
        if let Some(out) = abridge(line.as_bytes(), SMALL, piece) {
            prop_assert!(serde_json::from_str::<Value>(&out).is_ok_and(|json| json.is_object()), "{}", out);
            prop_assert!(out.len() < 2_000, "{}", out.len());
        }
    }

    /// Accepts exactly the objects that serde_json accepts.
    #[test]
    fn the_same_texts_are_json(text in "[\\[\\]{}:,\"\\\\ue0-9a.+-]{0,24}|\\{\"a\":[\\[\\]{}:,\"\\\\ulrte0-9.+-]{0,12}\\}", piece in 1_usize..9) {
        let serde = serde_json::from_str::<&RawValue>(&text).is_ok_and(|raw| raw.get().starts_with('{'));
        prop_assert_eq!(abridge(text.as_bytes(), Bounds::LINE, piece).is_some(), serde, "{}", text);
    }
}
