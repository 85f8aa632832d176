//! The protocol with a Claude Code process: how it starts, what goes to its stdin, what its stdout
//! lines mean. Pure, except for the files in `transcript`, `earlier_transcript` and
//! `process_record`. Measured with version 2.1.330; `docs/streaming.md` has the reasons of the
//! rules.
//!
//! ```text
//! LaunchOptions --argv()--> argv       Requests --> one line each, for stdin
//!               --env()---> environment        Line::parse <-- one line of stdout
//! ```

mod argv;
pub mod background;
pub mod classify;
pub mod earlier_transcript;
mod env;
pub mod line;
pub mod message;
pub mod omitted;
mod permissions;
pub mod process_record;
mod requests;
pub mod transcript;
pub mod turn_result;
pub mod turn_tracker;

pub use argv::{Conversation, LaunchOptions, MAX_ARG_BYTES, PermissionMode, ProcessFlags, argv};
pub use env::{Environment, MODEL_KEYS, Whose, environment, environment_of_claude, own_key};
pub use line::Line;
pub use permissions::answer_permission;
pub use requests::*;
