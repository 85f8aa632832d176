//! Resources of running requests, and the refusal of more: 429 when the tenant has used its share,
//! 503 when all tenants together have used everything.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::MatchedPath;
use axum::http::Method;

use super::connections;
use super::error::ApiError;
use super::threads::{self, Threads};
use crate::config::{Live, ServerConfig};
use crate::sessions::quota::admission::{Admission, Admissions};
use crate::sessions::quota::shares::{Bounds, Holder, Over, Share, Shares};

/// Bytes in one MiB.
const MIB: u64 = 1 << 20;
/// `Retry-After`, in seconds.
const RETRY_MEMORY_S: u64 = 2;
const RETRY_STREAM_S: u64 = 5;
/// Longest time that an answer waits for those before it.
const WAIT: Duration = Duration::from_secs(10);
/// Bytes needed to build one page of a list; afterwards its real size counts.
const LIST: u64 = 16 * MIB;
/// The same for a list of files: paths and times are collected before they are written as JSON.
const FILES: u64 = 48 * MIB;
/// The same for the output of a command.
const OUTPUT: u64 = 4 * MIB;
/// Answers of one tenant that are read from disk or database at the same time; further ones wait.
const MADE_AT_ONCE: usize = 3;
/// Answers up to this size do not count: the share of their connection covers them.
const SMALL: u64 = 64 << 10;

/// What a request uses besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Request,
    Stream,
}

/// Use of all tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Load {
    config: Live,
    /// Maximum number of connections.
    connections: usize,
    working: Shares<(Holder, Kind)>,
    memory: Shares<Holder>,
    made: Admissions<Holder>,
    threads: Admissions<Holder>,
}

/// A running request.
#[derive(Debug)]
pub struct Working {
    _place: Share<(Holder, Kind)>,
    /// Held while the answer is built.
    turn: Option<Admission<Holder>>,
    answer: Option<Memory>,
    /// It changes nothing: it can be repeated.
    reads: bool,
    holder: Holder,
    load: Load,
}

/// Memory held for a request.
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
            threads: Admissions::new(threads::AT_ONCE),
        }
    }

    /// The threads for file operations of this caller.
    pub fn threads(&self, holder: &Holder) -> Threads {
        Threads { of: self.threads.clone(), holder: holder.clone() }
    }

    /// Counts a request until the value is dropped, after its answer was sent.
    ///
    /// # Errors
    /// 429 at the tenant's limit, 503 when the requests of all tenants leave no room.
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
                    "{holder} has {each} open event streams, the limit per tenant \
                     (server.streams_per_tenant). Close one and try again"
                ),
                RETRY_STREAM_S,
            ),
            (Over::Own, Kind::Request) => ApiError::too_many(
                format!(
                    "{holder} has {each} concurrent requests, the limit per tenant \
                     (server.concurrent_requests_per_tenant)"
                ),
                RETRY_MEMORY_S,
            ),
            (Over::All, _) => ApiError::unavailable(
                format!(
                    "no free connection for {holder}: requests of all tenants share {} connections \
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
                    format!("{holder} has {MADE_AT_ONCE} answers in preparation and more waiting; send fewer at once"),
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
        // Unread answers use memory already. DELETE is allowed.
        if !reads && method != Method::DELETE && self.memory.of(holder) >= bounds.each {
            return Err(refusal(holder, Over::Own, bounds));
        }
        Ok(Working { _place: place, turn, answer, reads, holder: holder.clone(), load: self.clone() })
    }

    /// Memory for a body of `bytes`: the body, and its decoded form.
    ///
    /// # Errors
    /// 429 at the tenant's limit, 503 at the limit of all tenants.
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
    /// The answer is built and has `bytes`, or is built while it is sent (`None`). From now on its
    /// real size counts, until the value is dropped.
    ///
    /// # Errors
    /// 429 or 503 for an answer of a read when the memory is in use. The answer of a change is
    /// always sent.
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
    /// Reserves `bytes` more for the body.
    ///
    /// # Errors
    /// As [`Load::body`].
    pub fn grow(&mut self, bytes: u64) -> Result<(), ApiError> {
        let bounds = memory(&self.load.config.now().server);
        self.share.grow(2 * bytes, bounds).map_err(|over| refusal(self.share.holder(), over, bounds))
    }
}

/// Memory released when the last clone is dropped, for the extensions of a request.
pub type HeldMemory = Arc<Memory>;

fn memory(server: &ServerConfig) -> Bounds {
    Bounds { each: server.request_memory_per_tenant, all: server.request_memory }
}

fn refusal(holder: &Holder, over: Over, bounds: Bounds) -> ApiError {
    match over {
        Over::Own => ApiError::too_many(
            format!(
                "the running requests of {holder} use {} MiB of memory, the limit per tenant \
                 (server.request_memory_per_tenant; a body counts twice). Send fewer at once, and try again",
                bounds.each / MIB
            ),
            RETRY_MEMORY_S,
        ),
        Over::All => ApiError::unavailable(
            format!(
                "no free request memory for {holder}: requests of all tenants share {} MiB \
                 (server.request_memory); try again",
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

/// Bytes needed to build the answer, for routes whose answers contain text of clients and agents
/// and may have megabytes. Other routes read one row or one file: the number of answers built at
/// once limits them, and their real size counts.
fn needs(method: &Method, path: &str) -> u64 {
    match (method.as_str(), path.rsplit('/').next().unwrap_or_default()) {
        ("GET" | "HEAD", "files") => FILES,
        (
            "GET" | "HEAD",
            "messages" | "events" | "versions" | "queue" | "sessions" | "agents" | "attachments" | "credentials"
            | "api-keys" | "logs" | "eval-cases" | "eval-runs" | "results" | "compare" | "export" | "usage",
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
