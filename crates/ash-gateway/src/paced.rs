//! A body limited to its session's rate.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::pace::Pace;

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes each piece from the session's bucket before it reads the next one.
pub struct Paced<B> {
    body: B,
    pace: Arc<Pace>,
    wait: Option<Wait>,
}

impl<B> Paced<B> {
    pub fn new(body: B, pace: Arc<Pace>) -> Self {
        Self { body, pace, wait: None }
    }
}

impl<B: std::fmt::Debug> std::fmt::Debug for Paced<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Paced").field(&self.body).finish()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
        {
            self.wait = self.pace.debit(bytes.len() as f64).map(|wait| Box::pin(tokio::time::sleep(wait)) as Wait);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
