//! The first request of a connection, until its head is complete.
//!
//! Until then, a connection holds only the bytes it has sent (at most [`MAX_HEAD`]); the HTTP
//! server's buffers are allocated later.

use std::io;

use super::bounds::MAX_HEAD;
use super::socket::Socket;

const PIECE: usize = 2048;

#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    /// The head of a request, and possibly some of what follows it.
    Head(Vec<u8>),
    /// More than [`MAX_HEAD`] bytes without an end.
    TooLarge,
    /// The client has closed the connection.
    Closed,
}

/// Reads until the first head is complete.
///
/// # Errors
/// The connection failed.
pub async fn read(socket: &Socket, head: &mut Vec<u8>) -> io::Result<Opening> {
    loop {
        socket.readable().await?;
        match take(socket, head) {
            Ok(0) => return Ok(Opening::Closed),
            Ok(new) if complete(head, head.len() - new) => return Ok(Opening::Head(std::mem::take(head))),
            Ok(_) if head.len() >= MAX_HEAD => return Ok(Opening::TooLarge),
            Ok(_) => {}
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            Err(why) => return Err(why),
        }
    }
}

/// A function of its own, so that the buffer is not kept while the connection waits.
fn take(socket: &Socket, head: &mut Vec<u8>) -> io::Result<usize> {
    let mut piece = [0; PIECE];
    let length = socket.try_read(&mut piece)?;
    head.reserve_exact(length);
    head.extend_from_slice(&piece[..length]);
    Ok(length)
}

/// Whether an empty line ends the head. The first `from` bytes were checked before. Empty lines
/// before the request line do not count (RFC 9112 §2.2).
fn complete(head: &[u8], from: usize) -> bool {
    let start = head.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(head.len());
    let head = &head[start.max(from.saturating_sub(3)).min(head.len())..];
    memchr::memchr_iter(b'\n', head).any(|at| matches!(&head[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_head_ends() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\na: b\r\n\r\nbody", true),
            ("GET / HTTP/1.1\n\n", true),
            ("\r\n\r\nGET / HTTP/1.1\r\n", false),
            ("\r\n\r\nGET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\na: b\r\n", false),
            ("GET / HTTP/1.1\r\na: b\r\n\r", false),
            ("", false),
            ("\r\n\r\n", false),
        ] {
            assert_eq!(complete(head.as_bytes(), 0), expected, "{head:?}");
            // Split into two pieces at every position.
            let pieces = (0..head.len()).any(|cut| {
                let bytes = head.as_bytes();
                !complete(&bytes[..cut], 0) && complete(bytes, cut)
            });
            assert_eq!(pieces, expected, "{head:?} in pieces");
        }
    }
}
