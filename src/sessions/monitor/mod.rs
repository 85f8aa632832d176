//! Observation of running sandboxes: disk usage, refused forks, kills, and why a process ended.

pub mod counters;
pub mod disk_usage;
pub mod exit_cause;
pub mod resource_monitor;
mod walks;
