//! A gateway in this process, with a fake model behind it that records its requests.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ash_gateway::registry::{Limits, Registry};
use ash_gateway::settings::{BaseUrl, Key, Upstream};
use ash_gateway::upstream::Model;
use ash_protocol::gateway::{Register, SessionUsage};
use uuid::Uuid;

pub const KEY: &str = "sk-ant-api03-the-real-key";
pub const TOKEN: &str = "placeholder-of-this-session";

/// Usage: 10 tokens in, 5 out.
const STREAM: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\
\"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":5}}\n\n\
event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

/// A request for a message, with additional headers.
pub fn post(extra: &str, body: &str) -> String {
    let length = body.len();
    format!("POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{extra}\r\n{body}")
}

pub fn token() -> String {
    format!("x-api-key: {TOKEN}\r\n")
}

#[derive(Default)]
struct Notes {
    requests: Mutex<Vec<String>>,
    flooded: AtomicUsize,
    hung_up: AtomicBool,
}

pub struct Gate {
    runtime: tokio::runtime::Runtime,
    registry: Arc<Registry>,
    listener: TcpListener,
    session: Uuid,
    notes: Arc<Notes>,
}

impl Gate {
    pub fn start(limits: Limits) -> Self {
        let notes = Arc::new(Notes::default());
        let upstream = fake_model(Arc::clone(&notes));
        Self::build(limits, &format!("http://{upstream}/base"), notes)
    }

    pub fn with_upstream(limits: Limits, base: &str) -> Self {
        Self::build(limits, base, Arc::default())
    }

    fn build(limits: Limits, base: &str, notes: Arc<Notes>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let upstream = Upstream::Url(BaseUrl::parse(base).unwrap());
        let model = Model::new(&upstream, Some(Key::parse(KEY).unwrap()), Vec::new()).unwrap();
        let registry = Registry::new(model, limits, None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Self { runtime, registry, listener, session: Uuid::new_v4(), notes };
        gate.register_again(TOKEN, None);
        gate
    }

    pub fn register_again(&self, token: &str, key: Option<&str>) {
        let register = Register { key: key.map(Into::into), ..Register::new(self.session, token) };
        let _inside = self.runtime.enter();
        self.registry.register(register, self.listener.try_clone().unwrap().into()).unwrap();
    }

    /// A session whose requests are admitted according to its window: its address, and its id for
    /// [`Gate::window`].
    pub fn session_with_window(&self, token: &str, open: bool) -> (SocketAddr, Uuid) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, id) = (listener.local_addr().unwrap(), Uuid::new_v4());
        let _inside = self.runtime.enter();
        let register = Register { window: Some(open), ..Register::new(id, token) };
        self.registry.register(register, listener.into()).unwrap();
        (address, id)
    }

    pub fn window(&self, session: Uuid, open: bool) {
        self.registry.windows(&[session], open);
    }

    pub fn refused(&self) -> ash_protocol::gateway::Refused {
        self.registry.refused.snapshot()
    }

    pub fn session_of(&self, tenant: &str, token: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _inside = self.runtime.enter();
        let register = Register { tenant: tenant.into(), ..Register::new(Uuid::new_v4(), token) };
        self.registry.register(register, listener.into()).unwrap();
        address
    }

    pub fn another_session(&self, token: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _inside = self.runtime.enter();
        let register = Register::new(Uuid::new_v4(), token);
        self.registry.register(register, listener.into()).unwrap();
        address
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// One request on a new connection.
    pub fn ask(&self, request: &str) -> (String, String) {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_answer(&mut stream)
    }

    pub fn seen(&self) -> Vec<String> {
        self.notes.requests.lock().unwrap().clone()
    }

    pub fn all_usage(&self) -> Vec<SessionUsage> {
        self.registry.usage()
    }

    pub fn usage(&self) -> SessionUsage {
        self.all_usage().into_iter().find(|usage| usage.session == self.session).unwrap()
    }

    pub fn unregister(&self) {
        self.registry.unregister(self.session);
    }

    pub fn drain(&self) {
        self.registry.drain();
    }

    pub fn drained_within(&self, time: Duration) -> bool {
        self.runtime.block_on(async { tokio::time::timeout(time, self.registry.tasks.wait()).await.is_ok() })
    }

    /// Bytes the model could send, once it cannot send more for half a second.
    pub fn flood_settles(&self) -> usize {
        let mut before = usize::MAX;
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.notes.flooded.load(Ordering::SeqCst);
            if now == before && now > 0 {
                return now;
            }
            before = now;
        }
    }

    pub fn hung_up_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.notes.hung_up.load(Ordering::SeqCst) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

/// Head and body of one answer, by its length or in chunks.
pub fn read_answer(stream: &mut TcpStream) -> (String, String) {
    let (head, body) = read_message(&mut BufReader::new(stream)).expect("an answer");
    (head, String::from_utf8(body).unwrap())
}

fn read_message(reader: &mut impl BufRead) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if lower.contains("transfer-encoding: chunked") {
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            reader.take(size as u64).read_to_end(&mut body)?;
            reader.read_line(&mut line)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = lower.split("content-length: ").nth(1) {
        let length = length.split("\r\n").next().unwrap_or_default().parse().map_err(std::io::Error::other)?;
        reader.take(length).read_to_end(&mut body)?;
    }
    Ok((head, body))
}

fn fake_model(notes: Arc<Notes>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let notes = Arc::clone(&notes);
            std::thread::spawn(move || serve(stream.unwrap(), &notes));
        }
    });
    address
}

fn serve(stream: TcpStream, notes: &Notes) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let (head, body) = read_message(&mut reader)?;
        notes.requests.lock().unwrap().push(format!("{head}{}", String::from_utf8_lossy(&body)));
        if head.contains("x-fake: echo") {
            // As some proxies do: it contains the whole request, including the key.
            let answer = format!("refused: {head}");
            let (length, pieces) = (answer.len(), answer.as_bytes().chunks(7));
            let head = "HTTP/1.1 401 Unauthorized\r\ncontent-type: text/plain\r\nx-refused-key";
            write!(writer, "{head}: {KEY}\r\ncontent-length: {length}\r\n\r\n")?;
            for piece in pieces {
                writer.write_all(piece)?;
                writer.flush()?;
            }
            continue;
        }
        if head.contains("x-fake: late") {
            std::thread::sleep(Duration::from_millis(500));
            let answer = r#"{"type":"message","usage":{"input_tokens":3,"output_tokens":4}}"#;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
            write!(writer, "{head}: {}\r\n\r\n{answer}", answer.len())?;
            continue;
        }
        writer
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
        if head.contains("x-fake: flood") {
            let piece = vec![b'x'; 64 << 10];
            for _ in 0..(20 << 20) / piece.len() {
                chunk(&mut writer, &piece)?;
                notes.flooded.fetch_add(piece.len(), Ordering::SeqCst);
            }
        } else if head.contains("x-fake: slow") {
            for _ in 0..40 {
                if chunk(&mut writer, b": ping\n\n").is_err() {
                    notes.hung_up.store(true, Ordering::SeqCst);
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            chunk(&mut writer, STREAM.as_bytes())?;
        } else {
            chunk(&mut writer, STREAM.as_bytes())?;
        }
        writer.write_all(b"0\r\n\r\n")?;
    }
}

fn chunk(writer: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    write!(writer, "{:x}\r\n", bytes.len())?;
    writer.write_all(bytes)?;
    writer.write_all(b"\r\n")
}
