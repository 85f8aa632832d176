//! Public bug reports about streams, histories and prompts, each with the expected value.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex};

use common::api::{Stream, names, text};
use common::{Api, Daemon, Options};
use serde_json::{Value, json};

/// <https://github.com/open-metadata/OpenMetadata/issues/29531>: `requests` reads a text without a
/// charset as Latin-1 and splits frames at byte 85. Expected: the charset is named.
#[tokio::test]
async fn streams_name_their_charset() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/messages");
    let body = json!({"content": "@text ✅ Å"}).to_string().into_bytes();
    let answers = [
        api.open("POST", &path, Some(("application/json", body))).await,
        api.open("GET", &format!("/api/sessions/{id}/stream?after=0:0:0"), None).await,
    ];
    for answer in answers {
        assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
    }
}

/// A client that reconnects with `Last-Event-ID` got no deltas unless it repeated the parameter.
/// Expected: as the turn's own stream.
#[tokio::test]
async fn a_stream_that_is_joined_again_has_the_partial_messages_of_its_turn() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut sent = Vec::new();
    for partial in [true, false] {
        let body = json!({"content": "@repeat 5 word", "includePartialMessages": partial});
        sent.push(api.send(&id, body).await.rest().await);
    }
    let first = sent[0][0].id.clone().unwrap();
    let mut all = follow(&api, &id, &format!("after={first}"), 2).await;
    assert_eq!(text(&all[0]), text(&sent[0]), "the deltas of the first turn");
    assert_eq!(
        names(&all[1]).iter().filter(|name| *name == "text_delta").count(),
        0,
        "the second turn was sent without"
    );
    all = follow(&api, &id, &format!("after={first}&includePartialMessages=false"), 1).await;
    assert_eq!(text(&all[0]), "", "the parameter wins");
    let second = sent[1][0].id.clone().unwrap();
    all = follow(&api, &id, &format!("after={second}&includePartialMessages=true"), 1).await;
    assert_eq!(text(&all[0]).split_whitespace().count(), 5);
}

async fn follow(api: &Api, id: &str, query: &str, turns: usize) -> Vec<Vec<common::wire::Frame>> {
    let mut stream = Stream::of(api.open("GET", &format!("/api/sessions/{id}/stream?{query}"), None).await).await;
    let mut all = Vec::new();
    for _ in 0..turns {
        let mut turn = Vec::new();
        while turn.last().is_none_or(|frame: &common::wire::Frame| frame.event != "done") {
            turn.push(stream.next().await.unwrap());
        }
        all.push(turn);
    }
    all
}

/// There was no way to read the newest N messages. Expected: `order=desc` and `before`, for
/// messages and events.
#[tokio::test]
async fn the_newest_of_a_history_are_one_request() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    for n in 0..4 {
        api.turn(&id, &format!("@text {n}")).await;
    }
    for (list, of_all) in [("messages", 12), ("events", 9)] {
        let sequences = async |query: &str| -> Vec<i64> {
            let page = api.get(&format!("/api/sessions/{id}/{list}?{query}")).await.expect(200);
            page[list].as_array().unwrap().iter().map(|row| row["sequence"].as_i64().unwrap()).collect()
        };
        let all = sequences("limit=1000").await;
        assert_eq!(all, (1..=of_all).collect::<Vec<_>>(), "{list}");
        assert_eq!(sequences("order=desc&limit=2").await, [of_all, of_all - 1]);
        assert_eq!(sequences(&format!("order=desc&limit=2&before={}", of_all - 1)).await, [of_all - 2, of_all - 3]);
        assert_eq!(sequences("before=4&after=1").await, [2, 3]);
        assert_eq!(sequences("order=asc&limit=1").await, [1]);
        for bad in ["order=newest", "before=0", "before=x"] {
            api.get(&format!("/api/sessions/{id}/{list}?{bad}")).await.expect(400);
        }
    }
    // A type that clients know and that never occurs.
    let none = api.get(&format!("/api/sessions/{id}/events?type=mcp_status")).await.expect(200);
    assert_eq!(none["events"], json!([]));
    api.get(&format!("/api/sessions/{id}/events?type=nonsense")).await.expect(400);
}

/// A stand-in for the model: it records what it is sent, and refuses it.
struct FakeModel {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<String>>,
}

impl FakeModel {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<String>>::default());
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || Self::serve(stream.unwrap(), &kept));
            }
        });
        Self { address, seen }
    }

    fn serve(stream: std::net::TcpStream, kept: &Mutex<String>) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut stream = stream;
        loop {
            let (mut length, mut chunked, mut line) = (0, false, String::new());
            while reader.read_line(&mut line).ok()? > 2 {
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().ok()?;
                }
                chunked |= lower.starts_with("transfer-encoding:") && lower.contains("chunked");
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            while chunked {
                let mut size = String::new();
                reader.read_line(&mut size).ok()?;
                let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).ok()? + 2];
                reader.read_exact(&mut chunk).ok()?;
                chunked = chunk.len() > 2;
                body.extend_from_slice(&chunk[..chunk.len() - 2]);
            }
            kept.lock().unwrap().push_str(&String::from_utf8_lossy(&body));
            let error = r#"{"type":"error","error":{"type":"invalid_request_error","message":"seen"}}"#;
            let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length:";
            stream.write_all(format!("{head} {}\r\n\r\n{error}", error.len()).as_bytes()).ok()?;
        }
    }

    /// What the model is sent in the first turn of a session.
    async fn sees(&self, api: &Api, session: Value) -> String {
        let made = api.post("/api/sessions", session).await.expect(201);
        let id = made["session"]["id"].as_str().unwrap().to_owned();
        self.seen.lock().unwrap().clear();
        let frames = api.turn(&id, "what are you?").await;
        assert_eq!(frames.last().unwrap().event, "done");
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
        let seen = self.seen.lock().unwrap().clone();
        assert!(seen.contains("what are you?"), "the model was asked: {:?}", names(&frames));
        seen
    }
}

/// A session's prompt replaces CLAUDE.md and wins over the version's, which wins over the agent's
/// own. Exactly one reaches the model.
#[tokio::test]
async fn exactly_one_prompt_reaches_the_model() {
    use base64::Engine;
    let model = FakeModel::start();
    let options = Options::default().real_claude().env("ANTHROPIC_API_KEY", "x");
    let options = options.env("ASH_UPSTREAM", &format!("http://{}", model.address));
    let (_daemon, api) = Daemon::deployed(options).await;
    let claude_md = base64::engine::general_purpose::STANDARD.encode("MARK-FILE");
    let files = json!([{"path": "CLAUDE.md", "content": claude_md}]);
    for (name, own) in [("plain", Value::Null), ("own", json!("MARK-OWN"))] {
        let body = json!({"name": name, "files": files, "systemPrompt": own});
        api.post("/api/agents", body).await.expect(201);
    }
    let only = |said: &str, mark: &str| {
        let marks: Vec<&str> = ["MARK-FILE", "MARK-OWN", "MARK-VERSION", "MARK-SESSION"]
            .into_iter()
            .filter(|mark| said.contains(mark))
            .collect();
        assert_eq!(marks, [mark], "{}", &said[said.len().saturating_sub(2000)..]);
    };
    only(&model.sees(&api, json!({"agent": "plain"})).await, "MARK-FILE");
    only(&model.sees(&api, json!({"agent": "own"})).await, "MARK-OWN");
    only(&model.sees(&api, json!({"agent": "own", "systemPrompt": "MARK-SESSION"})).await, "MARK-SESSION");
    only(&model.sees(&api, json!({"agent": "plain", "systemPrompt": "MARK-SESSION"})).await, "MARK-SESSION");
    let made = api.post("/api/agents/own/versions", json!({"systemPrompt": "MARK-VERSION"})).await.expect(201);
    let number = made["version"]["versionNumber"].as_i64().unwrap();
    api.call("POST", &format!("/api/agents/own/versions/{number}/activate"), None).await.expect(200);
    only(&model.sees(&api, json!({"agent": "own"})).await, "MARK-VERSION");
    only(&model.sees(&api, json!({"agent": "own", "systemPrompt": "MARK-SESSION"})).await, "MARK-SESSION");
}

/// The session's `config` shows its MCP servers without their secrets.
#[tokio::test]
async fn the_servers_of_a_session_are_shown_without_secrets() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let servers = r#"{"zebra":{"command":"x","args":["a"],"env":{"K":"hunter2"}},"apple":{"url":"http://h/p?k=hunter2","headers":{"A":"hunter2"}}}"#;
    let body = format!(r#"{{"agent":"a","mcpServers":{servers}}}"#).into_bytes();
    let made = api.call_raw("POST", "/api/sessions", Some(("application/json", body))).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(!made.text.contains("hunter2"), "{}", made.text);
    let shown = r#""mcpServers":{"zebra":{"command":"x","args":["a"],"env":{"K":"***"}},"apple":{"url":"http://h/p?***","headers":{"A":"***"}}}"#;
    assert!(made.text.contains(shown), "in the order in which they were sent: {}", made.text);
}

/// <https://github.com/anthropics/claude-code/issues/9269>: a message of 33 MiB was accepted, and
/// every later turn failed. Expected: 413 with the limit, and a usable session.
#[tokio::test]
async fn a_message_that_the_model_cannot_take_is_refused_and_the_session_goes_on() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/messages");
    let refused = api.post(&path, json!({"content": "x".repeat(33 << 20)})).await;
    assert_eq!(refused.status, 413, "{}", refused.text);
    assert!(refused.json["error"].as_str().unwrap().contains("31 MiB"), "{}", refused.text);
    for bad in
        [json!([{"type": "text"}]), json!([{"type": "text", "text": null}]), json!([{"type": "text", "text": 7}])]
    {
        let refused = api.post(&path, json!({"content": bad})).await;
        assert!(refused.status == 400 && refused.text.contains("content[0].text"), "{}", refused.text);
    }
    assert_eq!(text(&api.turn(&id, "@text usable").await), "usable");
}
