//! Removes keys from what the model's side sends: a proxy in front of a model may quote the key
//! that it refuses.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Frame;
use memchr::memmem;

use super::answer::{Body, BodyError};

/// Shorter values are too likely to be ordinary words.
const LEAST: usize = 8;

/// What a sandbox must not see. Never printed.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[Bytes]>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    pub fn new<'a>(secrets: impl Iterator<Item = &'a [u8]>) -> Self {
        Self(secrets.filter(|secret| secret.len() >= LEAST).map(Bytes::copy_from_slice).collect())
    }

    /// Whether `bytes` contains one.
    pub fn are_in(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|secret| memmem::find(bytes, secret).is_some())
    }

    /// Overwrites each with as many asterisks, so that lengths stay right.
    fn mask(&self, bytes: &mut [u8]) {
        for secret in self.0.iter() {
            let mut from = 0;
            // Continue after the match: a secret of asterisks would be found again.
            while let Some(at) = memmem::find(&bytes[from..], secret) {
                let end = from + at + secret.len();
                bytes[from + at..end].fill(b'*');
                from = end;
            }
        }
    }

    /// Bytes at the end that may be the beginning of a secret.
    fn unfinished(&self, bytes: &[u8]) -> usize {
        let longest = self.0.iter().map(Bytes::len).max().unwrap_or(0).saturating_sub(1).min(bytes.len());
        (1..=longest)
            .rev()
            .find(|length| self.0.iter().any(|secret| secret.starts_with(&bytes[bytes.len() - length..])))
            .unwrap_or(0)
    }
}

/// The body without secrets.
pub fn masked(body: Body, secrets: Secrets) -> Body {
    if secrets.0.is_empty() {
        body
    } else {
        Masked { body, secrets, held: BytesMut::new(), over: false }.boxed_unsync()
    }
}

struct Masked {
    body: Body,
    secrets: Secrets,
    held: BytesMut,
    over: bool,
}

impl hyper::body::Body for Masked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while !self.over {
            let this = &mut *self;
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    this.held.extend_from_slice(&bytes);
                    this.secrets.mask(&mut this.held);
                    let ready = this.held.len() - this.secrets.unfinished(&this.held);
                    if ready > 0 {
                        return Poll::Ready(Some(Ok(Frame::data(this.held.split_to(ready).freeze()))));
                    }
                }
                Some(Err(error)) => {
                    this.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.over = true;
                    if !this.held.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(this.held.split().freeze()))));
                    }
                }
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    async fn passed(text: &str, size: usize, secrets: &[&str]) -> String {
        let pieces: Vec<Bytes> = text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        let frames = pieces.into_iter().map(|piece| Ok::<_, BodyError>(Frame::data(piece)));
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let secrets = Secrets::new(secrets.iter().map(|secret| secret.as_bytes()));
        let bytes = masked(body, secrets).collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn secrets_are_masked_however_they_are_cut_into_pieces() {
        let text = "no sk-ant-1234 and sk-ant-sk-ant-1234, s3cret-header sk-ant-123";
        let expected = "no *********** and sk-ant-***********, ************* sk-ant-123";
        for size in 1..=text.len() {
            let got = passed(text, size, &["sk-ant-1234", "s3cret-header", "short"]).await;
            assert_eq!(got, expected, "pieces of {size}");
        }
        assert_eq!(passed("a short word", 3, &["short"]).await, "a short word");
        assert!(!format!("{:?}", Secrets::new(std::iter::once(b"12345678".as_slice()))).contains("1234"));
    }
}
