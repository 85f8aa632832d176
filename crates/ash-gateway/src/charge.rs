//! Passes the tokens of answers from the meter to the counters and the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ledger::{Charge, Ledger, Payer};
use ash_protocol::gateway::SessionUsage;
use ash_protocol::gateway::Tokens;

/// Usage of one session since it was registered, over all its connections.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    input: AtomicU64,
    output: AtomicU64,
    cache_creation: AtomicU64,
    cache_read: AtomicU64,
}

impl Counters {
    fn add(&self, requests: u64, tokens: Tokens) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.input.fetch_add(tokens.input, Ordering::Relaxed);
        self.output.fetch_add(tokens.output, Ordering::Relaxed);
        self.cache_creation.fetch_add(tokens.cache_creation, Ordering::Relaxed);
        self.cache_read.fetch_add(tokens.cache_read, Ordering::Relaxed);
    }

    pub fn snapshot(&self, session: uuid::Uuid) -> SessionUsage {
        SessionUsage {
            session,
            requests: self.requests.load(Ordering::Relaxed),
            input_tokens: self.input.load(Ordering::Relaxed),
            output_tokens: self.output.load(Ordering::Relaxed),
            cache_creation_tokens: self.cache_creation.load(Ordering::Relaxed),
            cache_read_tokens: self.cache_read.load(Ordering::Relaxed),
        }
    }
}

/// Charges one answer.
#[derive(Debug)]
pub struct Bill {
    counters: Arc<Counters>,
    ledger: Option<(Ledger, Arc<Payer>)>,
    begun: bool,
}

impl Bill {
    pub fn new(counters: Arc<Counters>, ledger: Option<(Ledger, Arc<Payer>)>) -> Self {
        Self { counters, ledger, begun: false }
    }

    /// Whether part of the answer was charged.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Charges the new tokens of the answer. Returns when the record survives the end of this
    /// process.
    pub async fn add(&mut self, tokens: Tokens) {
        if tokens == Tokens::default() {
            return;
        }
        let requests = u64::from(!std::mem::replace(&mut self.begun, true));
        self.counters.add(requests, tokens);
        if let Some((ledger, payer)) = &self.ledger {
            ledger.append(Charge { payer: Arc::clone(payer), requests, tokens }).await;
        }
    }
}
