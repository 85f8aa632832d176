//! Decisions as pure functions: which request is accepted in which state, which timer is next, which limit is in force.

pub mod acceptance;
pub mod allowance;
pub mod limit_levels;
pub mod options;
pub mod timers;
pub mod transitions;
