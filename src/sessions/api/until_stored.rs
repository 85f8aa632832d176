//! Results that must reach the database although the disk refuses them for a while.

use std::future::Future;
use std::time::Duration;

use crate::sessions::context::Shared;
use crate::store::StoreError;

/// Pause between two attempts.
const AGAIN: Duration = Duration::from_secs(5);

impl Shared {
    /// Repeats a write every 5 s until the database takes it. Gives up when ashd stops; its next
    /// start finds the unfinished work.
    pub(super) async fn until_stored<T, F>(&self, what: &str, write: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut failures = 0_u32;
        loop {
            match write().await {
                Ok(done) => return Some(done),
                Err(StoreError::Closed) => return None,
                Err(e) if failures.is_multiple_of(60) => {
                    tracing::error!("cannot store {what} (retried every 5 s): {e}")
                }
                Err(_) => {}
            }
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.stopping.cancelled() => return None,
            }
        }
    }
}
