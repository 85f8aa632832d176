//! Token buckets that limit the rate of a session. The arithmetic is pure; the caller waits.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Burst size, and refill per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    pub burst: f64,
}

/// A bucket that can be overdrawn: early callers get their waiting time, in the order of arrival.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// Tokens left; negative while a caller waits.
    left: f64,
    /// Seconds since the start.
    at: f64,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self { rate, left: rate.burst, at: 0.0 }
    }

    /// Takes `amount` at the time `now`; returns by how many seconds that is too early.
    fn take(&mut self, now: f64, amount: f64) -> f64 {
        let gained = (now - self.at).max(0.0) * self.rate.per_second;
        self.left = (self.left + gained).min(self.rate.burst) - amount;
        self.at = self.at.max(now);
        if self.left >= 0.0 { 0.0 } else { -self.left / self.rate.per_second }
    }
}

/// A bucket shared by the tasks of a session.
#[derive(Debug)]
pub struct Pace {
    bucket: Mutex<Bucket>,
    start: Instant,
}

impl Pace {
    pub fn new(rate: Rate) -> Self {
        Self { bucket: Mutex::new(Bucket::full(rate)), start: Instant::now() }
    }

    /// Takes `amount`; returns the time until it is due, if it is not.
    pub fn debit(&self, amount: f64) -> Option<Duration> {
        let now = self.start.elapsed().as_secs_f64();
        let early = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now, amount);
        (early > 0.0).then(|| Duration::from_secs_f64(early.min(3600.0)))
    }

    /// Takes `amount` and waits until it is due. Returns whether it waited.
    pub async fn take(&self, amount: f64) -> bool {
        let Some(wait) = self.debit(amount) else { return false };
        tokio::time::sleep(wait).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let mut bucket = Bucket::full(Rate { per_second: 10.0, burst: 3.0 });
        let waits: Vec<f64> = (0..6).map(|_| bucket.take(0.0, 1.0)).collect();
        assert_eq!(waits, [0.0, 0.0, 0.0, 0.1, 0.2, 0.3]);
        // Those three are due by 0.3 s; then the bucket is at zero.
        assert_eq!(bucket.take(0.4, 1.0), 0.0);
        // The bucket never holds more than the burst.
        assert_eq!(bucket.take(1000.0, 3.0), 0.0);
        assert!((bucket.take(1000.0, 1.0) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing_back() {
        let mut bucket = Bucket::full(Rate { per_second: 1.0, burst: 1.0 });
        assert_eq!(bucket.take(5.0, 1.0), 0.0);
        assert_eq!(bucket.take(4.0, 1.0), 1.0);
        assert_eq!(bucket.take(5.0, 1.0), 2.0);
    }

    #[tokio::test]
    async fn waiting_takes_as_long_as_it_says() {
        let pace = Pace::new(Rate { per_second: 5.0, burst: 1.0 });
        assert!(!pace.take(1.0).await);
        let begun = Instant::now();
        assert!(pace.take(1.0).await);
        assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
    }
}
