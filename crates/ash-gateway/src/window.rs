//! When a session may send requests to the model: while ashd reports a turn, a command or
//! background work.
//!
//! ```text
//!   open   --> admitted
//!   closed --> waits, at most 2 s and 8 requests --> opened meanwhile: admitted
//!                                                --> still closed, or a ninth: refused
//! ```
//!
//! ashd opens the window when it passes the message to claude, so a request may arrive earlier.
//! Waiting admits it, and still refuses requests of processes that were left behind.

use std::time::Duration;

use tokio::sync::{Semaphore, watch};

/// How long a request waits for the window to open.
const PATIENCE: Duration = Duration::from_secs(2);
/// Requests of a session that may wait at the same time.
const WAITING: usize = 8;

#[derive(Debug)]
pub struct Window {
    open: watch::Sender<bool>,
    waiting: Semaphore,
}

impl Window {
    pub fn new(open: bool) -> Self {
        Self { open: watch::Sender::new(open), waiting: Semaphore::new(WAITING) }
    }

    /// Opens or closes the window. A running answer continues after it closes.
    pub fn set(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Whether a request that arrived now may continue; waits as above.
    pub async fn admits(&self) -> bool {
        if *self.open.borrow() {
            return true;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return false };
        let mut open = self.open.subscribe();
        let opened = open.wait_for(|open| *open);
        matches!(tokio::time::timeout(PATIENCE, opened).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_request_waits_for_the_window_and_not_for_long() {
        let window = Arc::new(Window::new(false));
        let begun = Instant::now();
        assert!(!window.admits().await);
        assert!(begun.elapsed() >= PATIENCE, "{:?}", begun.elapsed());
        let early = tokio::spawn({
            let window = Arc::clone(&window);
            async move { window.admits().await }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        window.set(true);
        assert!(early.await.unwrap() && window.admits().await);
    }

    #[tokio::test]
    async fn no_more_than_eight_wait() {
        let window = Arc::new(Window::new(false));
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                let window = Arc::clone(&window);
                tokio::spawn(async move { window.admits().await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let begun = Instant::now();
        assert!(!window.admits().await);
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
        for one in waiting {
            assert!(!one.await.unwrap());
        }
    }
}
