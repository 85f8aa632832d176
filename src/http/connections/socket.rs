//! A client's socket for the HTTP server: replays the bytes already read, and gives up on a client
//! that does not read.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;

use super::bounds::STREAM_STALL;
use super::connection::Connection;

#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Unix(stream) => stream.try_read(buffer),
        }
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }
}

/// Implements the same methods for both kinds of sockets.
macro_rules! stream {
    ($socket:expr, $call:ident $(, $argument:expr)*) => {
        match $socket {
            Socket::Tcp(stream) => Pin::new(stream).$call($($argument),*),
            Socket::Unix(stream) => Pin::new(stream).$call($($argument),*),
        }
    };
}

pub struct Client {
    socket: Socket,
    /// Bytes read before the server started; `taken` of them are consumed.
    head: Vec<u8>,
    taken: usize,
    /// Longest time in which nothing can be written.
    stall: Duration,
    /// Runs while the client does not read.
    stalled: Option<Pin<Box<Sleep>>>,
    connection: Arc<Connection>,
}

impl Client {
    pub fn new(socket: Socket, head: Vec<u8>, stall: Duration, connection: Arc<Connection>) -> Self {
        Self { socket, head, taken: 0, stall, stalled: None, connection }
    }

    /// Records the result of a write, and ends the connection when nothing could be written for too
    /// long.
    fn watch(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = if self.connection.is_stream() { STREAM_STALL } else { self.stall };
        let sleep = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        tracing::debug!(limit_s = limit.as_secs(), "closing a connection: the client does not read its answer");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taken < this.head.len() {
            let length = (this.head.len() - this.taken).min(buffer.remaining());
            buffer.put_slice(&this.head[this.taken..this.taken + length]);
            this.taken += length;
            if this.taken == this.head.len() {
                (this.head, this.taken) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        stream!(&mut this.socket, poll_read, cx, buffer)
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = stream!(&mut this.socket, poll_write, cx, bytes);
        this.watch(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = stream!(&mut this.socket, poll_write_vectored, cx, slices);
        this.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Tcp(stream) => stream.is_write_vectored(),
            Socket::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(&mut self.get_mut().socket, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(&mut self.get_mut().socket, poll_shutdown, cx)
    }
}
