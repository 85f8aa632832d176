//! Bounds the unsolicited work that one process can cause: a token bucket. Pure.
//!
//! Every process in a sandbox can write lines in claude's name. A line that begins a turn or makes
//! a request costs ashd a transaction, an answer, a log entry. Without a bound, lines of one second
//! would cause hours of work and delay the session's requests.

use std::time::Instant;

#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Option<Instant>,
}

impl Allowance {
    /// A burst, then a rate per second.
    pub const fn new(burst: u32, per_second: f64) -> Self {
        Self { burst: burst as f64, per_second, left: burst as f64, at: None }
    }

    /// Takes one; returns whether it is within the bound.
    pub fn take(&mut self, now: Instant) -> bool {
        let gained = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64() * self.per_second);
        self.at = Some(now);
        self.left = (self.left + gained).min(self.burst);
        let within = self.left >= 1.0;
        if within {
            self.left -= 1.0;
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut allowance = Allowance::new(3, 2.0);
        let start = Instant::now();
        let taken = |allowance: &mut Allowance, ms: u64| {
            (0..10).filter(|_| allowance.take(start + Duration::from_millis(ms))).count()
        };
        assert_eq!(taken(&mut allowance, 0), 3);
        assert_eq!(taken(&mut allowance, 400), 0);
        assert_eq!(taken(&mut allowance, 1000), 2);
        assert_eq!(taken(&mut allowance, 3_600_000), 3, "at most the burst after any pause");
        assert_eq!(taken(&mut allowance, 1000), 0, "a clock that goes back gives nothing");
    }
}
