//! Answers of the model, and requests of sandboxes and ashd to the gateway.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ash_gateway::admit::Route;
use ash_gateway::answer::{Body, BodyError};
use ash_gateway::control::{self, ControlSocket, Peers};
use ash_gateway::ledger::Collected;
use ash_gateway::mask::{Secrets, masked};
use ash_gateway::meter::Meter;
use ash_gateway::offline::Offline;
use ash_gateway::pace::Rate;
use ash_gateway::registry::{Limits, Registry};
use ash_gateway::settings::{BaseUrl, Key, Upstream, custom_headers};
use ash_gateway::upstream::{Call, Model};
use ash_kernel::seqpacket;
use ash_protocol::gateway::Tokens;
use ash_protocol::gateway::{MAX_PACKET, Register, Reply, Request, SOCKET, SessionUsage};
use ashd::gateway::client::Gateway;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::Target;

const TOKEN: &str = "s3cret-of-the-sandbox";
const MODEL_KEY: &str = "sk-ant-api03-of-the-model";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// An answer of the Messages API, streamed and whole: its tokens, and keys that it may quote.
pub fn model_answer() -> Target {
    const WORDS: &[&str] = &[
        "data: ",
        "event: message_start\n",
        "\"usage\"",
        "\"input_tokens\"",
        "\"output_tokens\"",
        "\"cache_read_input_tokens\"",
        "\"message\"",
        "\n\n",
        "\r\n",
        MODEL_KEY,
        "sk-ant-api03-of",
        "********",
    ];
    let runtime = runtime();
    Target::new(WORDS, move |input| {
        for kind in ["text/event-stream; charset=utf-8", "application/json", "text/plain"] {
            let count = |step: usize| {
                let mut meter = Meter::new(200, kind);
                let parts = input.chunks(step).map(|part| meter.feed(part)).fold(Tokens::default(), Tokens::plus);
                parts.plus(meter.finish())
            };
            assert_eq!(count(input.len().max(1)), count(11), "the same tokens however it is cut");
        }
        for secrets in [&[MODEL_KEY.as_bytes()][..], &[b"********"], &[b"aaaaaaab", b"aaaaaaaa"]] {
            let pieces: Vec<_> = input
                .chunks(4099)
                .map(|piece| Ok::<_, BodyError>(Frame::data(Bytes::copy_from_slice(piece))))
                .collect();
            let body: Body = StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync();
            let secrets = Secrets::new(secrets.iter().copied());
            let passed = runtime.block_on(masked(body, secrets.clone()).collect()).expect("no error").to_bytes();
            assert_eq!(passed.len(), input.len(), "lengths stay right");
            let is_stars = secrets.are_in(b"********");
            assert!(is_stars || !secrets.are_in(&passed), "no secret passes");
        }
    })
}

/// A body from a sandbox, as the offline model reads and answers it, whole and streamed.
pub fn offline_model() -> Target {
    const WORDS: &[&str] = &[
        "\"model\"",
        "\"messages\"",
        "\"role\"",
        "\"content\"",
        "\"tools\"",
        "\"input_schema\"",
        "\"output_config\"",
        "\"stream\"",
        "\"max_tokens\"",
        "@text ",
        "@tool Bash {\\\"command\\\":\\\"ls\\\"}",
        "@repeat 1000000 word",
        "@delay 1ms",
        "@hang 5s",
        "@write a b",
        "@error 500 x1 no",
        "@cut",
        "@stop refusal",
        "@show tools",
        "\\n",
        "\"type\":\"array\",\"minItems\":16,\"items\":",
        "\"anyOf\"",
    ];
    let runtime = runtime();
    let model = Arc::new(Offline::default());
    Target::new(WORDS, move |input| {
        for route in [Route::Messages, Route::CountTokens] {
            let call = Call {
                session: Uuid::nil(),
                route,
                method: hyper::Method::POST,
                query: None,
                headers: hyper::HeaderMap::new(),
                key: None,
                room: Arc::new(Semaphore::new(32 << 20)),
                body: Full::<Bytes>::from(input.to_vec()).map_err(|never: Infallible| match never {}),
            };
            let model = Arc::clone(&model);
            runtime.block_on(async move {
                // A script may wait for an hour; the beginning is enough.
                let work = async {
                    let mut body = model.send(call).await.into_body();
                    let mut left = 1 << 20;
                    while let Some(Ok(frame)) = body.frame().await {
                        left -= frame.data_ref().map_or(0, Bytes::len).min(left);
                        if left == 0 {
                            break;
                        }
                    }
                };
                tokio::time::timeout(Duration::from_millis(30), work).await.ok();
            });
        }
    })
    // A whole answer may have 32 MiB, and is held as text and as JSON.
    .heap(160 << 20, 64)
}

fn registry(limits: Limits) -> Arc<Registry> {
    let model = Model::new(&Upstream::Offline, None, Vec::new()).expect("the offline model");
    Registry::new(model, limits, None)
}

/// Raw bytes of a sandbox's connection to the gateway.
pub fn gateway_connection() -> Target {
    const WORDS: &[&str] = &[
        "POST /v1/messages HTTP/1.1\r\n",
        "GET /v1/models/x HTTP/1.1\r\n",
        "HEAD /api/hello HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "Host: x\r\n",
        "x-api-key: s3cret-of-the-sandbox\r\n",
        "Authorization: Bearer s3cret-of-the-sandbox\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "http://a/",
        "?a=b",
    ];
    let fast = Rate { per_second: 1e9, burst: 1e9 };
    let limits = Limits { requests: fast, accepts: fast, bytes: fast, ..Limits::default() };
    let runtime = runtime();
    let registry = registry(limits);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    runtime.block_on(async { registry.register(Register::new(Uuid::nil(), TOKEN), listener.into()) }).expect("served");
    Target::new(WORDS, move |input| {
        let _serving = (&runtime, &registry);
        let mut stream = TcpStream::connect(address).expect("the gateway accepts");
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a time");
        stream.set_write_timeout(Some(Duration::from_millis(50))).expect("a time");
        stream.write_all(input).ok();
        stream.shutdown(Shutdown::Write).ok();
        let mut answer = [0; 16 << 10];
        let mut first = true;
        while let Ok(length @ 1..) = stream.read(&mut answer) {
            assert!(!std::mem::take(&mut first) || answer[..length].starts_with(b"HTTP/1."), "an answer of HTTP");
        }
    })
    .heap(64 << 20, 64)
}

/// Packets on the gateway's control socket, each with up to one descriptor.
pub fn gateway_control() -> Target {
    const WORDS: &[&str] = &[
        "\"op\"",
        "\"hello\"",
        "\"register\"",
        "\"unregister\"",
        "\"usage\"",
        "\"windows\"",
        "\"collect\"",
        "\"marks\"",
        "\"session\"",
        "\"token\"",
        "\"key\"",
        "\"open\"",
        "\"closed\"",
    ];
    let runtime = runtime();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = ControlSocket::bind(directory.path()).expect("a socket");
    let stop = CancellationToken::new();
    let peers = Peers { client: nix::unistd::Uid::effective() };
    runtime.spawn(control::serve(socket, peers, registry(Limits::default()), stop));
    let connection = seqpacket::connect(&directory.path().join(SOCKET), false).expect("connects");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut packets = 0_u64;
    Target::new(WORDS, move |input| {
        let _serving = (&runtime, &directory);
        // `shutdown` is a request like any other, and would end the server.
        let packet = &input[..input.len().min(MAX_PACKET)];
        if packet.is_empty() || matches!(serde_json::from_slice(packet), Ok(Request::Shutdown)) {
            return;
        }
        packets += 1;
        let fds = [listener.as_fd()];
        seqpacket::send(connection.as_fd(), packet, &fds[..usize::from(packets.is_multiple_of(2))])
            .expect("it is heard");
        let mut buffer = vec![0; MAX_PACKET];
        let answer = seqpacket::recv(connection.as_fd(), &mut buffer).expect("it is answered");
        serde_json::from_slice::<Reply>(&buffer[..answer.len]).expect("with a reply");
    })
    .heap(16 << 20, 64)
}

/// Data from a gateway to ashd: replies, and the files beside them.
pub fn gateway_replies() -> Target {
    const WORDS: &[&str] =
        &["\"reply\"", "\"hello\"", "\"done\"", "\"usage\"", "\"collected\"", "\"entries\"", "\"ledgers\"", "\"n\""];
    let runtime = runtime();
    Target::new(WORDS, move |input| {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let listener = seqpacket::listen(&directory.path().join(SOCKET)).expect("a socket");
        let reply = input[..input.len().min(MAX_PACKET)].to_vec();
        runtime.block_on(async {
            let connect = tokio::time::timeout(Duration::from_secs(5), Gateway::connect(directory.path()));
            let serve = async {
                // It connects and sends before it waits, so both have arrived.
                for _ in 0..100 {
                    let Ok(peer) = seqpacket::accept(listener.as_fd()) else {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                        continue;
                    };
                    if !reply.is_empty() {
                        seqpacket::send(peer.as_fd(), &reply, &[]).ok();
                    }
                    return;
                }
            };
            drop(tokio::join!(connect, serve));
        });
        if let Ok(collected) = serde_json::from_slice::<Collected>(input) {
            serde_json::to_vec(&collected).expect("JSON");
        }
        serde_json::from_slice::<Vec<SessionUsage>>(input).ok();
    })
    .heap(16 << 20, 64)
}

/// An admin's settings of the gateway: key, URL, headers.
pub fn gateway_settings() -> Target {
    const WORDS: &[&str] = &["https://", "http://", "localhost", "[::1]", ":443", "@", "sk-ant-oat", ": ", "x-a: b\n"];
    Target::new(WORDS, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(key) = Key::parse(&text) {
            key.credential();
        }
        if let Ok(url) = BaseUrl::parse(&text) {
            url.port();
            url.is_insecure();
            ash_gateway::forward::uri(&url, &Route::Messages, Some("a=b")).expect("a base makes URIs");
        }
        custom_headers(&text).ok();
        Upstream::choose(Some(&text), None, true).ok();
    })
}
