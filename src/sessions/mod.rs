//! Sessions: one task owns one session and is the only writer of its state.

pub mod api;
pub mod classify;
pub mod claude;
pub mod event_id;
pub mod frames;
pub mod hub;
mod join;
pub mod lines;
pub mod piece;
pub mod published;
pub mod reader;
mod turn_result;

pub use api::*;
