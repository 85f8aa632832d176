//! What the daemons report: logs, the events that need an operator's attention, metrics, and notifications to systemd.

pub mod events;
pub mod logging;
pub mod metrics;
pub mod systemd;
#[cfg(feature = "tasks")]
pub mod tasks;
