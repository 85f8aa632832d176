//! How ashd talks with a Claude Code process: what it is started with, what is written to its stdin, and what its
//! stdout lines say. Pure: nothing here does I/O. Measured with version 2.1.330; the traps each rule comes from are
//! in `docs/streaming.md`.
//!
//! ```text
//! LaunchOptions --argv()--> argv       Requests --> one line each, for stdin
//!               --env()---> environment        Line::parse <-- one line of stdout
//! ```

mod argv;
mod env;
pub(crate) mod line;
mod permissions;
mod requests;

pub use argv::{Conversation, LaunchOptions, MAX_ARG_BYTES, PermissionMode, ProcessFlags, argv};
pub use env::{Environment, MODEL_KEYS, Whose, environment, environment_of_claude, own_key};
pub use line::Line;
pub use permissions::answer_permission;
pub use requests::*;
