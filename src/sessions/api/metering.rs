//! What the gateway counted, on its way into the database: the usage of record.
//!
//! ```text
//!   every 10 s, and before usage is shown:  marks (database) --> gateway --> entries behind them --> one transaction
//! ```
//!
//! The marks move in the same transaction as the entries are stored, and the gateway keeps what no mark covers. So whichever
//! process dies in between, an entry is stored once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::sessions::Sessions;
use crate::sessions::context::Shared;
use crate::store::{Usage, UsageEntry};
use ash_observe::tasks;
use ash_protocol::gateway::Refused;

/// Between two rounds when nobody asks.
const EVERY: Duration = Duration::from_secs(10);
/// How long a request waits for what the gateway has; then it is answered with what is stored.
const PATIENCE: Duration = Duration::from_secs(1);
/// Marks of one request: more would not fit its packet. Ledgers that are not named come again.
const MARKS: usize = 1000;

#[derive(Debug, Default)]
pub struct Metering {
    /// Held by the round that runs.
    round: tokio::sync::Mutex<()>,
    refused: Mutex<Refused>,
}

impl Shared {
    /// Takes over what the gateway counted, again and again.
    pub fn keep_metering(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        // Without it the gateway's records grow to their bound, and then no session may ask the model.
        tasks::spawn_restarting("usage", move || Arc::clone(&shared).meter());
    }

    async fn meter(self: Arc<Self>) {
        let mut said = false;
        loop {
            match self.collect_usage().await {
                Ok(()) => said = false,
                // A gateway that is being restarted has it later.
                Err(why) if said => tracing::debug!("usage is not taken over yet: {why}"),
                Err(why) => {
                    said = true;
                    tracing::warn!("usage is not taken over yet, the gateway keeps it: {why}");
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
    /// Brings the stored usage up to date, where the gateway answers soon.
    pub async fn collect_usage(&self) {
        let shared = Arc::clone(&self.shared);
        // A task of its own: a client that hangs up does not break off a round.
        let round = tokio::spawn(async move { shared.collect_usage().await });
        match tokio::time::timeout(PATIENCE, round).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(why))) => tracing::debug!("usage is shown as it is stored: {why}"),
            Ok(Err(why)) => tracing::error!("usage is shown as it is stored: {why}"),
            Err(_) => tracing::debug!("usage is shown as it is stored: the gateway did not answer in time"),
        }
    }

    /// How often the gateway held requests back since it was started, by cause, as of the last round.
    pub fn gateway_refused(&self) -> [(&'static str, u64); 3] {
        let refused = *self.shared.metering.refused.lock().unwrap_or_else(PoisonError::into_inner);
        [("outside", refused.outside), ("slowed", refused.slowed), ("unrecorded", refused.unrecorded)]
    }
}
