//! The offline model: a scripted Messages API in the gateway, so that the real Claude Code runs
//! real tools without network and key.
//!
//! ```text
//!  body --conversation--> last text, step --script | plain--> plan: acts --render--> events
//!       --> SSE or JSON
//! ```
//!
//! Everything is pure except this file, which reads bodies, waits, and counts attempts (so that
//! `@error 500 x2` can succeed later). The step of a script follows from the conversation alone, so
//! a resumed session continues at its step.

pub mod conversation;
pub mod plain;
pub mod plan;
pub mod render;
pub mod script;

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use self::conversation::Conversation;
use self::plan::{Act, plan};
use self::render::{Assembly, Event, Next, Render};
use super::admit::Route;
use super::answer::{Body, BodyError, error, error_kind, json};
use super::upstream::{Call, too_large};

/// Maximum bytes of a body (the API's limit), and of an answer that is not streamed.
const MAX_BODY: usize = 32 << 20;
/// Steps whose attempts are remembered; the oldest is forgotten first.
const MAX_REMEMBERED: usize = 1024;
/// Bytes of events that are sent together when there is no pause between them.
const BATCH: usize = 8 << 10;
/// Events of a whole answer after which the task yields.
const TURN: usize = 256;
/// Delay between the last event and a scripted cut, so that the event is sent before the connection
/// closes.
const BEFORE_CUT: Duration = Duration::from_millis(20);

/// The model's only state: the number of attempts per step.
#[derive(Debug, Default)]
pub struct Offline {
    attempts: Mutex<Attempts>,
}

#[derive(Debug, Default)]
struct Attempts {
    counts: HashMap<u64, u32>,
    order: VecDeque<u64>,
}

impl Attempts {
    /// Counts an attempt and returns the number of earlier ones.
    fn earlier(&mut self, step: u64) -> u32 {
        if let Some(count) = self.counts.get_mut(&step) {
            *count += 1;
            return *count - 1;
        }
        if self.order.len() >= MAX_REMEMBERED {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.counts.remove(&oldest));
        }
        self.order.push_back(step);
        self.counts.insert(step, 1);
        0
    }
}

impl Offline {
    pub async fn send<B>(&self, call: Call<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Call { route, body, session, room, .. } = call;
        match route {
            Route::Hello => json(StatusCode::OK, &json!({"message": "hello"})),
            Route::Models(None) => {
                let model = model("offline");
                json(
                    StatusCode::OK,
                    &json!({"data": [model], "has_more": false, "first_id": "offline", "last_id": "offline"}),
                )
            }
            Route::Models(Some(id)) => json(StatusCode::OK, &model(&id)),
            Route::CountTokens | Route::Messages => {
                let (body, _held) = match collect(body, &room).await {
                    Ok(body) => body,
                    Err(refusal) => return refusal,
                };
                let conversation = match Conversation::parse(&body) {
                    Ok(conversation) => conversation,
                    Err(why) => return error(StatusCode::BAD_REQUEST, &why),
                };
                if route == Route::CountTokens {
                    return json(StatusCode::OK, &json!({"input_tokens": conversation.tokens}));
                }
                drop(body);
                self.answer(session, &conversation).await
            }
        }
    }

    async fn answer(&self, session: Uuid, conversation: &Conversation) -> Response<Body> {
        let mut hasher = DefaultHasher::new();
        (session, conversation.messages, conversation.step, &conversation.last).hash(&mut hasher);
        let step = hasher.finish();
        let attempt = self.attempts.lock().unwrap_or_else(PoisonError::into_inner).earlier(step);
        let acts = plan(conversation, attempt);
        // A fault before the first text has its own status; pauses before it are kept.
        let fault = acts.iter().position(|act| !matches!(act, Act::Delay(_) | Act::Hang(_)));
        if let Some(Act::Fail { status, message }) = fault.and_then(|at| acts.get(at)) {
            for act in &acts {
                if let Act::Hang(pause) = act {
                    tokio::time::sleep(*pause).await;
                }
            }
            return failure(*status, message);
        }
        let render = Render::new(acts, conversation, || Uuid::new_v4().simple().to_string());
        if conversation.stream { stream(render) } else { whole(render).await }
    }
}

fn model(id: &str) -> serde_json::Value {
    json!({"type": "model", "id": id, "display_name": "Offline model of ashd", "created_at": "2026-01-01T00:00:00Z"})
}

/// An API error without the gateway's header that stops retries.
fn failure(status: u16, message: &str) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let detail = json!({"type": error_kind(status.as_u16()), "message": message});
    json(status, &json!({"type": "error", "error": detail}))
}

/// Reads a body into memory, within the session's memory limit.
async fn collect<B>(body: B, room: &Arc<Semaphore>) -> Result<(BytesMut, Vec<OwnedSemaphorePermit>), Response<Body>>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(body);
    let mut bytes = BytesMut::new();
    let mut held = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|why| error(StatusCode::BAD_REQUEST, &format!("body: {}", why.into())))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(too_large());
        }
        // Does not wait: two half-read bodies would wait for each other.
        let permits = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let permit = Arc::clone(room).try_acquire_many_owned(permits);
        held.push(
            permit.map_err(|_| failure(529, "this session's concurrent requests exceed its memory in the gateway"))?,
        );
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, held))
}

fn stream<I: FnMut() -> String + Send + 'static>(render: Render<I>) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        // Ends early when the client is gone.
        let _ = send_events(render, &sender).await;
    });
    let mut response = Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

type Events = mpsc::Sender<Result<Frame<Bytes>, BodyError>>;

async fn send_events<I: FnMut() -> String>(render: Render<I>, sender: &Events) -> Result<(), ()> {
    let mut batch = BytesMut::new();
    let flush = async |batch: &mut BytesMut| {
        if batch.is_empty() {
            return Ok(());
        }
        sender.send(Ok(Frame::data(batch.split().freeze()))).await.map_err(drop)
    };
    for next in render {
        match next {
            Next::Event(event) => {
                write_event(&mut batch, &event);
                if batch.len() >= BATCH {
                    flush(&mut batch).await?;
                }
            }
            Next::Wait(pause) => {
                flush(&mut batch).await?;
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = sender.closed() => return Err(()),
                }
            }
            Next::Cut => {
                flush(&mut batch).await?;
                tokio::time::sleep(BEFORE_CUT).await;
                return sender.send(Err("scripted cut".into())).await.map_err(drop);
            }
        }
    }
    flush(&mut batch).await
}

fn write_event(batch: &mut BytesMut, event: &Event) {
    let data = serde_json::to_string(event).expect("events serialise");
    for part in ["event: ", event.name(), "\ndata: ", &data, "\n\n"] {
        batch.extend_from_slice(part.as_bytes());
    }
}

async fn whole<I: FnMut() -> String>(render: Render<I>) -> Response<Body> {
    let mut assembly = Assembly::default();
    let mut bytes = 0;
    for (at, next) in render.enumerate() {
        if at % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        match next {
            Next::Event(event) => {
                bytes += event.text();
                if bytes > MAX_BODY {
                    let most = MAX_BODY >> 20;
                    return error(
                        StatusCode::BAD_REQUEST,
                        &format!("the answer is longer than {most} MiB; request a stream"),
                    );
                }
                if let Err(fault) = assembly.take(event) {
                    return json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"type": "error", "error": fault}));
                }
            }
            Next::Wait(pause) => tokio::time::sleep(pause).await,
            Next::Cut => {
                let cut = futures_util::stream::iter([Err::<Frame<Bytes>, BodyError>("scripted cut".into())]);
                return Response::new(StreamBody::new(cut).boxed_unsync());
            }
        }
    }
    json(StatusCode::OK, &assembly.into_message())
}
