//! Passes an answer on to the sandbox through a bounded buffer.
//!
//! ```text
//!  model --> pump (task: reads, meters) --> queue, bounded in bytes --> connection --> sandbox
//! ```
//!
//! The pump continues to read while the sandbox does not (it may be frozen), until [`Buffers`] are
//! full; then it stops, and the model's sender blocks. When the sandbox closes its side, the pump
//! ends as soon as it knows the answer's usage. This closes the request upstream, so that no unread
//! output is paid for.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::answer::{Body, BodyError};
use super::charge::Bill;
use super::meter::Meter;

/// Maximum silence of a model before its answer counts as lost (the real one pings every few
/// seconds).
const SILENCE: Duration = Duration::from_secs(15 * 60);
/// How long to read an answer without a reader, for its usage. A stream reports it first; a whole
/// message arrives when it is complete, which may take the model minutes.
const STREAM_RESIDUE: Duration = Duration::from_secs(1);
const MESSAGE_RESIDUE: Duration = Duration::from_secs(10 * 60);

/// Bytes that may wait for a sandbox to read them, one permit each.
#[derive(Clone, Debug)]
pub struct Buffers {
    /// Per connection.
    pub connection: usize,
    /// Shared: by the session's connections, the tenant's sessions, and all. A connection with an
    /// empty buffer may always hold one piece, so that readers do not wait for those who do not
    /// read.
    pub shared: [Arc<Semaphore>; 3],
}

/// One piece of an answer, and its permits, which are returned when the piece is sent.
struct Piece {
    bytes: Bytes,
    _held: Held,
}

type Held = (OwnedSemaphorePermit, Vec<OwnedSemaphorePermit>);

/// The body for the sandbox, and the pump that fills it. Run the pump beside the body: it ends with
/// the answer, or some time after the body was dropped.
pub fn relay(answer: Body, buffers: Buffers, meter: Meter, bill: Bill) -> (Body, impl Future<Output = ()> + Send) {
    let (sender, receiver) = unbounded_channel();
    (Queue { receiver, over: false }.boxed_unsync(), pump(answer, buffers, meter, bill, sender))
}

async fn pump(
    mut answer: Body,
    buffers: Buffers,
    mut meter: Meter,
    mut bill: Bill,
    sender: UnboundedSender<Result<Piece, BodyError>>,
) {
    let own = Arc::new(Semaphore::new(buffers.connection));
    // Deadline for reading without a reader, to learn the usage.
    let mut residue: Option<Instant> = None;
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(SILENCE, answer.frame()) => frame,
            () = sender.closed(), if residue.is_none() => {
                if bill.begun() || !meter.counts() {
                    break;
                }
                let rest = if meter.streams() { STREAM_RESIDUE } else { MESSAGE_RESIDUE };
                residue = Some(Instant::now() + rest);
                continue;
            }
            () = until(residue) => break,
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
        // Before the sandbox receives it: what it received is counted, whichever process is killed.
        bill.add(meter.feed(&bytes)).await;
        if residue.is_some() {
            if bill.begun() {
                break;
            }
            continue;
        }
        let held = tokio::select! {
            held = room(&own, &buffers, bytes.len()) => held,
            // The next round decides whether to continue reading.
            () = sender.closed() => continue,
        };
        let Some(held) = held else { break };
        let _ = sender.send(Ok(Piece { bytes, _held: held }));
    }
    bill.add(meter.finish()).await;
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits until `length` bytes fit all buffers. A piece larger than a buffer waits for all of it.
async fn room(own: &Arc<Semaphore>, buffers: &Buffers, length: usize) -> Option<Held> {
    let permits = u32::try_from(length.min(buffers.connection)).unwrap_or(u32::MAX);
    let alone = own.available_permits() == buffers.connection;
    let first = Arc::clone(own).acquire_many_owned(permits).await.ok()?;
    let mut held = Vec::new();
    if !alone {
        for shared in &buffers.shared {
            held.push(Arc::clone(shared).acquire_many_owned(permits).await.ok()?);
        }
    }
    Some((first, held))
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
    use crate::charge::Counters;

    fn source(limit: usize) -> (mpsc::Sender<Result<Frame<Bytes>, BodyError>>, Body) {
        let (sender, receiver) = mpsc::channel(limit);
        (sender, StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed_unsync())
    }

    fn buffers(connection: usize, session: usize) -> Buffers {
        Buffers { connection, shared: [session, 1 << 20, 1 << 20].map(|size| Arc::new(Semaphore::new(size))) }
    }

    fn started(answer: Body, buffers: Buffers, meter: Meter) -> (Body, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        let (body, pump) = relay(answer, buffers, meter, Bill::new(Arc::clone(&counters), None));
        tokio::spawn(pump);
        (body, counters)
    }

    /// How many pieces of 10 bytes the pump takes without a reader.
    async fn taken_unread(buffers: Buffers) -> usize {
        let (sender, body) = source(1);
        let _unread = started(body, buffers, Meter::off());
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
        // The pump holds one more piece, and this test's channel one.
        assert_eq!(taken_unread(buffers(50, 1000)).await, 5 + 2);
        // The first one needs no permit of the session.
        assert_eq!(taken_unread(buffers(1000, 30)).await, 1 + 3 + 2);
    }

    #[tokio::test]
    async fn everything_arrives_in_order_after_a_stall() {
        let (sender, body) = source(1);
        let mut out = started(body, buffers(20, 1000), Meter::off()).0;
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
        drop(started(body, buffers(20, 20), Meter::off()));
        tokio::time::timeout(Duration::from_secs(5), sender.closed()).await.expect("the model's side is closed");
    }

    #[tokio::test]
    async fn a_model_that_breaks_off_breaks_the_answer() {
        let (sender, body) = source(2);
        let mut out = started(body, buffers(20, 20), Meter::off()).0;
        sender.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
        sender.send(Err("cut".into())).await.unwrap();
        assert!(out.frame().await.unwrap().is_ok());
        assert!(out.frame().await.unwrap().is_err());
        assert!(out.frame().await.is_none());
    }

    #[tokio::test]
    async fn one_that_reads_never_waits_for_those_that_do_not() {
        let full = buffers(1000, 10);
        let _all = Arc::clone(&full.shared[0]).acquire_many_owned(10).await.unwrap();
        let (sender, body) = source(1);
        let (mut out, _) = started(body, full, Meter::off());
        for n in 0..5u8 {
            sender.send(Ok(Frame::data(Bytes::from(vec![n; 10])))).await.unwrap();
            let frame = tokio::time::timeout(Duration::from_secs(5), out.frame()).await.expect("it goes on");
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap()[0], n);
        }
    }

    #[tokio::test]
    async fn what_an_answer_used_is_counted_though_its_reader_left_before_it_came() {
        let (sender, body) = source(1);
        let (out, counters) = started(body, buffers(1000, 1000), Meter::new(200, "application/json"));
        drop(out);
        let message = br#"{"type":"message","usage":{"input_tokens":3,"output_tokens":4}}"#;
        sender.send(Ok(Frame::data(Bytes::from_static(message)))).await.unwrap();
        drop(sender);
        let used = async {
            while counters.snapshot(uuid::Uuid::nil()).output_tokens != 4 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), used).await.expect("counted");
        assert_eq!(counters.snapshot(uuid::Uuid::nil()).requests, 1);
    }
}
