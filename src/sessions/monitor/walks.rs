//! Walks through the directories of sessions and agents.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::disk_usage::{self, Bound, DiskUse};
use crate::sessions::quota::admission::Admissions;
use ash_model::TenantId;

/// Concurrent walks of all tenants, of each of the two kinds.
const WALKS: usize = 2;

/// Walks through directories: one of a tenant at a time, so that others wait for one of it at most.
/// Those that requests cause do not delay those that watch.
#[derive(Debug)]
pub(super) struct Walks {
    of: Admissions<TenantId>,
    all: Arc<Semaphore>,
}

impl Default for Walks {
    fn default() -> Self {
        Self { of: Admissions::new(1), all: Arc::new(Semaphore::new(WALKS)) }
    }
}

impl Walks {
    pub async fn measure(&self, tenant: &TenantId, root: &Path, bound: Bound) -> std::io::Result<DiskUse> {
        let turn = self.of.wait(tenant).await;
        let place = Arc::clone(&self.all).acquire_owned().await.map_err(std::io::Error::other)?;
        let root = root.to_owned();
        let walk = move || {
            // Until the walk ends, whoever waits for it.
            let _held = (turn, place);
            disk_usage::measure(&root, bound)
        };
        tokio::task::spawn_blocking(walk).await.map_err(std::io::Error::other)?
    }
}
