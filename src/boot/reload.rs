//! `systemctl reload ashd`: reads the configuration again.

use tracing::{info, warn};

use crate::config::{self, Live, Source};
use crate::sessions::Sessions;
use ash_observe::events::{self, event};
use ash_observe::logging;

/// Applies what a running ashd can apply. A faulty file changes nothing; the error names line and
/// key.
pub(super) async fn reload(source: &Source, live: &Live, sessions: &Sessions) {
    let from = source.clone();
    // Files may be on a hanging disk; the main loop must continue.
    let read = tokio::task::spawn_blocking(move || from.read()).await;
    let read = match read {
        Ok(Ok(read)) => read,
        Ok(Err(errors)) => return event!(&events::RELOAD_FAILED, "nothing was changed: {errors}"),
        Err(gone) => return event!(&events::RELOAD_FAILED, "nothing was changed: {gone}"),
    };
    let new = match config::compare(&live.now(), read) {
        Ok(new) => new,
        Err(errors) => return event!(&events::RELOAD_FAILED, "nothing was changed: {errors}"),
    };
    if new.changed.contains(&"log.level")
        && let Err(why) = logging::set_level(new.config.log.level.as_deref())
    {
        return event!(&events::RELOAD_FAILED, "nothing was changed: log.level: {why}");
    }
    tracing::debug!(level = new.config.log.level, "the log's level");
    live.take_over(new.config);
    if !new.needs_restart.is_empty() {
        warn!(ASH_EVENT = "reload", "needs a restart: {}", new.needs_restart.join(", "));
    }
    let changed = if new.changed.is_empty() { "nothing".to_owned() } else { new.changed.join(", ") };
    info!(ASH_EVENT = "reload", "configuration read again; changed: {changed}");
    sessions.configuration_changed();
}
