//! The cost of answers that clients do not read, and each tenant's share of common resources.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::patience::patient;
use common::raw::{self, answer, comes, memory, request};
use common::{Api, Daemon, MIB, Options};
use futures_util::future::join_all;
use serde_json::json;
use tokio::net::TcpStream;

async fn other(api: &Api) -> Api {
    let made = api.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "x"})).await.expect(201);
    let other = api.with_key(made["key"].as_str());
    other.deploy("b").await;
    other
}

/// The status of an answer of which only the first bytes are read.
async fn status(socket: &TcpStream) -> String {
    let mut first = [0; 12];
    let read = async {
        loop {
            socket.readable().await.unwrap();
            match socket.try_read(&mut first) {
                Ok(n) => return n,
                Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    };
    let n = tokio::time::timeout(patient(Duration::from_secs(60)), read).await.expect("an answer");
    String::from_utf8_lossy(&first[..n]).into_owned()
}

#[tokio::test]
async fn answers_that_are_not_read_are_paid_by_their_tenant() {
    const SHARE: u64 = 288 * MIB;
    const CLIENTS: usize = 300;
    let config = "[server]\nrequest_memory_per_tenant = \"288MiB\"\n";
    let (daemon, api) = Daemon::deployed(Options::default().config(config)).await;
    let other = other(&api).await;
    let text = "x".repeat(1_000_000);
    for part in ["systemPrompt", "description"] {
        api.call("PATCH", "/api/agents/a", Some(json!({part: text}))).await.expect(200);
    }
    raw::reset_peak(&daemon);
    let before = memory(&daemon, "VmHWM");
    let asked = (0..CLIENTS).map(|_| request(daemon.port, "GET /api/agents/a", Some(&daemon.key), None));
    let sockets = join_all(asked).await;
    let mut statuses = Vec::new();
    for socket in &sockets {
        statuses.push(status(socket).await);
    }
    let of = |status: &str| statuses.iter().filter(|said| said.ends_with(status)).count();
    assert_eq!(of("200") + of("429"), CLIENTS, "{statuses:?}");
    assert!(of("429") > 0 && of("200") as u64 * 2_000_000 <= SHARE, "{} were answered", of("200"));
    let grown = memory(&daemon, "VmHWM") - before;
    assert!(grown <= SHARE + 96 * MIB, "ashd grew by {} MiB", grown / MIB);
    // Another tenant is served; the tenant itself after one of its answers was read.
    other.get("/api/agents/b").await.expect(200);
    drop(sockets);
    let again = comes(Duration::from_secs(10), || memory(&daemon, "VmRSS") < before + 96 * MIB).await;
    assert!(again, "{} MiB stay", memory(&daemon, "VmRSS") / MIB);
    api.get("/api/agents/a").await.expect(200);
    daemon.stop();
}

#[tokio::test]
async fn downloads_and_commands_of_one_tenant_leave_some_to_others() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let other = other(&api).await;
    let (ids, theirs) = ([api.session("a").await, api.session("a").await], other.session("b").await);
    // Incompressible, and larger than the socket buffers.
    let command = "head -c 20000000 /dev/urandom > large";
    api.post(&format!("/api/sessions/{}/exec", ids[0]), json!({"command": command})).await.expect(200);
    let line = format!("GET /api/sessions/{}/workspace", ids[0]);
    let mut downloads = Vec::new();
    for n in 0..9 {
        let mut socket = request(daemon.port, &line, Some(&daemon.key), None).await;
        if n < 8 {
            assert!(status(&socket).await.ends_with("200"), "download {n}");
        } else {
            let said = answer(&mut socket).await;
            assert!(said.starts_with("HTTP/1.1 429") && said.contains("tenant default downloads 8"), "{said}");
        }
        downloads.push(socket);
    }
    let got = other.get(&format!("/api/sessions/{theirs}/workspace")).await;
    assert_eq!(got.status, 200, "{}", got.text);
    drop(downloads);

    let run = |id: &str| format!("/api/sessions/{id}/exec");
    let body = json!({"command": "sleep 600", "timeout": 300_000}).to_string();
    let mut commands = Vec::new();
    for n in 0..66 {
        let line = format!("POST {}", run(&ids[n % 2]));
        let mut socket = request(daemon.port, &line, Some(&daemon.key), Some(body.len())).await;
        tokio::io::AsyncWriteExt::write_all(&mut socket, body.as_bytes()).await.unwrap();
        commands.push(socket);
    }
    let mut refused = Vec::new();
    let two = comes(Duration::from_secs(60), || {
        for socket in &commands {
            let mut text = [0; 1024];
            refused.extend(socket.try_read(&mut text).ok().map(|n| String::from_utf8_lossy(&text[..n]).into_owned()));
        }
        refused.len() >= 2
    });
    assert!(two.await, "{refused:?}");
    for said in &refused {
        assert!(said.starts_with("HTTP/1.1 503") && said.contains("tenant default runs 64 commands"), "{said}");
    }
    other.post(&run(&theirs), json!({"command": "true"})).await.expect(200);
    drop(commands);
    for id in ids {
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    daemon.stop();
}
