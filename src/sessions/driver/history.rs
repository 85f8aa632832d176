//! What lines add to the history: bounded ([`crate::sessions::quota::history_cap`]) and accounted
//! to the tenant.

use serde_json::json;

use super::Driver;
use crate::sessions::SessionError;
use crate::sessions::claude::classify::Classified;
use crate::sessions::quota::history_cap::{HistoryCap, Kept};

/// One batch of lines.
#[derive(Debug)]
pub(super) struct Batched {
    /// Why the tenant's storage was full at the beginning of the batch.
    full: Option<String>,
    added: u64,
    stopped: bool,
}

impl Batched {
    pub(super) fn bound(&mut self, cap: &mut HistoryCap, classified: &mut Classified, offset: u64) {
        let kept = cap.bound(classified, offset, self.full.is_some());
        self.stopped |= kept == Kept::Stopped;
        self.added += HistoryCap::weigh(classified);
    }
}

impl Driver {
    pub(super) fn history(&self) -> Batched {
        let full = match self.shared.is_storage_full(&self.session.tenant) {
            Some(SessionError::Full(why)) => Some(why),
            _ => None,
        };
        Batched { full, added: 0, stopped: false }
    }

    /// After a batch: interrupts a turn that continues although its tenant's storage is full.
    pub(super) async fn history_over(&mut self, batch: &Batched) {
        if batch.added > 0 {
            self.shared.storage.add(&self.session.tenant, batch.added);
        }
        let Some(why) = batch.full.as_ref().filter(|_| batch.stopped) else { return };
        if self.turn.as_ref().is_none_or(|running| running.interrupted.is_some()) {
            return;
        }
        let why = format!("the turn was interrupted: {why}");
        let storage = &self.shared.storage;
        let (limit, used) = (storage.limit(&self.session.tenant).value, storage.stored(&self.session.tenant).total());
        self.shared.tally.count("storage");
        self.cause("limited", "storage", json!({ "limit": "storageBytes", "value": limit, "used": used }), &why);
        self.interrupt(Some(why), None).await;
    }
}
