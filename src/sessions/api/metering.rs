//! Moves the gateway's usage records into the database, which has the usage of record.
//!
//! ```text
//!   every 10 s, and before usage is shown:
//!       marks (database) --> gateway --> entries after them --> one transaction
//! ```
//!
//! One transaction stores the entries and moves the marks, and the gateway keeps entries after the
//! marks. So an entry is stored exactly once, whichever process dies in between.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::sessions::Sessions;
use crate::sessions::context::Shared;
use crate::store::{Usage, UsageEntry};
use ash_observe::tasks;
use ash_protocol::gateway::Refused;

/// Interval of rounds without requests.
const EVERY: Duration = Duration::from_secs(10);
/// How long a request waits for the gateway; then it gets the stored usage.
const PATIENCE: Duration = Duration::from_secs(1);
/// Marks of one request, bounded by its packet. Ledgers without a mark are sent again.
const MARKS: usize = 1000;

#[derive(Debug, Default)]
pub struct Metering {
    /// Held by the running round.
    round: tokio::sync::Mutex<()>,
    refused: Mutex<Refused>,
}

impl Shared {
    /// Fetches the gateway's usage periodically.
    pub fn keep_metering(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        // Without it the gateway's records reach their bound, and then no session may ask the
        // model.
        tasks::spawn_restarting("usage", move || Arc::clone(&shared).meter());
    }

    async fn meter(self: Arc<Self>) {
        let mut said = false;
        loop {
            match self.collect_usage().await {
                Ok(()) => said = false,
                // A restarting gateway delivers it later.
                Err(why) if said => tracing::debug!("cannot fetch the usage from the gateway yet: {why}"),
                Err(why) => {
                    said = true;
                    tracing::warn!("cannot fetch the usage from the gateway yet, which keeps it: {why}");
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn collect_usage(&self) -> Result<(), String> {
        let _round = self.metering.round.lock().await;
        loop {
            let mut marks = self.store.usage_marks().await.map_err(|e| e.to_string())?;
            let known: Vec<_> = marks.keys().copied().collect();
            for id in known.iter().skip(MARKS) {
                marks.remove(id);
            }
            let (collected, refused) = self.gateway.collect(marks).await.map_err(|e| e.to_string())?;
            *self.metering.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
            let forgotten = known.iter().any(|id| !collected.ledgers.contains(id));
            if forgotten || !collected.entries.is_empty() {
                let entries = collected.entries.into_iter().map(|(ledger, entry)| UsageEntry {
                    ledger,
                    number: entry.n,
                    session: entry.payer.session,
                    tenant: entry.payer.tenant,
                    agent_name: entry.payer.agent,
                    at: entry.at,
                    requests: entry.requests,
                    usage: Usage {
                        input_tokens: entry.tokens.input,
                        output_tokens: entry.tokens.output,
                        cache_creation_tokens: entry.tokens.cache_creation,
                        cache_read_tokens: entry.tokens.cache_read,
                        ..Usage::default()
                    },
                });
                self.store.usage_collect(entries.collect(), collected.ledgers).await.map_err(|e| e.to_string())?;
            }
            if !collected.more {
                return Ok(());
            }
        }
    }
}

impl Sessions {
    /// Updates the stored usage, if the gateway answers soon.
    pub async fn collect_usage(&self) {
        let shared = Arc::clone(&self.shared);
        // Its own task, so that a client that disconnects does not abort a round.
        let round = tokio::spawn(async move { shared.collect_usage().await });
        match tokio::time::timeout(PATIENCE, round).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(why))) => tracing::debug!("the stored usage is shown: {why}"),
            Ok(Err(why)) => tracing::error!("the stored usage is shown: {why}"),
            Err(_) => tracing::debug!("the stored usage is shown: the gateway did not answer in time"),
        }
    }

    /// Requests that the gateway held back since its start, by cause, as of the last round.
    pub fn gateway_refused(&self) -> [(&'static str, u64); 3] {
        let refused = *self.shared.metering.refused.lock().unwrap_or_else(PoisonError::into_inner);
        [("outside", refused.outside), ("slowed", refused.slowed), ("unrecorded", refused.unrecorded)]
    }
}
