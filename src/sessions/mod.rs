//! Sessions: one task owns one session and is the only writer of its state.

pub mod api;

pub use api::*;
