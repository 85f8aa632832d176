//! The gateway as a sandbox sees it: the real server in this process, a fake model behind it, raw
//! bytes in front.
#![allow(clippy::unwrap_used)]

mod gateway_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ash_gateway::registry::Limits;
use gateway_support::{Gate, KEY, TOKEN, post, read_answer, token};

#[test]
fn the_key_is_swapped_on_every_request_of_a_connection() {
    let gate = Gate::start(Limits::default());
    let mut stream = gate.connect();
    for n in 0..3 {
        let extra = if n == 1 { format!("Authorization: Bearer {TOKEN}\r\n") } else { token() };
        stream.write_all(post(&extra, "{}").as_bytes()).unwrap();
        let (head, body) = read_answer(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(body.contains("message_stop"), "{body}");
    }
    let seen = gate.seen();
    assert_eq!(seen.len(), 3);
    for request in &seen {
        assert!(request.contains(&format!("x-api-key: {KEY}\r\n")), "{request}");
        assert!(!request.contains(TOKEN), "the placeholder went upstream: {request}");
        assert!(request.starts_with("POST /base/v1/messages HTTP/1.1\r\n"), "{request}");
    }
    let usage = gate.usage();
    assert_eq!((usage.requests, usage.input_tokens, usage.output_tokens), (3, 30, 15));
}

#[test]
fn a_wrong_token_another_sessions_token_and_no_token_go_nowhere() {
    let gate = Gate::start(Limits::default());
    let other = gate.another_session("other-token");
    for extra in [
        String::new(),
        "x-api-key: guess\r\n".into(),
        "x-api-key: other-token\r\n".into(),
        format!("cookie: {TOKEN}\r\n"),
    ] {
        let (head, body) = gate.ask(&post(&extra, "{}"));
        assert!(head.starts_with("HTTP/1.1 401"), "{extra:?}: {head}");
        assert!(body.contains("authentication_error") && !body.contains(KEY), "{body}");
    }
    let mut stream = TcpStream::connect(other).unwrap();
    stream.write_all(post("x-api-key: other-token\r\n", "{}").as_bytes()).unwrap();
    assert!(read_answer(&mut stream).0.starts_with("HTTP/1.1 200"), "its own session takes it");
    assert_eq!(gate.seen().len(), 1);
}

#[test]
fn other_hosts_and_other_paths_are_never_followed() {
    let gate = Gate::start(Limits::default());
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let host = elsewhere.local_addr().unwrap();
    for target in [format!("POST http://{host}/v1/messages"), format!("CONNECT {host}"), format!("GET http://{host}/")]
    {
        let (head, body) =
            gate.ask(&format!("{target} HTTP/1.1\r\nhost: {host}\r\n{}content-length: 0\r\n\r\n", token()));
        assert!(head.starts_with("HTTP/1.1 400"), "{target}: {head}{body}");
    }
    // A Host header of the request has no effect: the gateway chooses the model's host.
    let (head, _) = gate.ask(&post(&token(), "{}").replace("host: x", &format!("host: {host}")));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for path in [
        "/v1/organizations",
        "/v1/files",
        "/v1/messages/../files",
        "/v1/messages/batches",
        "/metrics",
        "/v1/models/%2e%2e",
    ] {
        let (head, _) = gate.ask(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n{}\r\n", token()));
        assert!(head.starts_with("HTTP/1.1 404"), "{path}: {head}");
    }
    assert_eq!(gate.seen().len(), 1);
    assert!(elsewhere.accept().is_err(), "nobody came to the other host");
}

#[test]
fn smuggled_requests_stay_data_or_are_refused() {
    let gate = Gate::start(Limits::default());
    let hidden = "GET /v1/files HTTP/1.1\r\nhost: x\r\n\r\n";
    let cases = [
        // By its length, all is body; chunked, the body ends at once. Chunked wins (RFC 9112 6.3),
        // and the rest is a request to the gateway, which is refused there.
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", 5 + hidden.len()),
        format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n", 5 + hidden.len()),
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".into(),
        "transfer-encoding: xchunked\r\n".into(),
        "transfer-encoding : chunked\r\n".into(),
        "content-length: 5\r\ncontent-length: 60\r\n".into(),
        "content-length: +5\r\n".into(),
        "content-length: 5, 60\r\n".into(),
        "transfer-encoding: chunked\r\nconnection: transfer-encoding\r\n".into(),
    ];
    for framing in cases {
        let mut stream = gate.connect();
        let request = format!("POST /v1/messages HTTP/1.1\r\nhost: x\r\n{}{framing}\r\n0\r\n\r\n{hidden}", token());
        stream.write_all(request.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let all = String::from_utf8_lossy(&all);
        assert!(all.starts_with("HTTP/1.1 4") || all.starts_with("HTTP/1.1 200"), "{framing:?}: {all}");
    }
    for request in gate.seen() {
        assert!(request.starts_with("POST /base/v1/messages HTTP/1.1\r\n"), "{request}");
        assert_eq!(request.matches(" HTTP/1.1\r\n").count(), 1, "two requests in one: {request}");
        let framed = request.matches("content-length").count() + request.matches("transfer-encoding").count();
        assert_eq!(framed, 1, "one framing only: {request}");
    }
}

#[test]
fn garbage_and_huge_heads_are_refused_and_hurt_nobody() {
    let gate = Gate::start(Limits::default());
    let huge = format!("GET /api/hello HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET /api/hello HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let tls = "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}";
    for bytes in [
        "\0\0\0\0\0\0",
        tls,
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\r\n\r\n\r\n\r\nx",
        &huge,
        &many,
        &"A".repeat(300_000),
    ] {
        let mut stream = gate.connect();
        let _ = stream.write_all(bytes.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let all = String::from_utf8_lossy(&all);
        assert!(all.is_empty() || all.starts_with("HTTP/1.1 4"), "{:?}: {all}", &bytes[..bytes.len().min(40)]);
    }
    assert_eq!(gate.seen().len(), 0);
    assert!(gate.ask(&post(&token(), "{}")).0.starts_with("HTTP/1.1 200"));
}

#[test]
fn a_body_that_is_too_long_is_answered_413() {
    let gate = Gate::start(Limits::default());
    let declared =
        format!("POST /v1/messages HTTP/1.1\r\nhost: x\r\n{}content-length: {}\r\n\r\n", token(), (64 << 20) + 1);
    let (head, body) = gate.ask(&declared);
    assert!(head.starts_with("HTTP/1.1 413") && body.contains("request_too_large"), "{head}{body}");
    // Without a declared length: chunked, detected during the transfer.
    let mut stream = gate.connect();
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: x\r\n{}transfer-encoding: chunked\r\n\r\n", token());
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    let mut writer = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || (0..66).try_for_each(|_| writer.write_all(&chunk)));
    let (head, body) = read_answer(&mut stream);
    assert!(head.starts_with("HTTP/1.1 413"), "{head}{body}");
    drop(stream);
    let _ = sending.join().unwrap();
}

#[test]
fn a_model_that_is_away_is_a_clear_502() {
    let gate = Gate::with_upstream(Limits::default(), "http://127.0.0.1:1/base");
    let (head, body) = gate.ask(&post(&token(), "{}"));
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(body.contains("http://127.0.0.1:1/base cannot be reached") && body.contains("refused"), "{body}");
    assert!(!body.contains(KEY));
}

#[test]
fn an_answer_goes_on_while_the_sandbox_does_not_read() {
    let limits = Limits { buffer: 1 << 20, ..Limits::default() };
    let gate = Gate::start(limits);
    let mut stream = gate.connect();
    // The fake model sends 20 MB and records how far it came.
    stream.write_all(post(&format!("{}x-fake: flood\r\n", token()), "{}").as_bytes()).unwrap();
    let settled = gate.flood_settles();
    assert!(settled >= 1 << 20, "the model was read while the sandbox was not: {settled}");
    assert!(settled < 18 << 20, "but not without bound: {settled}");
    let (_, body) = read_answer(&mut stream);
    assert_eq!(body.len(), 20 << 20, "nothing is lost");
}

#[test]
fn a_sandbox_that_leaves_ends_the_request_upstream() {
    let gate = Gate::start(Limits::default());
    let mut stream = gate.connect();
    stream.write_all(post(&format!("{}x-fake: slow\r\n", token()), "{}").as_bytes()).unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    drop(stream);
    assert!(gate.hung_up_within(Duration::from_secs(5)), "the model still writes to nobody");
}

#[test]
fn connections_beyond_the_bound_wait_and_idle_ones_are_closed() {
    let limits = Limits { connections: 2, idle: Duration::from_millis(700), ..Limits::default() };
    let gate = Gate::start(limits);
    let mut slow: Vec<TcpStream> = (0..2).map(|_| gate.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"POST /v1/mess").unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    let (head, _) = gate.ask(&post(&token(), "{}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(300), "the third did not wait: {waited:?}");
    for stream in &mut slow {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!String::from_utf8_lossy(&rest).contains("200"), "a slow head was answered");
    }
}

#[test]
fn unregistering_closes_what_is_open_and_keeps_the_count_once() {
    let gate = Gate::start(Limits::default());
    gate.ask(&post(&token(), "{}"));
    let mut stream = gate.connect();
    stream.write_all(post(&format!("{}x-fake: slow\r\n", token()), "{}").as_bytes()).unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    gate.unregister();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("message_stop"), "closed in mid-stream");
    assert!(gate.hung_up_within(Duration::from_secs(5)));
    assert_eq!(gate.all_usage().iter().map(|usage| usage.requests).collect::<Vec<_>>(), [1]);
    assert_eq!(gate.all_usage(), []);
}

#[test]
fn registering_again_changes_the_token_at_once_and_keeps_connections() {
    let gate = Gate::start(Limits::default());
    let mut stream = gate.connect();
    stream.write_all(post(&token(), "{}").as_bytes()).unwrap();
    assert!(read_answer(&mut stream).0.starts_with("HTTP/1.1 200"));
    gate.register_again("new-token", Some("sk-ant-tenant"));
    stream.write_all(post(&token(), "{}").as_bytes()).unwrap();
    assert!(read_answer(&mut stream).0.starts_with("HTTP/1.1 401"), "the old token is over");
    let mut stream = gate.connect();
    stream.write_all(post("x-api-key: new-token\r\n", "{}").as_bytes()).unwrap();
    assert!(read_answer(&mut stream).0.starts_with("HTTP/1.1 200"));
    assert!(gate.seen().last().unwrap().contains("x-api-key: sk-ant-tenant\r\n"), "the tenant's own key");
    assert_eq!(gate.usage().requests, 2, "the counters go on");
}

#[test]
fn draining_finishes_the_open_answer_and_accepts_no_more() {
    let gate = Gate::start(Limits::default());
    let mut stream = gate.connect();
    stream.write_all(post(&format!("{}x-fake: slow\r\n", token()), "{}").as_bytes()).unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    gate.drain();
    let (head, body) = read_answer(&mut stream);
    assert!(head.starts_with("TTP/1.1 200") && body.contains("message_stop"), "finished: {head}{body}");
    let mut late = gate.connect();
    late.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    late.write_all(post(&token(), "{}").as_bytes()).unwrap();
    assert!(late.read(&mut first).is_err(), "nobody accepts: the successor will");
    assert!(gate.drained_within(Duration::from_secs(5)));
}
