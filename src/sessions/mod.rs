//! Sessions: one task owns one session and is the only writer of its state.
//!
//! ```text
//!                create
//!                  |
//!            +-----v----+   sandbox ready,      +--------+
//!            | starting |---claude answered---->| active |<-------------+
//!            +--+----+--+   initialize          +-+-+-+--+              |
//!          stop |    | it failed           pause  | | |                 | resume: thaw ("warm")
//!               |    |            (or idle, evicted,| |                 | or new process ("cold")
//!               |    |             restart)       | | | claude died     |
//!               |    |        +--------+<---------+ | |                 |
//!               |    |        | paused |------------|-|---------------->+
//!               |    |        +--------+       stop | |                 |
//!               +----|------->+---------+<----------+ |                 |
//!                    |        | stopped |-------------|---------------->+
//!                    |        +---------+             |                 |
//!                    +------->+-------+<--------------+                 |
//!                             | error |-------------------------------->+
//!                             +-------+
//!            any ---- end ---->  ended     (the directory stays readable)
//! ```
//!
//! Modules, each may use those to its right:
//!
//! ```text
//!   api, prewarm -> driver, launch -> context, policy, quota
//!       -> stream, claude, monitor -> workspace -> timeline
//! ```
//!
//! Path of one message: `api::service` (finds the task) -> `driver::turn` (durable, then to
//! claude's stdin) -> claude -> the stdout file -> `stream::tail` -> `claude::classify` ->
//! `driver::turn` (journal, watermark) -> `stream::reader` -> `stream::frames`.

pub mod api;
pub mod claude;
pub mod context;
pub mod driver;
pub mod launch;
pub mod monitor;
pub mod policy;
pub mod prewarm;
pub mod quota;
pub mod requests;
pub mod stream;
mod timeline;
pub mod workspace;

pub use crate::sandbox::confinement::Report as Confinement;
pub use api::owned_session::Own;
pub use api::service::Sessions;
pub use api::tenants::{TenantRemoved, Visit};
pub use requests::*;
pub use stream::{EventId, FrameStream};
