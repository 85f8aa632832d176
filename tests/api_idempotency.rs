//! `Idempotency-Key`: a repeated request is executed once.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::api::{Stream, text};
use common::{Daemon, Options};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

struct Keyed {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    token: String,
}

impl Keyed {
    fn new(daemon: &Daemon) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self { http, base: format!("http://127.0.0.1:{}", daemon.port), token: daemon.key.clone() }
    }

    async fn open(&self, key: &str, path: &str, body: &Value) -> Response<Incoming> {
        let request = Request::post(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(Full::from(body.to_string()))
            .unwrap();
        self.http.request(request).await.unwrap()
    }

    /// Status, whether it was a replay, and the body.
    async fn post(&self, key: &str, path: &str, body: &Value) -> (u16, bool, Value) {
        let answer = self.open(key, path, body).await;
        let (status, replayed) = (answer.status().as_u16(), answer.headers().contains_key("idempotent-replayed"));
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, replayed, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}

#[tokio::test]
async fn a_creation_that_comes_again_is_answered_and_not_repeated() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let keyed = Keyed::new(&daemon);
    let body = json!({"agent": "a"});
    let (status, replayed, first) = keyed.post("one", "/api/sessions", &body).await;
    assert_eq!((status, replayed), (201, false), "{first}");
    assert_eq!(keyed.post("one", "/api/sessions", &body).await, (201, true, first.clone()));
    let (_, _, second) = keyed.post("two", "/api/sessions", &body).await;
    assert_ne!(second["session"]["id"], first["session"]["id"]);
    // The same key for another request, an invalid key, and a request that failed.
    let (status, _, error) = keyed.post("one", "/api/sessions", &json!({"agent": "b"})).await;
    assert_eq!(status, 422, "{error}");
    let (status, _, _) = keyed.post("one", "/api/queue", &body).await;
    assert_eq!(status, 422);
    assert_eq!(keyed.post(&"x".repeat(256), "/api/sessions", &body).await.0, 400);
    assert_eq!(keyed.post("three", "/api/sessions", &json!({"agent": "later"})).await.0, 404);
    api.deploy("later").await;
    assert_eq!(
        keyed.post("three", "/api/sessions", &json!({"agent": "later"})).await.0,
        201,
        "nothing had been created"
    );

    // Two at the same time: one is executed.
    let agent = json!({"agent": "a"});
    let both = tokio::join!(keyed.post("four", "/api/sessions", &agent), keyed.post("four", "/api/sessions", &agent));
    let mut statuses = [both.0.0, both.1.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
    daemon.kill9();
    daemon.restart();
    let keyed = Keyed::new(&daemon);
    assert_eq!(keyed.post("one", "/api/sessions", &body).await, (201, true, first), "it is remembered over a restart");
    let all = daemon.api().get("/api/sessions?includeTotal=true").await.expect(200);
    assert_eq!(all["total"], 4);
}

#[tokio::test]
async fn a_message_that_comes_again_is_the_same_turn() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/messages");
    let body = json!({"content": "@text hello", "includePartialMessages": true});
    let keyed = Keyed::new(&daemon);
    let first = Stream::of(keyed.open("m", &path, &body).await).await.rest().await;
    assert_eq!(text(&first), "hello");
    let again = keyed.open("m", &path, &body).await;
    assert!(again.headers().contains_key("idempotent-replayed"));
    let again = Stream::of(again).await.rest().await;
    assert_eq!(again.iter().map(|f| &f.id).collect::<Vec<_>>(), first.iter().map(|f| &f.id).collect::<Vec<_>>());

    // A client that lost its connection during a turn finds the turn again, also after a kill of
    // the daemon.
    let body = json!({"content": "@delay 50ms\n@repeat 60 word", "includePartialMessages": true});
    let mut stream = Stream::of(keyed.open("n", &path, &body).await).await;
    stream.until("text_delta").await;
    drop(stream);
    daemon.kill9();
    daemon.restart();
    let keyed = Keyed::new(&daemon);
    let rejoined = Stream::of(keyed.open("n", &path, &body).await).await.rest().await;
    assert_eq!(text(&rejoined), "word ".repeat(60));
    let (status, _, _) = keyed.post("m", &path, &body).await;
    assert_eq!(status, 422);
    let messages = daemon.api().get(&path).await.expect(200);
    let asked = messages["messages"].as_array().unwrap().iter().filter(|m| m["role"] == "user").count();
    assert_eq!(asked, 2);
}
