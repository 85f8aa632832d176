//! Decisions as pure functions: accepted requests, the next timer, effective limits.

pub mod acceptance;
pub mod allowance;
pub mod limit_levels;
pub mod options;
pub mod timers;
pub mod transitions;
