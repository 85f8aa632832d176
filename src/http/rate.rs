//! Rate limit per tenant: a token bucket that holds one minute's worth of requests and refills
//! evenly.
//!
//! Public routes do not count, nor do requests on the unix socket without a key, so that an admin
//! always gets through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::error::ApiError;
use ash_model::TenantId;

/// One bucket per active tenant; only tenants with keys have one.
#[derive(Clone, Debug, Default)]
pub struct Rates(Arc<Mutex<HashMap<TenantId, Bucket>>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Requests left.
    left: f64,
    at: Instant,
}

impl Rates {
    /// Counts one request; 0 per minute means no limit.
    ///
    /// # Errors
    /// 429 with `Retry-After` when the bucket is empty.
    pub fn count(&self, tenant: &TenantId, per_minute: u32) -> Result<(), ApiError> {
        if per_minute == 0 {
            return Ok(());
        }
        let now = Instant::now();
        // Each bucket is consistent between any two statements.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = all.entry(tenant.clone()).or_insert(Bucket { left: f64::from(per_minute), at: now });
        bucket.take(per_minute, now).map_err(|after_s| {
            let text = format!(
                "tenant {tenant} has reached the limit of {per_minute} requests per minute (server.requests_per_minute)"
            );
            ApiError::too_many(text, after_s)
        })
    }
}

impl Bucket {
    /// Takes one request, or returns the seconds until the next one.
    fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), u64> {
        let a_second = f64::from(per_minute) / 60.0;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * a_second).min(f64::from(per_minute));
        self.at = now;
        if self.left < 1.0 {
            return Err(((1.0 - self.left) / a_second).ceil() as u64);
        }
        self.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_holds_a_minute_and_fills_evenly() {
        let start = Instant::now();
        let mut bucket = Bucket { left: 6.0, at: start };
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..6 {
            assert_eq!(bucket.take(6, start), Ok(()));
        }
        assert_eq!(bucket.take(6, start), Err(10));
        assert_eq!(bucket.take(6, at(4)), Err(6), "a refusal costs nothing");
        assert_eq!((bucket.take(6, at(10)), bucket.take(6, at(10))), (Ok(()), Err(10)));
        // After a long pause there is one minute's worth, and a lower limit applies at once.
        assert_eq!((0..9).filter(|_| bucket.take(6, at(9999)).is_ok()).count(), 6);
        assert_eq!((0..9).filter(|_| bucket.take(2, at(99_999)).is_ok()).count(), 2);
    }
}
