//! Passes an answer on to the sandbox through a bounded buffer.
//!
//! ```text
//!  model --> pump (a task: reads, meters) --> queue, bounded in bytes --> connection --> sandbox
//! ```
//!
//! The pump reads on while the sandbox does not (it may be frozen), until [`Buffers`] are full; then it stops reading and
//! the model feels it. It ends when the sandbox's side is gone, which also closes the request upstream: nobody pays for
//! words that nobody will read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{Body, BodyError};
use super::meter::{Meter, Tokens};
use super::protocol::SessionUsage;

/// How long a model may say nothing (the real one sends a ping every few seconds) before its answer counts as lost.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// What one session used; the sums of all its connections.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    input: AtomicU64,
    output: AtomicU64,
    cache_creation: AtomicU64,
    cache_read: AtomicU64,
}

impl Counters {
    pub fn add_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub fn add(&self, tokens: Tokens) {
        self.input.fetch_add(tokens.input, Ordering::Relaxed);
        self.output.fetch_add(tokens.output, Ordering::Relaxed);
        self.cache_creation.fetch_add(tokens.cache_creation, Ordering::Relaxed);
        self.cache_read.fetch_add(tokens.cache_read, Ordering::Relaxed);
    }

    pub fn snapshot(&self, session: uuid::Uuid) -> SessionUsage {
        SessionUsage {
            session,
            requests: self.requests.load(Ordering::Relaxed),
            input_tokens: self.input.load(Ordering::Relaxed),
            output_tokens: self.output.load(Ordering::Relaxed),
            cache_creation_tokens: self.cache_creation.load(Ordering::Relaxed),
            cache_read_tokens: self.cache_read.load(Ordering::Relaxed),
        }
    }
}

/// Bytes that may wait for a sandbox to read them.
#[derive(Clone, Debug)]
pub struct Buffers {
    /// Per connection.
    pub connection: usize,
    /// Shared by all connections of the session, one permit a byte.
    pub session: Arc<Semaphore>,
}

/// One piece of an answer and its place in the buffers, which is free again when the piece leaves.
struct Piece {
    bytes: Bytes,
    _held: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Starts the pump; the body that is returned is its other end.
pub fn relay(answer: Body, buffers: Buffers, meter: Meter, counters: Arc<Counters>) -> Body {
    let (sender, receiver) = unbounded_channel();
    tokio::spawn(pump(answer, buffers, meter, counters, sender));
    Queue { receiver, over: false }.boxed_unsync()
}

async fn pump(
    mut answer: Body,
    buffers: Buffers,
    mut meter: Meter,
    counters: Arc<Counters>,
    sender: UnboundedSender<Result<Piece, BodyError>>,
) {
    let own = Arc::new(Semaphore::new(buffers.connection));
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(SILENCE, answer.frame()) => frame,
            () = sender.closed() => break,
        };
        let bytes = match frame {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) if !bytes.is_empty() => bytes,
                _ => continue, // trailers: the Messages API has none
            },
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                let _ = sender.send(Err(error));
                break;
            }
            Err(_) => {
                let _ = sender.send(Err(format!("the model was silent for {} s", SILENCE.as_secs()).into()));
                break;
            }
        };
        counters.add(meter.feed(&bytes));
        let held = tokio::select! {
            held = room(&own, &buffers, bytes.len()) => held,
            () = sender.closed() => break,
        };
        let Some(held) = held else { break };
        if sender.send(Ok(Piece { bytes, _held: held })).is_err() {
            break;
        }
    }
    counters.add(meter.finish());
}

/// Waits until `length` bytes fit both buffers. A piece larger than a buffer waits for the whole of it.
async fn room(
    own: &Arc<Semaphore>,
    buffers: &Buffers,
    length: usize,
) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
    let permits = u32::try_from(length.min(buffers.connection)).unwrap_or(u32::MAX);
    let first = Arc::clone(own).acquire_many_owned(permits).await.ok()?;
    let second = Arc::clone(&buffers.session).acquire_many_owned(permits).await.ok()?;
    Some((first, second))
}

struct Queue {
    receiver: UnboundedReceiver<Result<Piece, BodyError>>,
    over: bool,
}

impl hyper::body::Body for Queue {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        self.receiver.poll_recv(cx).map(|next| match next {
            Some(Ok(piece)) => Some(Ok(Frame::data(piece.bytes))),
            Some(Err(error)) => {
                self.over = true;
                Some(Err(error))
            }
            None => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    fn source(limit: usize) -> (mpsc::Sender<Result<Frame<Bytes>, BodyError>>, Body) {
        let (sender, receiver) = mpsc::channel(limit);
        (sender, StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed_unsync())
    }

    fn buffers(connection: usize, session: usize) -> Buffers {
        Buffers { connection, session: Arc::new(Semaphore::new(session)) }
    }

    /// How many pieces of 10 bytes the pump takes while nobody reads.
    async fn taken_unread(buffers: Buffers) -> usize {
        let (sender, body) = source(1);
        let _unread = relay(body, buffers, Meter::off(), Arc::default());
        let mut taken = 0;
        while let Ok(sent) = tokio::time::timeout(
            Duration::from_millis(200),
            sender.send(Ok(Frame::data(Bytes::from_static(b"0123456789")))),
        )
        .await
        {
            sent.unwrap();
            taken += 1;
        }
        taken
    }

    #[tokio::test]
    async fn an_unread_answer_fills_its_buffer_and_no_more() {
        // One more piece waits in the pump's hand, and one in this test's own channel.
        assert_eq!(taken_unread(buffers(50, 1000)).await, 5 + 2);
        assert_eq!(taken_unread(buffers(1000, 30)).await, 3 + 2);
    }

    #[tokio::test]
    async fn everything_arrives_in_order_after_a_stall() {
        let (sender, body) = source(1);
        let mut out = relay(body, buffers(20, 1000), Meter::off(), Arc::default());
        let writer = tokio::spawn(async move {
            for n in 0..100u8 {
                sender.send(Ok(Frame::data(Bytes::from(vec![n; 7])))).await.unwrap();
            }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut all = Vec::new();
        while let Some(frame) = out.frame().await {
            all.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        writer.await.unwrap();
        assert_eq!(all, (0..100u8).flat_map(|n| [n; 7]).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_request_upstream() {
        let (sender, body) = source(1);
        drop(relay(body, buffers(20, 20), Meter::off(), Arc::default()));
        tokio::time::timeout(Duration::from_secs(5), sender.closed()).await.expect("the model's side is closed");
    }

    #[tokio::test]
    async fn a_model_that_breaks_off_breaks_the_answer() {
        let (sender, body) = source(2);
        let mut out = relay(body, buffers(20, 20), Meter::off(), Arc::default());
        sender.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
        sender.send(Err("cut".into())).await.unwrap();
        assert!(out.frame().await.unwrap().is_ok());
        assert!(out.frame().await.unwrap().is_err());
        assert!(out.frame().await.is_none());
    }
}
