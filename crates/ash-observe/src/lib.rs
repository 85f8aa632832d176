//! Reporting for all daemons: logs, events, metrics, and notifications to systemd.

pub mod events;
pub mod logging;
pub mod metrics;
pub mod systemd;
#[cfg(feature = "tasks")]
pub mod tasks;
