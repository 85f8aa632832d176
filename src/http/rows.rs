//! Lists as answers. The JSON is sent a few rows at a time, so only these are in memory.
//!
//! ```text
//!   places (row, bytes) --cut at a page's bytes--> groups --read, written as JSON--> chunks of the body
//!                                                  one huge row --its text in pieces-->
//! ```

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use uuid::Uuid;

use super::error::ApiError;
use crate::store::{LARGE, Listed, Place, Store, StoreError};
use ash_model::TenantId;

/// Bytes of content after which a page of a history ends early.
pub const PAGE_BYTES: u64 = 8 << 20;
/// Most rows read at once; fewer if they are large.
const GROUP: usize = 256;
const GROUP_BYTES: u64 = 512 << 10;

/// Splits off the places of one page and tells whether there were more. A page ends after
/// [`PAGE_BYTES`] and has at least one row.
pub fn page(mut places: Vec<Place>) -> (Vec<Place>, bool) {
    let mut bytes = 0;
    let fit = places.iter().take_while(|place| {
        let first = bytes == 0;
        bytes += place.bytes.max(1);
        first || bytes <= PAGE_BYTES
    });
    let fit = fit.count();
    let truncated = fit < places.len();
    places.truncate(fit);
    (places, truncated)
}

/// The end of the JSON, after the rows of a page.
pub fn tail(truncated: bool) -> &'static str {
    if truncated { ",\"truncated\":true" } else { "" }
}

/// Sends `{"<name>":[<rows>]<tail>}`. `V` is the client's view of a row.
///
/// # Errors
/// Failures before the first rows. A later failure aborts the transfer, so that a partial list does
/// not look complete.
pub async fn list<T, V>(
    store: &Store,
    tenant: &TenantId,
    name: &str,
    places: Vec<Place>,
    tail: &str,
) -> Result<Response, ApiError>
where
    T: Listed + Sync,
    V: Serialize + From<T> + 'static,
{
    let mut rows = Rows {
        store: store.clone(),
        tenant: tenant.clone(),
        places: places.into(),
        text: None,
        first: true,
        tail: Some(format!("]{tail}}}")),
        of: PhantomData::<fn(T) -> V>,
    };
    let mut head = format!("{{\"{name}\":[").into_bytes();
    if let Some(first) = rows.next().await? {
        head.extend_from_slice(&first);
    }
    let rest = stream::try_unfold(rows, |mut rows| async move {
        let chunk = rows.next().await.map_err(|error| {
            tracing::warn!(%error, "list cut short");
            io::Error::other(error)
        })?;
        Ok::<_, io::Error>(chunk.map(|chunk| (chunk, rows)))
    });
    let first = stream::iter([Ok(Bytes::from(head))]);
    let body = Body::from_stream(futures_util::StreamExt::chain(first, rest));
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

struct Rows<T, V> {
    store: Store,
    tenant: TenantId,
    places: VecDeque<Place>,
    /// A row whose text is sent in pieces.
    text: Option<Text>,
    first: bool,
    tail: Option<String>,
    of: PhantomData<fn(T) -> V>,
}

struct Text {
    place: Place,
    from: u64,
    /// The JSON after it.
    after: String,
}

impl<T: Listed, V: Serialize + From<T>> Rows<T, V> {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            if let Some(text) = self.text.take() {
                return self.piece(text).await.map(Some);
            }
            let Some(place) = self.places.front() else {
                return Ok(self.tail.take().map(Bytes::from));
            };
            let chunk = if T::TEXT.is_some() && place.bytes > LARGE as u64 {
                self.large().await?
            } else {
                self.group().await?
            };
            // The rows may have been deleted meanwhile.
            if !chunk.is_empty() {
                return Ok(Some(chunk.into()));
            }
        }
    }

    async fn group(&mut self) -> Result<Vec<u8>, StoreError> {
        let (mut count, mut bytes) = (0, 0);
        for place in self.places.iter().take(GROUP) {
            bytes += place.bytes;
            if count > 0 && bytes > GROUP_BYTES {
                break;
            }
            count += 1;
        }
        let places: Vec<Place> = self.places.drain(..count).collect();
        if T::LINE.is_some() {
            let lines = self.store.lines_at::<T>(&self.tenant, &places).await?;
            let mut chunk = Vec::with_capacity(lines.len() + 1);
            if !lines.is_empty() {
                self.comma(&mut chunk);
                chunk.extend_from_slice(lines.as_bytes());
            }
            return Ok(chunk);
        }
        let rows: Vec<T> = self.store.rows_at(&self.tenant, &places).await?;
        let mut chunk = Vec::new();
        for row in rows {
            self.comma(&mut chunk);
            serde_json::to_writer(&mut chunk, &V::from(row)).map_err(unwritable)?;
        }
        Ok(chunk)
    }

    /// The JSON of a row up to its text.
    async fn large(&mut self) -> Result<Vec<u8>, StoreError> {
        let Some(place) = self.places.pop_front() else { return Ok(Vec::new()) };
        let mark = Uuid::new_v4().to_string();
        let Some(row) = self.store.row_with_text::<T>(&self.tenant, place, &mark).await? else { return Ok(Vec::new()) };
        let json = serde_json::to_string(&V::from(row)).map_err(unwritable)?;
        let mut chunk = Vec::new();
        self.comma(&mut chunk);
        let (before, after) = json.split_once(&mark).unwrap_or((&json, ""));
        chunk.extend_from_slice(before.as_bytes());
        self.text = Some(Text { place, from: 0, after: after.to_owned() });
        Ok(chunk)
    }

    async fn piece(&mut self, text: Text) -> Result<Bytes, StoreError> {
        let piece = self.store.text_piece::<T>(&self.tenant, text.place, text.from).await?;
        let piece =
            piece.ok_or(StoreError::Unreadable { what: "list", why: "a row was deleted meanwhile".to_owned() })?;
        if piece.is_empty() {
            return Ok(text.after.into());
        }
        self.text = Some(Text { from: text.from + piece.len() as u64, ..text });
        Ok(escaped(&piece).into())
    }

    fn comma(&mut self, chunk: &mut Vec<u8>) {
        if !std::mem::take(&mut self.first) {
            chunk.push(b',');
        }
    }
}

fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Unreadable { what: "list", why: error.to_string() }
}

/// A piece of a text as JSON string characters. It may end within a character.
fn escaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 4);
    let mut copied = 0;
    for (at, &byte) in text.iter().enumerate() {
        let short = match byte {
            b'"' => b'"',
            b'\\' => b'\\',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x20.. => continue,
            _ => 0,
        };
        out.extend_from_slice(&text[copied..at]);
        copied = at + 1;
        if short == 0 {
            out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
        } else {
            out.extend_from_slice(&[b'\\', short]);
        }
    }
    out.extend_from_slice(&text[copied..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::messages::MessageView;
    use crate::store::{Commit, Message, Role, Session};
    use ash_model::SessionStatus;

    #[tokio::test]
    async fn rows_of_every_size_are_one_json_document() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let session = Session::new(Uuid::new_v4(), TenantId::default_tenant(), "a", SessionStatus::Active);
        store.session_insert(&session).await.unwrap();
        let long = |n: usize| format!(r#"{{"n":{n},"t":"{}"}}"#, "ä\u{2028}\\n€🎉".repeat(n));
        let texts: Vec<String> = [0, 1, 200_000, 2, 60_000, 60_000, 3].map(long).into();
        let mut commit = Commit::of(&session);
        commit.messages = texts.iter().map(|text| (Role::Assistant, text.as_str().into())).collect();
        store.commit(commit).await.unwrap();
        let places =
            store.message_places(&session.tenant, session.id, crate::store::Window::first(1000)).await.unwrap();
        assert_eq!(
            places.iter().map(|p| p.bytes as usize).collect::<Vec<_>>(),
            texts.iter().map(String::len).collect::<Vec<_>>()
        );
        let answer = list::<Message, MessageView>(&store, &session.tenant, "messages", places, ",\"truncated\":true")
            .await
            .unwrap();
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let got: Vec<&str> =
            json["messages"].as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap()).collect();
        assert!(got == texts);
        assert_eq!(json["truncated"], true);
        assert_eq!(json["messages"][2]["sequence"], 3);
        let none = list::<Message, MessageView>(&store, &session.tenant, "messages", vec![], "").await.unwrap();
        assert_eq!(axum::body::to_bytes(none.into_body(), 100).await.unwrap(), r#"{"messages":[]}"#);
        // Places of another tenant give no rows.
        let places =
            store.message_places(&session.tenant, session.id, crate::store::Window::first(1000)).await.unwrap();
        let other =
            list::<Message, MessageView>(&store, &"acme".parse().unwrap(), "messages", places, "").await.unwrap();
        assert_eq!(axum::body::to_bytes(other.into_body(), 100).await.unwrap(), r#"{"messages":[]}"#);
        // 8 MiB are a page, which has at least one row.
        let places =
            store.message_places(&session.tenant, session.id, crate::store::Window::first(1000)).await.unwrap();
        let page_of = |bytes: &[u64]| {
            let of = |bytes: &u64| {
                let mut place = places[0];
                place.bytes = *bytes;
                place
            };
            let places = bytes.iter().map(of).collect();
            let (page, truncated) = page(places);
            (page.len(), truncated)
        };
        for (bytes, expected) in [
            (&[][..], (0, false)),
            (&[PAGE_BYTES][..], (1, false)),
            (&[PAGE_BYTES, 1][..], (1, true)),
            (&[PAGE_BYTES * 9][..], (1, false)),
            (&[PAGE_BYTES * 9, 1][..], (1, true)),
            (&[1, PAGE_BYTES][..], (1, true)),
            (&[1, PAGE_BYTES - 1, 0][..], (2, true)),
        ] {
            assert_eq!(page_of(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn characters_are_escaped_as_json_wants_them() {
        let text: String = (0..0x80u8).map(char::from).chain("äöü\u{2028}".chars()).collect();
        let json = format!("\"{}\"", String::from_utf8(escaped(text.as_bytes())).unwrap());
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
