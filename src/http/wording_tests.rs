use std::fmt::Debug;

use serde_json::{Map, Value};

use super::super::body::parse;
use super::*;
use crate::http::agents::wire::{DeployAgent, PatchAgent};
use crate::http::attachments::NewAttachment;
use crate::http::credentials::NewCredential;
use crate::http::exec::ExecCommand;
use crate::http::keys::NewKey;
use crate::http::queue::NewQueueItem;
use crate::sessions::{CreateSession, PatchConfig, SendMessage};
use ash_model::RawJson;

fn refusal<T: DeserializeOwned + Debug>(json: impl AsRef<[u8]>) -> String {
    let json = json.as_ref();
    let error = parse::<T>(json).expect_err(&String::from_utf8_lossy(json));
    assert_eq!(error.status(), 400);
    error.text().to_owned()
}

#[test]
fn wrong_types_name_the_member() {
    for (json, text) in [
        (r#"{"agent": 5}"#, "agent must be a string, not the number 5"),
        (r#"{"agent": null}"#, "agent must be a string, not null"),
        (r#"{"agent": {"a":1}}"#, "agent must be a string, not an object"),
        (r#"{"agent":"a","extraEnv":{"A":1}}"#, "extraEnv.A must be a string, not the number 1"),
        (r#"{"agent":"a","extraEnv":{"A":1.5}}"#, "extraEnv.A must be a string, not the number 1.5"),
        (r#"{"agent":"a","extraEnv":{"A":true}}"#, "extraEnv.A must be a string, not true"),
        (r#"{"agent":"a","extraEnv":["A"]}"#, "extraEnv must be an object, not an array"),
        (r#"{"agent":"a","allowedTools":"Bash"}"#, "allowedTools must be an array, not the string \"Bash\""),
        (r#"{"agent":"a","allowedTools":["Bash",7]}"#, "allowedTools[1] must be a string, not the number 7"),
        (r#"{"agent":"a","mcpServers":[]}"#, "mcpServers must be an object, not an array"),
        (r#"{"agent":"a","agent":"b"}"#, "the request body: duplicate field \"agent\"; each member is given once"),
        // A name that looks like a text of the parser.
        (
            r#"{"agent":"a","extraEnv":{"A: invalid type: x, expected y":1}}"#,
            "extraEnv.A: invalid type: x, expected y must be a string, not the number 1",
        ),
        (
            r#"{"agent":"x, expected a map","betas":"x, expected i64"}"#,
            "betas must be an array, not the string \"x, expected i64\"",
        ),
    ] {
        assert_eq!(refusal::<CreateSession>(json), text, "{json}");
    }
    for (json, text) in [
        (r#"{"maxTurns":"5"}"#, "maxTurns: must be a whole number from 0 to 4294967295, not the string \"5\""),
        (r#"{"maxTurns":-1}"#, "maxTurns: must be a whole number from 0 to 4294967295, not the number -1"),
        (
            r#"{"includePartialMessages":"true"}"#,
            "includePartialMessages: must be true or false, not the string \"true\"",
        ),
    ] {
        let text = text.replacen(": must", " must", 1);
        assert_eq!(refusal::<SendMessage>(json), text, "{json}");
    }
    assert_eq!(refusal::<DeployAgent>(r#"{"files":[{"path":"x"}]}"#), "files[0].content is required");
    assert_eq!(refusal::<DeployAgent>(r#"{"files":["x"]}"#), "files[0] must be an object, not the string \"x\"");
    assert_eq!(refusal::<ExecCommand>(r#"{"timeout":5e3}"#), "timeout must be a whole number, not the number 5000.0");
    let text = refusal::<ExecCommand>(r#"{"timeout":9999999999999999999999}"#);
    assert_eq!(text, "timeout must be a whole number, not the number 1e+22");
    let text = refusal::<NewQueueItem>(r#"{"sessionId":"x"}"#);
    assert!(text.starts_with("sessionId: UUID parsing failed"), "{text}");
}

#[test]
fn what_is_not_json_is_said_plainly() {
    for (json, text) in [
        (&b"{"[..], "it ends within an object, at line 1 column 1"),
        (b"[", "it ends within an array, at line 1 column 1"),
        (br#"{"agent":"a"#, "it ends within a string, at line 1 column 11"),
        (br#"{"agent": }"#, "a value is missing, or a string is not in double quotes, at line 1 column 11"),
        (br#"{"agent" "a"}"#, "a colon is missing, at line 1 column 10"),
        (br#"{"agent":"a" "b"}"#, "a comma or a } is missing, at line 1 column 14"),
        (b"{} x", "there is text after its end, at line 1 column 4"),
        (b"{'agent':1}", "a name is not a string in double quotes, at line 1 column 2"),
        (br#"{"agent":"a",}"#, "there is a comma before a closing bracket, at line 1 column 14"),
        (br#"{"agent":tru}"#, "a word that is not true, false or null, at line 1 column 13"),
        (b"{\"agent\":\"a\nb\"}", "a control character in a string is not escaped, at line 2 column 0"),
        (br#"{"agent":"\ud83d"}"#, "an escape in a string is half of a surrogate pair, at line 1 column 17"),
        (br#"{"agent":"\x"}"#, "an escape that JSON does not have, at line 1 column 12"),
        (b"{\"agent\":\"caf\xe9\"}", "byte 14 is not UTF-8; send UTF-8"),
        (b"\xef\xbb\xbf{\"agent\":\"a\"}", "it begins with a byte order mark; send UTF-8 without a byte order mark"),
        (b"\xff\xfe{\0}\0", "it begins with UTF-16; send UTF-8 without a byte order mark"),
        (b"\xfe\xff\0{\0}", "it begins with UTF-16; send UTF-8 without a byte order mark"),
        (b"{\0}\0", "it looks like UTF-16; send UTF-8"),
        (b"\x1f\x8b\x08", "byte 2 is not UTF-8; send UTF-8"),
        (b"agent=a", "a value is missing, or a string is not in double quotes, at line 1 column 1"),
    ] {
        let shown = String::from_utf8_lossy(json);
        assert_eq!(refusal::<CreateSession>(json), format!("the request body is not valid JSON: {text}"), "{shown}");
    }
}

#[test]
fn only_objects_are_bodies() {
    for (json, what) in [
        ("[]", "an array"),
        ("[\"a\"]", "an array"),
        ("\"a\"", "a string"),
        ("5", "a number"),
        ("-5", "a number"),
        ("true", "true or false"),
        (" null ", "null"),
    ] {
        let text = format!("the request body must be a JSON object, not {what}");
        assert_eq!(refusal::<CreateSession>(json), text, "{json}");
        assert_eq!(refusal::<NewKey>(json), text, "{json}");
        assert_eq!(refusal::<Map<String, Value>>(json), text, "{json}");
    }
}

/// Words of Rust and of its JSON library.
const FOREIGN: [&str; 21] = [
    "struct ",
    "enum ",
    "variant",
    "expected value",
    "EOF",
    "i64",
    "u32",
    "u64",
    "f64",
    "usize",
    "invalid type",
    "invalid value",
    "sequence",
    "a map",
    "untagged",
    "newtype",
    "unit value",
    "Option",
    "ident",
    "serde",
    "boolean",
];

/// Sends many bad bodies for every type that a route reads: no answer contains a word of the
/// parser.
#[test]
fn no_answer_speaks_of_the_types_of_this_program() {
    let values = [
        "null",
        "true",
        "5",
        "-1",
        "1.5",
        "1e400",
        "99999999999999999999",
        "\"text\"",
        "[]",
        "[1]",
        "[null]",
        "[[]]",
        "[{}]",
        "{}",
        "{\"a\":1}",
        "{\"a\":{\"b\":[]}}",
        "tru",
        "'x'",
        "",
        "\"\\ud800\"",
        "\"\\x\"",
        "[1,]",
        "{\"a\" 1}",
        "{a:1}",
        "\"a",
    ];
    let names = [
        "agent",
        "name",
        "path",
        "files",
        "env",
        "config",
        "extraEnv",
        "mcpServers",
        "allowedTools",
        "betas",
        "subagents",
        "content",
        "includePartialMessages",
        "maxTurns",
        "maxBudgetUsd",
        "effort",
        "thinking",
        "outputFormat",
        "command",
        "timeout",
        "label",
        "tenantId",
        "admin",
        "type",
        "key",
        "filename",
        "mimeType",
        "prompt",
        "sessionId",
        "priority",
        "maxRetries",
        "systemPrompt",
        "model",
        "credentialId",
        "permissionMode",
        "unknown",
    ];
    let mut seen = 0;
    let mut check = |body: &str| {
        let mut texts = Vec::new();
        let mut one = |error: Option<crate::http::ApiError>| texts.extend(error.map(|error| error.text().to_owned()));
        one(parse::<CreateSession>(body.as_bytes()).err());
        one(parse::<PatchConfig>(body.as_bytes()).err());
        one(parse::<SendMessage>(body.as_bytes()).err());
        one(parse::<DeployAgent>(body.as_bytes()).err());
        one(parse::<PatchAgent>(body.as_bytes()).err());
        one(parse::<ExecCommand>(body.as_bytes()).err());
        one(parse::<NewKey>(body.as_bytes()).err());
        one(parse::<NewCredential>(body.as_bytes()).err());
        one(parse::<NewQueueItem>(body.as_bytes()).err());
        one(parse::<NewAttachment>(body.as_bytes()).err());
        one(parse::<RawJson>(body.as_bytes()).err());
        for text in texts {
            seen += 1;
            let foreign = FOREIGN.iter().find(|word| text.contains(**word));
            assert!(foreign.is_none(), "{body}: {text}");
        }
    };
    for value in values {
        check(value);
        for name in names {
            check(&format!("{{\"{name}\":{value}}}"));
            check(&format!("{{\"{name}\":{value},\"{name}\":{value}}}"));
        }
    }
    assert!(seen > 3000, "only {seen} bodies were refused");
}
