//! A body that holds a guard until it is sent or dropped. It is sent in pieces, because the HTTP
//! server takes over all bytes of a frame at once: with a single frame, the guard would be gone
//! before the client has read it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// Bytes given to the HTTP server at a time.
const PIECE: usize = 64 << 10;

struct Held<G> {
    body: Body,
    /// The rest of the current frame.
    rest: Bytes,
    guard: Option<G>,
}

/// The same body; `guard` is dropped after or with its last piece.
pub fn hold<G: Send + Unpin + 'static>(body: Body, guard: G) -> Body {
    Body::new(Held { body, rest: Bytes::new(), guard: Some(guard) })
}

impl<G: Unpin> HttpBody for Held<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Some(Err(why)) => return Poll::Ready(Some(Err(why))),
                None => {
                    this.guard = None;
                    return Poll::Ready(None);
                }
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn the_guard_lives_as_long_as_the_body() {
        let guard = Arc::new(());
        let body = hold(Body::from("abc"), Arc::clone(&guard));
        assert_eq!((body.size_hint().exact(), Arc::strong_count(&guard)), (Some(3), 2));
        assert_eq!(axum::body::to_bytes(body, 9).await.unwrap(), "abc");
        assert_eq!(Arc::strong_count(&guard), 1);
        drop(hold(Body::from("abc"), Arc::clone(&guard)));
        assert_eq!(Arc::strong_count(&guard), 1);
    }

    #[tokio::test]
    async fn a_large_body_is_held_until_its_last_piece_is_taken() {
        use http_body_util::BodyExt;
        let guard = Arc::new(());
        let whole: Vec<u8> = (0..3 * PIECE + 1).map(|n| n as u8).collect();
        let mut body = hold(Body::from(whole.clone()), Arc::clone(&guard));
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE);
            got.extend_from_slice(&piece);
            let left = whole.len() - got.len();
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(left as u64), left == 0));
            if left > 0 {
                assert_eq!(Arc::strong_count(&guard), 2, "{left} bytes are still to be read");
            }
        }
        assert!(got == whole);
        assert_eq!(Arc::strong_count(&guard), 1);
    }
}
