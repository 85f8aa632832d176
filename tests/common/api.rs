//! A small HTTP client for tests: JSON, status codes, and streams frame by frame.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::patience::patient;
use super::wire::{Frame, frames};

/// Longest wait for one answer, or for the next frame of a stream.
const SOON_ENOUGH: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Api {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    key: Option<String>,
    header: Option<(&'static str, String)>,
}

pub struct Answer {
    pub status: u16,
    pub json: Value,
    pub text: String,
    pub headers: hyper::HeaderMap,
}

impl Answer {
    /// The body, after a check of the status.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json
    }
}

impl Api {
    pub fn new(port: u16, key: Option<&str>) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self { http, base: format!("http://127.0.0.1:{port}"), key: key.map(str::to_owned), header: None }
    }

    pub fn at(&self, port: u16) -> Self {
        Self { base: format!("http://127.0.0.1:{port}"), ..self.clone() }
    }

    pub fn with_header(&self, name: &'static str, value: &str) -> Self {
        Self { header: Some((name, value.to_owned())), ..self.clone() }
    }

    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self.clone() }
    }

    pub async fn open(&self, method: &str, path: &str, body: Option<(&str, Vec<u8>)>) -> Response<Incoming> {
        let reads = method == "GET" && body.is_none();
        match self.try_open(method, path, body).await {
            Ok(answer) => answer,
            // After a truncated body, the pool may reuse a connection that is being closed.
            Err(e) if reads => {
                self.try_open(method, path, None).await.unwrap_or_else(|again| panic!("{path}: {e}, then {again}"))
            }
            Err(e) => panic!("{path}: {e}"),
        }
    }

    async fn try_open(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if let Some((name, value)) = &self.header {
            request = request.header(*name, value);
        }
        let body = match body {
            None => Full::default(),
            Some((kind, bytes)) => {
                request = request.header("content-type", kind);
                Full::from(bytes)
            }
        };
        let answer = tokio::time::timeout(patient(SOON_ENOUGH), self.http.request(request.body(body).unwrap()));
        answer.await.unwrap_or_else(|_| panic!("no answer to {path} in {SOON_ENOUGH:?}"))
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_raw(method, path, body.map(|json| ("application/json", json.to_string().into_bytes()))).await
    }

    pub async fn call_raw(&self, method: &str, path: &str, body: Option<(&str, Vec<u8>)>) -> Answer {
        whole(self.open(method, path, body).await).await.expect("the answer is whole")
    }

    /// As `get`, for an answer that may be truncated: a file that shrinks while it is read.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        self.try_call("GET", path).await
    }

    /// As `call`, when the daemon may be killed meanwhile.
    pub async fn try_call(&self, method: &str, path: &str) -> Option<Answer> {
        whole(self.try_open(method, path, None).await.ok()?).await.ok()
    }

    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, Some(body)).await
    }

    /// As `post`, with an `Idempotency-Key`.
    pub async fn post_once(&self, path: &str, body: Value, key: &str) -> Answer {
        let mut request = Request::post(format!("{}{path}", self.base)).header("idempotency-key", key);
        if let Some(token) = &self.key {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::from(body.to_string())).unwrap();
        whole(self.http.request(request).await.unwrap()).await.expect("the answer is whole")
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, None).await
    }

    pub async fn deploy(&self, name: &str) {
        let body = json!({"name": name, "files": [{"path": "CLAUDE.md", "content": "WW91IGFyZSBhIHRlc3QuCg=="}]});
        self.post("/api/agents", body).await.expect(201);
    }

    pub async fn session(&self, agent: &str) -> String {
        let made = self.post("/api/sessions", json!({"agent": agent})).await.expect(201);
        assert_eq!(made["session"]["status"], "active");
        made["session"]["id"].as_str().unwrap().to_owned()
    }

    pub async fn info(&self, session: &str) -> Value {
        self.get(&format!("/api/sessions/{session}")).await.expect(200)["session"].clone()
    }

    /// `pause`, `resume` or `stop`. Returns the new state.
    pub async fn verb(&self, session: &str, verb: &str) -> Value {
        self.call("POST", &format!("/api/sessions/{session}/{verb}"), None).await.expect(200)["session"]["status"]
            .clone()
    }

    pub async fn lifecycle(&self, session: &str) -> Vec<Value> {
        let all = self.get(&format!("/api/sessions/{session}/events?type=lifecycle&limit=1000")).await.expect(200);
        let data = |event: &Value| serde_json::from_str(event["data"].as_str().unwrap()).unwrap();
        all["events"].as_array().unwrap().iter().map(data).collect()
    }

    /// Waits for the only lifecycle event with this action and reason.
    pub async fn cause(&self, session: &str, action: &str, reason: &str) -> Value {
        let start = Instant::now();
        loop {
            let all = self.lifecycle(session).await;
            if let Some(found) = all.iter().find(|e| e["action"] == action && e["reason"] == reason) {
                return found.clone();
            }
            assert!(start.elapsed() < patient(Duration::from_secs(10)), "no {action}/{reason} in {all:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A turn that has printed `begun` and then waits for a minute; its stream after that frame.
    pub async fn waiting_turn(&self, session: &str) -> (Stream, Frame) {
        let body = json!({"content": "@text begun\n@wait 60s", "includePartialMessages": true});
        let mut stream = self.send(session, body).await;
        let begun = stream.until("text_delta").await;
        (stream, begun)
    }

    pub async fn send(&self, session: &str, body: Value) -> Stream {
        let path = format!("/api/sessions/{session}/messages");
        let answer = self.open("POST", &path, Some(("application/json", body.to_string().into_bytes()))).await;
        Stream::of(answer).await
    }

    /// A whole turn with partial messages.
    pub async fn turn(&self, session: &str, text: &str) -> Vec<Frame> {
        self.send(session, json!({"content": text, "includePartialMessages": true})).await.rest().await
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Answer, hyper::Error> {
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = tokio::time::timeout(patient(SOON_ENOUGH), answer.into_body().collect());
    let bytes = body.await.unwrap_or_else(|_| panic!("the answer does not end in {SOON_ENOUGH:?}"))?.to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Answer { status, json: serde_json::from_str(&text).unwrap_or(Value::Null), text, headers })
}

pub struct Stream {
    body: Incoming,
    buffer: Vec<u8>,
    ready: std::collections::VecDeque<Frame>,
}

impl Stream {
    pub async fn of(answer: Response<Incoming>) -> Self {
        let status = answer.status().as_u16();
        if status != 200 {
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            panic!("no stream but {status}: {}", String::from_utf8_lossy(&bytes));
        }
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self { body: answer.into_body(), buffer: Vec::new(), ready: std::collections::VecDeque::new() }
    }

    pub async fn next(&mut self) -> Option<Frame> {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            let left = patient(SOON_ENOUGH).saturating_sub(start.elapsed());
            let piece = tokio::time::timeout(left, self.body.frame());
            let piece = piece.await.unwrap_or_else(|_| panic!("no frame in {SOON_ENOUGH:?}"));
            let Some(piece) = piece else {
                assert!(self.buffer.is_empty(), "the stream ended inside a frame");
                return None;
            };
            if let Ok(bytes) = piece.expect("the stream is not cut").into_data() {
                // No frame ends within the earlier bytes. A frame may have 32 MiB, so it is scanned
                // only once.
                let fresh = self.buffer.len().saturating_sub(1);
                self.buffer.extend_from_slice(&bytes);
                if memchr::memmem::find(&self.buffer[fresh..], b"\n\n").is_some() {
                    self.ready.extend(frames(&mut self.buffer));
                }
            }
        }
    }

    pub async fn until(&mut self, event: &str) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("the stream ended before \"{event}\""));
            if frame.event == event {
                return frame;
            }
        }
    }

    pub async fn rest(mut self) -> Vec<Frame> {
        let mut all = Vec::new();
        while let Some(frame) = self.next().await {
            all.push(frame);
        }
        all
    }
}

/// The text of a turn, from its deltas.
pub fn text(frames: &[Frame]) -> String {
    frames.iter().filter(|f| f.event == "text_delta").filter_map(|f| f.data["delta"].as_str()).collect()
}

/// The names of the events; `message`s by their type.
pub fn names(frames: &[Frame]) -> Vec<String> {
    let name = |f: &Frame| match f.event.as_str() {
        "message" => format!("message/{}", f.data["type"].as_str().unwrap_or("?")),
        other => other.to_owned(),
    };
    frames.iter().map(name).collect()
}
