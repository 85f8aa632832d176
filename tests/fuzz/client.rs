//! Inputs from clients: heads, query strings, every body, uploads, event ids; and file names from a
//! payload.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ash_model::RawJson;
use ashd::sessions::EventId;
use ashd::sessions::SendMessage;
use ashd::sessions::api::new_message::NewMessage;
use ashd::sessions::claude::message;
use ashd::sessions::claude::{output_schema, thinking_tokens};
use ashd::sessions::policy::limit_levels::Change;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::harness::Target;
use crate::http_support::{Api, KEY};

/// The id of an ended session, in samples.
const ID: &str = "00000000-0000-4000-8000-000000000001";
/// Requests after which the daemon's data is created again, because requests add to it and revoke
/// the key.
const RENEW: u64 = 500;
/// Limit for an event stream, which has no end.
const STREAM_FOR: Duration = Duration::from_millis(500);
/// Limit for any other answer, on a shared host.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

struct Daemon {
    runtime: Runtime,
    api: Option<Api>,
    requests: u64,
}

impl Daemon {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self { runtime: runtime.expect("a runtime"), api: None, requests: 0 }
    }

    fn workspace(&self) -> PathBuf {
        self.api.as_ref().expect("ready").data.path().join("sessions").join(ID).join("workspace")
    }

    fn ready(&mut self) {
        if self.requests.is_multiple_of(RENEW) || self.api.is_none() {
            self.api = None;
            let api = self.runtime.block_on(async {
                let api = Api::start().await;
                api.ended_session(ID.parse().expect("an id")).await;
                let agent = r#"{"name":"a","systemPrompt":"Be brief."}"#;
                assert_eq!(api.own("POST /api/agents", agent).await.status, 201);
                api
            });
            self.api = Some(api);
            std::fs::create_dir_all(self.workspace()).expect("a workspace");
            std::fs::create_dir_all(self.workspace().with_file_name("home")).expect("a home");
            std::fs::write(self.workspace().join("a.txt"), "0123456789").expect("a file");
        }
        self.requests += 1;
    }

    /// The answer's status; `None` when it has no end.
    fn send(&mut self, request: Request<Body>) -> Option<StatusCode> {
        self.ready();
        let shown = format!("{} {}", request.method(), request.uri());
        let api = self.api.as_ref().expect("ready");
        let (status, body) = self.runtime.block_on(async {
            let response = api.answer(request).await;
            let (parts, body) = response.into_parts();
            let kind = parts.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
            let endless = kind.starts_with(b"text/event-stream");
            let within = if endless { STREAM_FOR } else { ANSWER_WITHIN };
            let whole = tokio::time::timeout(within, axum::body::to_bytes(body, usize::MAX)).await;
            assert!(endless || whole.is_ok(), "{shown}: no whole answer within {within:?}");
            (parts.status, whole.ok().and_then(Result::ok))
        });
        let body = body?;
        let text = String::from_utf8_lossy(&body).into_owned();
        // 5xx are allowed for missing components: no launcher runs. Internal errors are not.
        let expected = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::INSUFFICIENT_STORAGE].contains(&status);
        assert!(!status.is_server_error() || expected, "{shown}: {status} {text}");
        if status.is_client_error() && !body.is_empty() {
            let told: Value = serde_json::from_slice(&body).unwrap_or_else(|why| panic!("{shown}: {why}: {text}"));
            assert!(told["error"].is_string() && told["statusCode"] == status.as_u16(), "{shown}: {text}");
        }
        Some(status)
    }
}

/// A head in lines, an empty line, a body. `None` when it is not an HTTP request, which is left to
/// hyper.
fn request(input: &[u8]) -> Option<Request<Body>> {
    let end = memchr::memmem::find(input, b"\n\n").unwrap_or(input.len());
    let body = input.get(end + 2..).unwrap_or_default().to_vec();
    let mut lines = input[..end].split(|byte| *byte == b'\n');
    let first = lines.next()?;
    let space = first.iter().position(|byte| *byte == b' ')?;
    let method = Method::from_bytes(&first[..space]).ok()?;
    let uri = Uri::try_from(&first[space + 1..]).ok()?;
    let mut request = Request::new(Body::from(body));
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    for line in lines {
        let Some(colon) = line.windows(2).position(|two| two == b": ") else { continue };
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 2..]))
        else {
            continue;
        };
        request.headers_mut().append(name, value);
    }
    if !request.headers().contains_key("authorization") {
        let key = HeaderValue::from_str(&format!("Bearer {KEY}")).expect("a header");
        request.headers_mut().insert("authorization", key);
    }
    Some(request)
}

pub fn requests() -> Target {
    const WORDS: &[&str] = &[
        ID,
        "Range: bytes=0-4\n",
        "Range: bytes=-18446744073709551616\n",
        "Last-Event-ID: 1:0:0\n",
        "Idempotency-Key: k\n",
        "Authorization: Bearer x\n",
        "Authorization: Basic eDp4\n",
        "Content-Type: multipart/form-data; boundary=x\n",
        "Content-Encoding: gzip\n",
        "Accept: text/event-stream\n",
        "?limit=1000&offset=0",
        "?path=..%2f",
        "?raw=true",
        "POST ",
        "PATCH ",
        "DELETE ",
        "/api/sessions/",
        "/api/agents/a",
        "\"content\"",
        "\"files\"",
        "\"path\"",
        "\"name\"",
        "\"agent\"",
        "\"memoryBytes\"",
        "\"mcpServers\"",
        "\"extraEnv\"",
        "null",
    ];
    let mut daemon = Daemon::new();
    Target::new(WORDS, move |input| {
        if let Some(request) = request(input) {
            daemon.send(request);
        }
    })
    .heap(96 << 20, 96)
}

/// A tar archive with valid checksums, as an uploaded workspace.
pub fn workspace_archive() -> Target {
    const WORDS: &[&str] = &[
        "ustar\0",
        "ustar  \0",
        "../",
        "/etc/",
        "././@LongLink",
        "30 path=x\n",
        "22 GNU.sparse.major=1\n",
        "22 GNU.sparse.minor=0\n",
        "26 GNU.sparse.realsize=512\n",
        "25 GNU.sparse.map=0,1,5,1\n",
        "00000001750\0",
        "77777777777\0",
    ];
    let mut daemon = Daemon::new();
    Target::new(WORDS, move |input| {
        let mut tar = input.to_vec();
        correct_sums(&mut tar);
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        std::io::Write::write_all(&mut gz, &tar).expect("compressed");
        let mut bundle = gz.finish().expect("compressed");
        if tar.len().is_multiple_of(5) {
            // The decompression is tested, too.
            let at = tar.len() % bundle.len();
            bundle[at] ^= 1 << (tar.len() % 8);
        }
        let body = serde_json::json!({ "bundle": STANDARD.encode(bundle) }).to_string();
        let head = format!("POST /api/sessions/{ID}/workspace\n\n");
        let status = daemon.send(request(&[head.as_bytes(), body.as_bytes()].concat()).expect("a request"));
        assert!(status.is_some(), "unpacking has an end");
        let outside = daemon.workspace().parent().expect("a session").join("escaped");
        assert!(!outside.exists(), "a file beside the workspace");
    })
    .heap(96 << 20, 96)
}

/// In each block that looks like a header.
pub fn correct_sums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// File names of a payload, one per line: listed, read and archived.
pub fn workspace_names() -> Target {
    const WORDS: &[&str] = &["/", "a/b/c", "%2e%2e", "\u{202e}", "\"", "; filename=x", ".git/", "-rf", "?", "#", "\\"];
    let mut daemon = Daemon::new();
    Target::new(WORDS, move |input| {
        daemon.ready();
        let root = daemon.workspace();
        std::fs::remove_dir_all(&root).expect("removed");
        std::fs::create_dir(&root).expect("made");
        let mut names = Vec::new();
        for name in input.split(|byte| *byte == b'\n').take(50) {
            let name = Path::new(OsStr::from_bytes(name));
            let inside = name.components().all(|part| matches!(part, Component::Normal(_)));
            if name.as_os_str().is_empty() || !inside || name.components().count() > 40 {
                continue;
            }
            let path = root.join(name);
            let made = std::fs::create_dir_all(path.parent().expect("below the root")).and_then(|()| {
                if name.as_os_str().len().is_multiple_of(7) {
                    std::os::unix::fs::symlink(name, &path)
                } else {
                    std::fs::write(&path, "x")
                }
            });
            if made.is_ok() {
                names.push(name.as_os_str().as_bytes().to_vec());
            }
        }
        let mut get = |path: &str| {
            let head = format!("GET /api/sessions/{ID}/{path}\n\n");
            let status = request(head.as_bytes()).and_then(|request| daemon.send(request));
            assert!(status.is_none_or(|status| !status.is_redirection()), "{path}");
            status
        };
        assert_eq!(get("files"), Some(StatusCode::OK));
        assert_eq!(get("workspace"), Some(StatusCode::OK));
        for name in names.iter().take(4) {
            let path: String = name.iter().map(|byte| format!("%{byte:02x}")).collect();
            get(&format!("files/{path}"));
            get(&format!("files/{path}?raw=true"));
        }
    })
    .heap(96 << 20, 96)
}

/// Parts of requests that are parsed outside the router: event ids, limits, messages.
pub fn words() -> Target {
    const WORDS: &[&str] = &[
        "1:0:0",
        ":",
        "\"content\"",
        "\"type\"",
        "\"text\"",
        "\"image\"",
        "\"source\"",
        "\"json_schema\"",
        "\"schema\"",
        "\"enabled\"",
        "\"budgetTokens\"",
        "\"memoryBytes\"",
        "\"cpuMillis\"",
    ];
    Target::new(WORDS, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(id) = EventId::from_str(&text) {
            assert_eq!(id.to_string(), text, "one place, one spelling");
        }
        ash_model::TenantId::from_str(&text).ok();
        // Routes that parse their body into a tree accept no more.
        if text.len() <= 64 << 10
            && let Ok(value) = serde_json::from_str::<Value>(&text)
        {
            value.as_object().and_then(|body| Change::parse(body).ok());
            thinking_tokens(&value).ok();
        }
        if let Ok(raw) = RawJson::parse(text.as_ref()) {
            output_schema(&raw).ok();
        }
        let Ok(sent) = serde_json::from_str::<SendMessage>(&text) else { return };
        if let Ok(message) = NewMessage::read(sent) {
            let mut line = Vec::new();
            message::UserLine::of(message::stored(&message.content), Uuid::nil()).write(&mut line).expect("written");
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line for claude");
            serde_json::from_slice::<&serde_json::value::RawValue>(&line).expect("JSON for claude");
        }
    })
}
