//! What the requests of a tenant cost at this moment, and the refusal when it is too much: 429 when the tenant has its share,
//! 503 when all of them together have everything.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::MatchedPath;
use axum::http::Method;

use super::connections;
use super::error::ApiError;
use crate::config::{Live, ServerConfig};
use crate::sessions::quota::admission::{Admission, Admissions};
use crate::sessions::quota::shares::{Bounds, Holder, Over, Share, Shares};

/// Bytes in one MiB.
const MIB: u64 = 1 << 20;
/// Seconds after which a client may try again.
const RETRY_MEMORY_S: u64 = 2;
const RETRY_STREAM_S: u64 = 5;
/// How long an answer waits until those before it were made and sent.
const WAIT: Duration = Duration::from_secs(10);
/// Bytes that making one page of a list takes at most; once it is made, its own size counts.
const LIST: u64 = 16 * MIB;
/// The same of a list of files, whose paths and times are put together before they are written as JSON.
const FILES: u64 = 48 * MIB;
/// The same of the output of a command.
const OUTPUT: u64 = 4 * MIB;
/// Answers of one tenant that are read from the disk or the database at the same time; the next ones wait.
const MADE_AT_ONCE: usize = 16;
/// An answer of at most so many bytes counts nothing: what its connection is counted for is enough.
const SMALL: u64 = 64 << 10;

/// What a request occupies besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Request,
    Stream,
}

/// What everybody uses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Load {
    config: Live,
    /// Connections there may be.
    connections: usize,
    working: Shares<(Holder, Kind)>,
    memory: Shares<Holder>,
    made: Admissions<Holder>,
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Working {
    _place: Share<(Holder, Kind)>,
    /// While the answer is made.
    turn: Option<Admission<Holder>>,
    answer: Option<Memory>,
    /// It changes nothing: its answer can be had again.
    reads: bool,
    holder: Holder,
    load: Load,
}

/// Bytes that are held for a request.
#[derive(Debug)]
pub struct Memory {
    share: Share<Holder>,
    load: Load,
}

impl Load {
    pub fn new(config: Live, bounds: &connections::Bounds) -> Self {
        Self {
            config,
            connections: bounds.connections,
            working: Shares::default(),
            memory: Shares::default(),
            made: Admissions::new(MADE_AT_ONCE),
        }
    }

    /// Counts a request until the value is dropped, which is when its answer was sent.
    ///
    /// # Errors
    /// 429 when the tenant has as many as it may have, 503 when there is no room beside those of all others.
    pub async fn begin(
        &self,
        holder: &Holder,
        method: &Method,
        path: Option<&MatchedPath>,
    ) -> Result<Working, ApiError> {
        let path = path.map_or("", MatchedPath::as_str);
        let kind = if is_stream(method, path) { Kind::Stream } else { Kind::Request };
        let server = &self.config.now().server;
        let each = u64::from(match kind {
            Kind::Stream => server.streams_per_tenant,
            Kind::Request => server.concurrent_requests_per_tenant,
        });
        let bounds = Bounds { each, all: self.connections as u64 };
        let place = self.working.take(&(holder.clone(), kind), 1, bounds).map_err(|over| match (over, kind) {
            (Over::Own, Kind::Stream) => ApiError::too_many(
                format!(
                    "{holder} has {each} streams of events open, the most that one tenant may have \
                     (server.streams_per_tenant). Close one and try again"
                ),
                RETRY_STREAM_S,
            ),
            (Over::Own, Kind::Request) => ApiError::too_many(
                format!(
                    "{holder} has {each} requests that are being answered, the most that one tenant may have at once \
                     (server.concurrent_requests_per_tenant)"
                ),
                RETRY_MEMORY_S,
            ),
            (Over::All, _) => ApiError::unavailable(
                format!(
                    "requests of all tenants use the {} connections there are, or so many that {holder} may have no more \
                     (server.max_connections)",
                    self.connections
                ),
                RETRY_STREAM_S,
            ),
        })?;
        let reads = kind == Kind::Request && (method == Method::GET || method == Method::HEAD);
        let turn = if reads {
            let turn = tokio::time::timeout(WAIT, self.made.wait(holder)).await;
            Some(turn.map_err(|_| {
                ApiError::too_many(
                    format!(
                        "{MADE_AT_ONCE} answers to {holder} are being made, and more wait. Send fewer requests at once"
                    ),
                    RETRY_MEMORY_S,
                )
            })?)
        } else {
            None
        };
        let answer = match needs(method, path) {
            0 => None,
            bytes => Some(self.answer(holder, bytes, server).await?),
        };
        let bounds = memory(server);
        // What its unread answers use already; who deletes something is let through.
        if !reads && method != Method::DELETE && self.memory.of(holder) >= bounds.each {
            return Err(refusal(holder, Over::Own, bounds));
        }
        Ok(Working { _place: place, turn, answer, reads, holder: holder.clone(), load: self.clone() })
    }

    /// Memory for a body of `bytes`: itself, and what it is decoded to.
    ///
    /// # Errors
    /// 429 when the tenant's requests have their share, 503 when those of all have everything.
    pub fn body(&self, holder: &Holder, bytes: u64) -> Result<Memory, ApiError> {
        let bounds = memory(&self.config.now().server);
        let share = self.memory.take(holder, 2 * bytes, bounds).map_err(|over| refusal(holder, over, bounds))?;
        Ok(Memory { share, load: self.clone() })
    }

    async fn answer(&self, holder: &Holder, bytes: u64, server: &ServerConfig) -> Result<Memory, ApiError> {
        let bounds = memory(server);
        let share = self.memory.take_within(holder, bytes, bounds, WAIT).await;
        let share = share.map_err(|over| refusal(holder, over, bounds))?;
        Ok(Memory { share, load: self.clone() })
    }
}

impl Working {
    /// The answer is there and has `bytes`, or is made while it is sent (`None`). From now on it counts as it is, until the
    /// value is dropped.
    ///
    /// # Errors
    /// 429 or 503 for an answer that was only read, when the tenant's memory is in use. That of a change is given in any case.
    pub fn answered(&mut self, bytes: Option<u64>) -> Result<(), ApiError> {
        self.turn = None;
        let Some(bytes) = bytes else { return Ok(()) };
        if let Some(answer) = &mut self.answer {
            answer.share.set(bytes);
        } else if bytes > SMALL {
            let bounds = memory(&self.load.config.now().server);
            let share = if self.reads {
                let share = self.load.memory.take(&self.holder, bytes, bounds);
                share.map_err(|over| refusal(&self.holder, over, bounds))?
            } else {
                self.load.memory.take_anyway(&self.holder, bytes)
            };
            self.answer = Some(Memory { share, load: self.load.clone() });
        }
        Ok(())
    }
}

impl Memory {
    /// Makes room for `bytes` more of the body.
    ///
    /// # Errors
    /// As [`Load::body`].
    pub fn grow(&mut self, bytes: u64) -> Result<(), ApiError> {
        let bounds = memory(&self.load.config.now().server);
        self.share.grow(2 * bytes, bounds).map_err(|over| refusal(self.share.holder(), over, bounds))
    }
}

/// Memory that is given back when the last clone is dropped, for what travels in the extensions of a request.
pub type HeldMemory = Arc<Memory>;

fn memory(server: &ServerConfig) -> Bounds {
    Bounds { each: server.request_memory_per_tenant, all: server.request_memory }
}

fn refusal(holder: &Holder, over: Over, bounds: Bounds) -> ApiError {
    match over {
        Over::Own => ApiError::too_many(
            format!(
                "the requests of {holder} that are being answered use the {} MiB of memory that one tenant's may use \
                 (server.request_memory_per_tenant; a body counts twice). Send fewer at once, and try again",
                bounds.each / MIB
            ),
            RETRY_MEMORY_S,
        ),
        Over::All => ApiError::unavailable(
            format!(
                "the requests of all tenants use the {} MiB of memory there are for them, or so much that {holder} may have \
                 no more (server.request_memory); try again",
                bounds.all / MIB
            ),
            RETRY_MEMORY_S,
        ),
    }
}

/// Routes whose answer is a stream of events.
fn is_stream(method: &Method, path: &str) -> bool {
    match path.rsplit('/').next() {
        Some("stream") => method == Method::GET,
        Some("messages") => method == Method::POST,
        _ => false,
    }
}

/// Bytes that making the answer may take, of routes whose answers are made of what clients and agents wrote and may have
/// megabytes. Others read one row or one file: a turn bounds how many are made, and what was made counts as it is.
fn needs(method: &Method, path: &str) -> u64 {
    match (method.as_str(), path.rsplit('/').next().unwrap_or_default()) {
        ("GET" | "HEAD", "files") => FILES,
        (
            "GET" | "HEAD",
            "messages" | "events" | "versions" | "queue" | "sessions" | "agents" | "attachments" | "credentials"
            | "api-keys" | "logs",
        ) => LIST,
        ("POST", "exec") => OUTPUT,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_occupies() {
        for (method, path, stream, bytes) in [
            (Method::GET, "/api/sessions/{id}/stream", true, 0),
            (Method::POST, "/api/sessions/{id}/messages", true, 0),
            (Method::GET, "/api/sessions/{id}/messages", false, LIST),
            (Method::GET, "/api/sessions/{id}/events", false, LIST),
            (Method::GET, "/api/agents/{name}/versions", false, LIST),
            (Method::POST, "/api/queue", false, 0),
            (Method::GET, "/api/sessions", false, LIST),
            (Method::GET, "/api/sessions/{id}/files", false, FILES),
            (Method::GET, "/api/agents/{name}", false, 0),
            (Method::POST, "/api/sessions/{id}/exec", false, OUTPUT),
            (Method::GET, "", false, 0),
        ] {
            assert_eq!((is_stream(&method, path), needs(&method, path)), (stream, bytes), "{method} {path}");
        }
    }
}
