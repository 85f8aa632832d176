//! The gateway's ledger of usage: append-only files that survive kill -9 of the gateway and of
//! ashd.
//!
//! ```text
//!  relay --Charge--> writer (a thread) --write(2)--> <state dir>/<ledger>.jsonl
//!                       |                                |    --fdatasync within 100 ms--> disk
//!                       +-- then the bytes continue      +--> collect: ashd reads, commits,
//!                           to the sandbox                    acknowledges --> unlink
//! ```
//!
//! * One file is one ledger. Only the process that created it appends to it, and holds a lock on it
//!   (flock(2)). A successor, or a gateway after a crash, creates a new one and also hands out the
//!   old ones, so that two gateways can write at the same time during a takeover.
//! * Entries of a ledger are numbered from 1. ashd stores the newest number of each ledger in the
//!   transaction that stores the entries, and sends it with its next request: each entry is stored
//!   exactly once, whichever process fails.
//! * An entry is in the page cache before the sandbox receives the part of the answer that it
//!   counts. kill -9 loses nothing; a power failure loses the last 100 ms and the time of one sync.

mod collect;
mod writer;

use std::path::PathBuf;

pub use writer::Ledger;

pub use ash_protocol::gateway::{Collected, Entry, Marks, Payer, Tokens};

/// Bytes after which a ledger is closed and a new one created.
const FULL: u64 = 256 << 10;
/// Bytes of all ledgers that ashd has not taken. Above it, no request is admitted.
pub const MAX_UNREAD: u64 = 64 << 20;
/// Maximum bytes of a tenant's or an agent's name.
pub const MAX_NAME: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("state directory {path}: {source}; the gateway's user must be able to write there (--state-dir)")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
}

/// A part of an answer to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    pub payer: std::sync::Arc<Payer>,
    /// 1 for the first part of an answer.
    pub requests: u64,
    pub tokens: Tokens,
}
