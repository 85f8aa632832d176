//! When, how fast and at whose cost a sandbox may ask: windows, rates and shares, without effect on
//! neighbours.
#![allow(clippy::unwrap_used)]

mod gateway_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ash_gateway::registry::Limits;
use gateway_support::{Gate, KEY, post, read_answer, token};

#[test]
fn a_model_that_quotes_the_key_does_not_tell_it_to_the_sandbox() {
    let gate = Gate::start(Limits::default());
    let (head, body) = gate.ask(&post(&format!("{}x-fake: echo\r\n", token()), "{}"));
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    assert!(body.contains("refused: POST /base/v1/messages"), "the rest is passed on: {body}");
    assert!(!head.contains(KEY) && !body.contains(KEY), "{head}{body}");
    assert!(body.contains(&"*".repeat(KEY.len())), "{body}");
}

#[test]
fn what_was_used_is_counted_though_the_sandbox_left_before_the_answer() {
    let gate = Gate::start(Limits::default());
    let mut stream = gate.connect();
    stream.write_all(post(&format!("{}x-fake: late\r\n", token()), "{}").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    drop(stream);
    let begun = Instant::now();
    while gate.usage().output_tokens == 0 && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let usage = gate.usage();
    assert_eq!((usage.requests, usage.input_tokens, usage.output_tokens), (1, 3, 4));
}

#[test]
fn refused_requests_and_failures_are_not_requests() {
    let gate = Gate::start(Limits::default());
    gate.ask(&post(&format!("{}x-fake: echo\r\n", token()), "{}"));
    gate.ask(&post("", "{}"));
    let count = "POST /v1/messages/count_tokens HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n";
    gate.ask(&format!("{count}{}\r\n{{}}", token()));
    assert_eq!(gate.usage().requests, 0);
}

fn ask_at(address: std::net::SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    read_answer(&mut stream)
}

#[test]
fn requests_are_admitted_while_the_window_is_open() {
    let gate = Gate::start(Limits::default());
    let (address, id) = gate.session_with_window("t", false);
    let request = post("x-api-key: t\r\n", "{}");
    let (head, body) = ask_at(address, &request);
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert!(head.to_ascii_lowercase().contains("x-should-retry: false"), "{head}");
    assert!(body.contains("permission_error") && body.contains("neither a turn nor a command"), "{body}");
    let counting = request.replace("/v1/messages", "/v1/messages/count_tokens");
    assert!(ask_at(address, &counting).0.starts_with("HTTP/1.1 403"));
    assert!(ask_at(address, "GET /api/hello HTTP/1.1\r\nhost: x\r\n\r\n").0.starts_with("HTTP/1.1 200"));
    assert_eq!((gate.seen().len(), gate.refused().outside), (0, 2));

    // A request shortly before the window is not refused.
    let early = std::thread::spawn({
        let request = request.clone();
        move || ask_at(address, &request)
    });
    std::thread::sleep(Duration::from_millis(300));
    gate.window(id, true);
    assert!(early.join().unwrap().0.starts_with("HTTP/1.1 200"));
    assert!(ask_at(address, &request).0.starts_with("HTTP/1.1 200"));

    // An answer that has started is completed when the window closes.
    let slow = post("x-api-key: t\r\nx-fake: slow\r\n", "{}");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(slow.as_bytes()).unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    gate.window(id, false);
    assert!(read_answer(&mut stream).1.contains("message_stop"));
    assert!(ask_at(address, &request).0.starts_with("HTTP/1.1 403"));
}

/// Sends requests on one connection after the other. Returns the number of answers.
fn flood(address: std::net::SocketAddr, request: &str, time: Duration) -> usize {
    let begun = Instant::now();
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let request = request.to_owned();
            std::thread::spawn(move || {
                let mut count = 0;
                while begun.elapsed() < time {
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let left = time.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
                    stream.set_read_timeout(Some(left)).unwrap();
                    let mut answer = [0; 512];
                    while begun.elapsed() < time
                        && stream.write_all(request.as_bytes()).is_ok()
                        && stream.read(&mut answer).is_ok_and(|length| length > 0)
                    {
                        count += 1;
                    }
                }
                count
            })
        })
        .collect();
    workers.into_iter().map(|worker| worker.join().unwrap()).sum()
}

#[test]
fn a_session_that_floods_is_slowed_and_its_neighbour_is_not() {
    let gate = Gate::start(Limits::default());
    let neighbour = gate.another_session("n");
    let time = Duration::from_secs(3);
    for request in [
        "HEAD /api/hello HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        // Without a token, and with a new connection for each.
        "POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "no request at all\r\n\r\n".to_owned(),
    ] {
        let (hostile, _) = gate.session_with_window("h", false);
        let flooding = std::thread::spawn({
            let request = request.clone();
            move || flood(hostile, &request, time)
        });
        let begun = Instant::now();
        let mut waits = Vec::new();
        while begun.elapsed() < time {
            let asked = Instant::now();
            assert!(ask_at(neighbour, &post("x-api-key: n\r\n", "{}")).0.starts_with("HTTP/1.1 200"));
            waits.push(asked.elapsed());
            std::thread::sleep(Duration::from_millis(60));
        }
        let answers = flooding.join().unwrap();
        waits.sort_unstable();
        let typical = waits[waits.len() / 2];
        // A burst of 200, then 20 per second.
        assert!(answers <= 200 + 20 * 4, "{answers} answers in {time:?} to {request:?}");
        assert!(typical < Duration::from_millis(100), "the neighbour waited {typical:?} beside {request:?}");
    }
    assert!(gate.refused().slowed > 0);
}

#[test]
fn one_tenant_cannot_take_every_connection() {
    let mut limits = Limits::default();
    limits.bounds.connections = 40;
    limits.bounds.tenant_connections = 10;
    let gate = Gate::start(limits);
    let hog = gate.session_of("hog", "h");
    let neighbour = gate.session_of("other", "n");
    let held: Vec<TcpStream> = (0..60).filter_map(|_| TcpStream::connect(hog).ok()).collect();
    std::thread::sleep(Duration::from_millis(200));
    assert!(ask_at(neighbour, &post("x-api-key: n\r\n", "{}")).0.starts_with("HTTP/1.1 200"));
    drop(held);
    assert!(ask_at(hog, &post("x-api-key: h\r\n", "{}")).0.starts_with("HTTP/1.1 200"), "and it is served again");
}
