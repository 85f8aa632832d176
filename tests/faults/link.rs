//! A connection to a daemon that may be down at any moment, and that has a new port after each
//! start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::common::wire::{Frame, frames};

/// Longest wait for an answer's head, and for the next bytes of a stream (heartbeats come every 15
/// s).
const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Clone)]
pub struct Link {
    http: Client<HttpConnector, Full<Bytes>>,
    port: Arc<AtomicU16>,
    key: String,
}

#[derive(Debug)]
pub enum Lost {
    /// No connection, or it was lost: the result of the request is unknown.
    Away,
    /// Connected, and silent for too long.
    Silent,
}

impl Link {
    pub fn new(port: u16, key: &str) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self { http, port: Arc::new(AtomicU16::new(port)), key: key.to_owned() }
    }

    pub fn moved(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    pub async fn open(
        &self,
        method: Method,
        path: &str,
        last: Option<&str>,
        body: Option<Value>,
    ) -> Result<Response<Incoming>, Lost> {
        let url = format!("http://127.0.0.1:{}{path}", self.port.load(Ordering::Relaxed));
        let mut request =
            Request::builder().method(method).uri(url).header("authorization", format!("Bearer {}", self.key));
        if let Some(id) = last {
            request = request.header("last-event-id", id);
        }
        let request = match body {
            None => request.body(Full::default()),
            Some(json) => request.header("content-type", "application/json").body(Full::from(json.to_string())),
        };
        let answer = tokio::time::timeout(PATIENCE, self.http.request(request.unwrap()));
        answer.await.map_err(|_| Lost::Silent)?.map_err(|_| Lost::Away)
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value), Lost> {
        let answer = self.open(method, path, None, body).await?;
        let status = answer.status().as_u16();
        Ok((status, json(answer).await?))
    }

    /// Every message of a session, page by page, in the order of the API.
    pub async fn messages(&self, session: &str) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().map_or(0, |m: &Value| m["sequence"].as_i64().unwrap_or(0));
            let path = format!("/api/sessions/{session}/messages?limit=1000&after={after}");
            match self.call(Method::GET, &path, None).await {
                Ok((200, page)) => {
                    let page = page["messages"].as_array().cloned().unwrap_or_default();
                    if page.is_empty() {
                        return all;
                    }
                    all.extend(page);
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

pub async fn json(answer: Response<Incoming>) -> Result<Value, Lost> {
    let bytes = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await.map_err(|_| Lost::Silent)?;
    let bytes = bytes.map_err(|_| Lost::Away)?.to_bytes();
    Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A stream that may be cut anywhere. A partial frame at the end is ignored.
pub struct Stream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Stream {
    pub fn of(answer: Response<Incoming>) -> Self {
        Self { body: answer.into_body(), buffer: Vec::new() }
    }

    /// The next frames (none for a comment), or `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<Vec<Frame>>, Lost> {
        match tokio::time::timeout(PATIENCE, self.body.frame()).await {
            Err(_) => Err(Lost::Silent),
            Ok(None) => Ok(None),
            Ok(Some(Err(_))) => Err(Lost::Away),
            Ok(Some(Ok(piece))) => {
                if let Ok(bytes) = piece.into_data() {
                    self.buffer.extend_from_slice(&bytes);
                }
                Ok(Some(frames(&mut self.buffer)))
            }
        }
    }
}
