//! What the daemon lets be seen: its log, and its metrics.

pub mod logging;
pub mod metrics;
