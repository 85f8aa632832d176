//! What the daemon lets be seen: its log, the events that wake somebody up, and its metrics.

pub mod events;
pub mod logging;
pub mod metrics;
pub mod tasks;
