//! Sessions by state, and the effect of a reload: for `systemctl status` and SIGHUP.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::oneshot;

use crate::sessions::Sessions;
use crate::sessions::driver::Request;
use ash_model::SessionStatus;

/// Sessions that apply new defaults concurrently.
const AT_ONCE: usize = 16;

/// One counter per state, maintained so that rows are never counted.
#[derive(Debug, Default)]
pub struct Census([AtomicI64; SessionStatus::ALL.len()]);

impl Census {
    /// `from` is `None` for a session that was not counted before.
    pub fn moved(&self, from: Option<SessionStatus>, to: SessionStatus) {
        if let Some(from) = from {
            self.slot(from).fetch_sub(1, Ordering::Relaxed);
        }
        self.add(to, 1);
    }

    pub fn add(&self, status: SessionStatus, by: i64) {
        self.slot(status).fetch_add(by, Ordering::Relaxed);
    }

    pub fn of(&self, status: SessionStatus) -> usize {
        usize::try_from(self.slot(status).load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn slot(&self, status: SessionStatus) -> &AtomicI64 {
        &self.0[status as usize]
    }

    /// For example `42 sessions: 9 running, 3 active, 30 paused`, without ended ones. `running` of
    /// the active ones are in a turn.
    fn line(&self, running: usize) -> String {
        let counts = SessionStatus::ALL.map(|status| (status, self.of(status)));
        let open = counts.into_iter().filter(|(status, _)| *status != SessionStatus::Ended);
        let total: usize = open.clone().map(|(_, count)| count).sum();
        let mut parts = vec![(running, "running")];
        parts.extend(open.map(|(status, count)| match status {
            SessionStatus::Active => (count.saturating_sub(running), "idle"),
            other => (count, other.as_str()),
        }));
        let parts: Vec<String> =
            parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        let sessions = if total == 1 { "1 session".to_owned() } else { format!("{total} sessions") };
        if parts.is_empty() { sessions } else { format!("{sessions}: {}", parts.join(", ")) }
    }
}

impl Sessions {
    /// One line for `systemctl status`. Constant time.
    pub fn status_line(&self) -> String {
        self.shared.census.line(self.shared.pool.census().running)
    }

    /// The configuration was reloaded: running sessions apply new default limits, and check their
    /// timers again. Returns at once; failures are logged, and such a session keeps its limits.
    pub fn configuration_changed(&self) {
        let shared = Arc::clone(&self.shared);
        let pool = &shared.config.now().pool;
        let evict_after = Duration::from_millis(pool.evict_after_ms);
        shared.pool.resize(pool.max_sandboxes, pool.max_sandboxes_per_tenant, evict_after);
        shared.warm.look_again();
        tokio::spawn(async move {
            let tell = |(id, handle): (uuid::Uuid, crate::sessions::driver::registry::Handle)| async move {
                let (reply, answer) = oneshot::channel();
                if handle.requests.send(Request::LimitsMoved { reply }).await.is_err() {
                    return;
                }
                if let Ok(Err(why)) = answer.await {
                    tracing::warn!(ASH_SESSION = %id, ASH_TENANT = %handle.tenant, "the session keeps its previous limits: {why}");
                }
            };
            futures_util::stream::iter(shared.registry.all()).for_each_concurrent(AT_ONCE, tell).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_systemctl_status() {
        let census = Census::default();
        assert_eq!(census.line(0), "0 sessions");
        census.moved(None, SessionStatus::Starting);
        assert_eq!(census.line(0), "1 session: 1 starting");
        census.moved(Some(SessionStatus::Starting), SessionStatus::Active);
        census.add(SessionStatus::Active, 11);
        census.add(SessionStatus::Paused, 30);
        census.add(SessionStatus::Ended, 500);
        assert_eq!(census.line(9), "42 sessions: 9 running, 3 idle, 30 paused");
        assert_eq!(census.of(SessionStatus::Active), 12);
    }
}
