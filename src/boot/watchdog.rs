//! Notifies systemd's watchdog only when all parts of the daemon make progress.
//!
//! ```text
//!   every half of WatchdogSec=:  the store's writer --> a task, the sessions' tasks
//!                                --> the main loop --> WATCHDOG=1
//!                                any of them hangs: no notification, and systemd restarts ashd
//! ```
//!
//! An unwritable database (full disk, read-only) does not stop the notifications: a restart would
//! not fix it.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::sessions::Sessions;
use crate::store::Store;
use ash_observe::events::{self, event};

/// Sends a beat for each completed round. The main loop passes it to systemd.
pub(super) fn beats(store: Store, sessions: Sessions, every: Duration) -> mpsc::Receiver<()> {
    let (beat, beats) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut rounds = tokio::time::interval(every);
        let mut writable = true;
        loop {
            rounds.tick().await;
            let written = store.pulse().await;
            if writable != written.is_ok() {
                writable = written.is_ok();
                match written {
                    Ok(()) => tracing::info!(ASH_EVENT = "store-works", "the database can be written again"),
                    Err(error) => {
                        event!(&events::STORE_FAILED, %error, "the database cannot be written");
                    }
                }
            }
            if let Err(why) = sessions.pulse().await {
                event!(&events::STALLED, "the watchdog is not fed: {why}");
                continue;
            }
            if beat.send(()).await.is_err() {
                return;
            }
        }
    });
    beats
}
