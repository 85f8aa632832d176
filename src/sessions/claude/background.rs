//! Background agents that claude reports. While they run, the session may ask the model and is not
//! idle.
//!
//! The report comes on stdout, which the payload can forge. The time is therefore bounded:
//! `limits.turnMs` from the first such line after a turn. Only a turn restarts it. Afterwards the
//! model is closed until the next turn, and the session is idle.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// claude's last report, and how long it counts.
#[derive(Debug, Default)]
pub struct Background {
    /// Owns what the work holds and drops it at `until`. `Some` exactly while claude reports
    /// agents.
    keeper: Option<JoinHandle<()>>,
    /// End of the time that began with the first line after a turn.
    until: Option<Instant>,
}

impl Background {
    /// Stores claude's report. `hold` creates what is held meanwhile, for `longest` at most.
    pub fn set<H: Send + 'static>(&mut self, works: bool, longest: Duration, hold: impl FnOnce() -> H) {
        if works == self.said() {
            return;
        }
        self.end();
        if works {
            let until = *self.until.get_or_insert_with(|| Instant::now() + longest);
            let hold = (until > Instant::now()).then(hold);
            self.keeper = Some(tokio::spawn(async move {
                if let Some(hold) = hold {
                    sleep_until(until).await;
                    drop(hold);
                }
            }));
        }
    }

    /// A turn begins: restarts the time.
    pub fn turn<H: Send + 'static>(&mut self, longest: Duration, hold: impl FnOnce() -> H) {
        let works = self.said();
        self.end();
        self.until = None;
        self.set(works, longest, hold);
    }

    /// Whether claude reports working agents.
    pub fn said(&self) -> bool {
        self.keeper.is_some()
    }

    /// Whether the report still counts.
    pub fn works(&self) -> bool {
        self.said() && self.until.is_some_and(|until| until > Instant::now())
    }

    fn end(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Waits until `wanted` clones still exist.
    async fn held_by(held: &Arc<()>, wanted: usize) -> bool {
        for _ in 0..1000 {
            if Arc::strong_count(held) - 1 == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn work_beside_a_turn_counts_for_a_bounded_time_however_often_it_is_said() {
        let held = Arc::new(());
        let mut background = Background::default();
        let longest = Duration::from_millis(300);
        let begin = Instant::now();
        background.set(true, longest, || Arc::clone(&held));
        while background.works() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the time ends");
            background.set(false, longest, || Arc::clone(&held));
            assert!(!background.works() && held_by(&held, 0).await);
            background.set(true, longest, || Arc::clone(&held));
        }
        assert!(begin.elapsed() >= longest && held_by(&held, 0).await);
        assert!(background.said(), "the report stays after its time");
        background.set(false, LONG, || Arc::clone(&held));
        background.set(true, LONG, || Arc::clone(&held));
        assert!(!background.works() && Arc::strong_count(&held) == 1, "no line extends it");
    }

    #[tokio::test]
    async fn a_turn_begins_the_time_anew() {
        let held = Arc::new(());
        let mut background = Background::default();
        background.turn(LONG, || Arc::clone(&held));
        assert!(!background.said());
        background.set(true, Duration::ZERO, || Arc::clone(&held));
        assert!(background.said() && !background.works() && Arc::strong_count(&held) == 1);
        background.turn(LONG, || Arc::clone(&held));
        assert!(background.works() && held_by(&held, 1).await);
        drop(background);
        assert!(held_by(&held, 0).await);
    }
}
