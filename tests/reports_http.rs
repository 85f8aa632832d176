//! Public bug reports about unusual HTTP, on `POST .../exec` and some reads, each with its smallest
//! input and the expected value. Sources: <https://github.com/yhirose/cpp-httplib/issues/349>
//! (BOM), <https://github.com/hyperium/hyper/issues/2222> (Expect),
//! <https://github.com/haproxy/haproxy/issues/3316> (HEAD),
//! <https://github.com/snoyberg/http-client/issues/114> (coded bodies).
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{Api, Daemon, Options, raw};
use flate2::Compression;
use flate2::write::GzEncoder;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(text).unwrap();
    out.finish().unwrap()
}

fn utf16(text: &str, mark: bool) -> Vec<u8> {
    let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

async fn sent(api: &Api, path: &str, headers: &[(&'static str, &str)], body: Vec<u8>) -> (u16, String) {
    let mut api = api.with_key(api.key());
    for (name, value) in headers {
        api = api.with_header(name, value);
    }
    let answer = api.call_raw("POST", path, Some(("application/json", body))).await;
    (answer.status, answer.text)
}

/// Body, its Content-Encoding, status of the answer, and a part of its text.
type Case = (&'static str, Vec<u8>, &'static str, u16, &'static str);

#[tokio::test]
async fn bodies_of_every_kind_are_read_or_refused_in_plain_words() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let session = api.session("a").await;
    let exec = format!("/api/sessions/{session}/exec");
    let deep = format!(r#"{{"command":"echo a","x":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let long = format!(r#"{{"command":"echo {}"}}"#, "a".repeat(200_000));
    let plain = br#"{"command":"echo hi"}"#;
    let cases: Vec<Case> = vec![
        ("BOM", [b"\xef\xbb\xbf".as_slice(), plain].concat(), "", 400, "begins with a byte order mark; send UTF-8"),
        ("UTF-16 with a BOM", utf16(r#"{"command":"echo hi"}"#, true), "", 400, "UTF-16; send UTF-8"),
        ("UTF-16 without", utf16(r#"{"command":"echo hi"}"#, false), "", 400, "UTF-16; send UTF-8"),
        ("Latin-1", b"{\"command\":\"echo caf\xe9\"}".to_vec(), "", 400, "is not UTF-8"),
        ("gzip", gzip(plain), "gzip", 415, "without Content-Encoding"),
        ("gzip that is not said", gzip(plain), "", 400, "is not UTF-8"),
        ("deflate", plain.to_vec(), "deflate", 415, "without Content-Encoding"),
        ("identity", plain.to_vec(), "identity", 200, "hi"),
        ("duplicate key", br#"{"command":"echo a","command":"echo b"}"#.to_vec(), "", 400, "duplicate field"),
        ("lone surrogate", br#"{"command":"echo \ud83d"}"#.to_vec(), "", 400, "surrogate pair"),
        ("surrogate pair", br#"{"command":"echo \ud83d\ude00"}"#.to_vec(), "", 200, "\u{1f600}"),
        ("NUL", br#"{"command":"echo \u0000"}"#.to_vec(), "", 400, "NUL"),
        ("timeout 5e3", br#"{"command":"echo a","timeout":5e3}"#.to_vec(), "", 400, "timeout must be a whole number"),
        (
            "timeout 1e22",
            br#"{"command":"a","timeout":9999999999999999999999}"#.to_vec(),
            "",
            400,
            "timeout must be a whole number",
        ),
        ("5000 deep", deep.into_bytes(), "", 200, "a\\n"),
        ("array", b"[]".to_vec(), "", 400, "must be a JSON object, not an array"),
        ("null", b"null".to_vec(), "", 400, "must be a JSON object, not null"),
        ("200 KB command", long.into_bytes(), "", 400, "too long"),
        ("CRLF", br#"{"command":"echo a\r\necho b\r\n"}"#.to_vec(), "", 200, "b"),
        ("a form", b"command=echo+hi".to_vec(), "", 400, "a value is missing"),
    ];
    for (name, body, coding, status, part) in cases {
        let headers: &[_] = if coding.is_empty() { &[] } else { &[("content-encoding", coding)] };
        let (got, text) = sent(&api, &exec, headers, body.clone()).await;
        assert!(got == status && text.contains(part), "{name}: {got} {text}");
        // The same where a middleware reads the body.
        if status != 200 {
            let headers: Vec<_> = headers.iter().copied().chain([("idempotency-key", name)]).collect();
            let (got, text) = sent(&api, "/api/sessions", &headers, body).await;
            assert!((400..=415).contains(&got), "{name} with a key: {got} {text}");
        }
    }
    drop(daemon);
}

#[tokio::test]
async fn expect_and_head_are_answered_at_once() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let session = api.session("a").await;
    let exec = format!("POST /api/sessions/{session}/exec");
    let head = |length: usize| {
        raw::head(&exec, Some(&daemon.key), Some(length)).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n")
    };
    for (length, expected) in [(60 << 20, "HTTP/1.1 413"), (21, "HTTP/1.1 100")] {
        let start = Instant::now();
        let mut socket = raw::connect(daemon.port, 1).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, head(length).as_bytes()).await.unwrap();
        let mut first = [0; 12];
        let read = tokio::io::AsyncReadExt::read_exact(&mut socket, &mut first);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("answered before the body is sent").unwrap();
        assert_eq!(String::from_utf8_lossy(&first), expected, "{:?}", start.elapsed());
    }
    for path in [
        format!("/api/sessions/{session}/files/CLAUDE.md"),
        "/api/sessions?limit=1".to_owned(),
        format!("/api/sessions/{session}/stream"),
    ] {
        let answer =
            tokio::time::timeout(Duration::from_secs(10), api.open("HEAD", &path, None)).await.expect("no hang");
        assert_eq!(answer.status(), 200, "{path}");
    }
}
