//! The gateway's record of what was used: append-only files that survive kill -9 of the gateway and of ashd.
//!
//! ```text
//!  relay --Charge--> writer (a thread) --write(2)--> <state dir>/<ledger>.jsonl --fdatasync, 100 ms later at most--> disk
//!                       |                                   |
//!                       +-- then the bytes go on            +--> collect: ashd reads, commits, acknowledges --> unlink
//!                           to the sandbox
//! ```
//!
//! * One file is one ledger. Only the process that made it appends to it, and holds a lock on it (flock(2)) while it does.
//!   A successor, or a gateway after a crash, makes a new one and hands out the old ones too, so that two gateways can
//!   write at the same time during a takeover.
//! * Entries of a ledger are numbered from 1. ashd stores the newest number it has seen of each ledger in the transaction
//!   that stores the entries, and says it with its next request: an entry is stored exactly once, whoever dies.
//! * An entry is in the page cache before the sandbox sees the part of the answer that it counts. kill -9 loses nothing;
//!   a power cut loses the last 100 ms and the time of one sync.

mod collect;
mod writer;

use std::path::PathBuf;

pub use writer::Ledger;

pub use ash_protocol::gateway::{Collected, Entry, Marks, Payer, Tokens};

/// Bytes from which a ledger is closed and a new one begun.
const FULL: u64 = 256 << 10;
/// Bytes of all ledgers that ashd has not taken yet. Beyond it no request is admitted.
pub const MAX_UNREAD: u64 = 64 << 20;
/// Bytes of a tenant's or an agent's name.
pub const MAX_NAME: usize = 256;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("state directory {path}: {source}; the gateway's user must be able to write there (--state-dir)")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
}

/// A part of an answer that is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    pub payer: std::sync::Arc<Payer>,
    /// 1 with the first part of an answer.
    pub requests: u64,
    pub tokens: Tokens,
}
