//! How ashd talks with a Claude Code process: what it is started with, what is written to its stdin, and what its
//! stdout lines say. Pure: nothing here does I/O. Measured with version 2.1.330; the traps each rule comes from are
//! in `docs/streaming.md`.
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
