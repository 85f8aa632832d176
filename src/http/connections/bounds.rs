//! Limits of connections: how many, and how long each operation may take.

use std::time::Duration;

use crate::config::ServerConfig;

/// Bytes of the request line and the headers; more is answered 431.
pub const MAX_HEAD: usize = 16 << 10;
/// Headers of a request; more is answered 431.
pub const MAX_HEADERS: usize = 100;
/// Bytes read ahead of a body, or buffered of an answer, per connection. Pipelined requests wait
/// here, and beyond it in the kernel's buffer.
pub const MAX_BUFFER: usize = 64 << 10;
/// Connections to the unix socket, which only root and ashd's group can open. Not counted with TCP
/// connections.
pub const MAX_UNIX: usize = 512;
/// The same per user.
pub const MAX_UNIX_PER_USER: usize = 256;
/// A stream of events is closed when nothing of it can be written for this long. Its client
/// reconnects with `Last-Event-ID` and misses nothing.
pub const STREAM_STALL: Duration = Duration::from_secs(600);

/// File descriptors not used for connections: database, log, directories, sockets of launcher and
/// gateway, files of requests.
const BASE: u64 = 256;
/// File descriptors of one sandbox: its sockets, its output, its counters.
const PER_SANDBOX: u64 = 8;
/// File descriptors of one connection: its socket, and the file that its request reads or writes.
const PER_CONNECTION: u64 = 2;

/// Limits of the TCP connections.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    pub per_address: usize,
    /// From accept to the end of the first request's head.
    pub head: Duration,
    /// From an answer to the end of the next request's head.
    pub idle: Duration,
    /// Longest time in which nothing of an answer can be written.
    pub stall: Duration,
}

impl Bounds {
    /// The configured limits, reduced if the process has too few file descriptors
    /// (`RLIMIT_NOFILE`).
    pub fn new(server: &ServerConfig, descriptors: u64, max_sandboxes: usize) -> Self {
        let connections = server.max_connections.min(connections(descriptors, max_sandboxes));
        if connections < server.max_connections {
            tracing::info!(
                descriptors,
                connections,
                wanted = server.max_connections,
                "server.max_connections is not reached: the limit of open files (LimitNOFILE=, ulimit -n) is too low"
            );
        }
        let ms = Duration::from_millis;
        Self {
            connections,
            per_address: server.max_connections_per_address.min(connections),
            head: ms(server.head_timeout_ms),
            idle: ms(server.idle_timeout_ms),
            stall: ms(server.stall_timeout_ms),
        }
    }
}

/// At least a third of the descriptors is for connections.
fn connections(descriptors: u64, max_sandboxes: usize) -> usize {
    let own = (BASE + PER_SANDBOX * max_sandboxes as u64).min(descriptors / 3 * 2);
    usize::try_from((descriptors - own) / PER_CONNECTION).unwrap_or(usize::MAX).max(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_kept_for_everything_else() {
        for (descriptors, sandboxes, expected) in [
            (524_288, 1000, 258_016),
            (20_000, 1000, 5872),
            (1024, 10, 344),
            (1024, 1000, 171),
            (96, 1000, 16),
            (8, 1, 8),
        ] {
            assert_eq!(connections(descriptors, sandboxes), expected, "{descriptors} {sandboxes}");
        }
    }
}
