//! Raw clients: sockets on which a test sends any bytes, as slowly as it likes.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::Daemon;
use super::patience::patient;

/// Raises this process's limit of open files.
pub fn many_files(count: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count))
        .expect("the hard limit (ulimit -Hn) allows it, or root may raise it");
}

/// A connection from 127.0.0.<from>.
pub async fn connect(port: u16, from: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((std::net::Ipv4Addr::new(127, 0, 0, from), 0).into())?;
    socket.connect(([127, 0, 0, 1], port).into()).await
}

pub fn head(line: &str, key: Option<&str>, length: Option<usize>) -> String {
    let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let length = length.map(|n| format!("content-length: {n}\r\n")).unwrap_or_default();
    format!("{line} HTTP/1.1\r\nhost: raw\r\ncontent-type: application/json\r\n{key}{length}\r\n")
}

/// Sends a head on a new connection.
pub async fn request(port: u16, line: &str, key: Option<&str>, length: Option<usize>) -> TcpStream {
    let mut socket = connect(port, 1).await.unwrap();
    socket.write_all(head(line, key, length).as_bytes()).await.unwrap();
    socket
}

/// Reads until the head of an answer is complete or the connection is closed.
pub async fn answer(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = async {
        while !whole(&text) {
            match socket.read_buf(&mut text).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    let limit = patient(Duration::from_secs(60));
    let _ = tokio::time::timeout(limit, read).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Head and body, or the head of a stream.
fn whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    length.is_none_or(|length| body.len() >= length)
}

/// Whether the other end closes within `limit`.
pub async fn closes(socket: &mut TcpStream, limit: Duration) -> bool {
    let mut buffer = [0; 4096];
    let read = async { while matches!(socket.read(&mut buffer).await, Ok(n) if n > 0) {} };
    tokio::time::timeout(limit, read).await.is_ok()
}

/// A field of `/proc/<pid>/status` in bytes, such as `VmRSS`, `VmHWM`, `RssAnon`.
pub fn memory(daemon: &Daemon, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Makes `VmHWM` count from now.
pub fn reset_peak(daemon: &Daemon) {
    std::fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").unwrap();
}

/// Waits up to `limit` for `done`. Returns whether it came.
pub async fn comes(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < patient(limit) {
        if done() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done()
}
