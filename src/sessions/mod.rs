//! Sessions: one task owns one session and is the only writer of its state.
//!
//! ```text
//!                     create
//!                       |
//!                 +-----v----+   sandbox ready,      +--------+
//!                 | starting |---claude answered---->| active |<-------------+
//!                 +--+----+--+   initialize          +-+-+-+--+              |
//!               stop |    | it failed           pause  | | |                 | resume: thaw ("warm")
//!                    |    |            (or idle, evicted,| |                 | or a new process ("cold")
//!                    |    |             restart)       | | | claude died     |
//!                    |    |        +--------+<---------+ | |                 |
//!                    |    |        | paused |------------|-|---------------->+
//!                    |    |        +--------+       stop | |                 |
//!                    +----|------->+---------+<----------+ |                 |
//!                         |        | stopped |-------------|---------------->+
//!                         |        +---------+             |                 |
//!                         +------->+-------+<--------------+                 |
//!                                  | error |-------------------------------->+
//!                                  +-------+
//!                 any ---- end ---->  ended     (its directory is kept, its files can be read)
//! ```
//!
//! To follow one message: `service` (finds the task) -> `driver::turn` (durable, then to claude's stdin) -> claude ->
//! the stdout file -> `lines` (tail) -> `classify` -> `driver::turn` (ledger, watermark) -> `reader` -> `frames`.

pub mod abridge;
pub mod admission;
pub mod adopt;
pub mod agent_directory;
pub mod alarms;
mod allowance;
pub mod api;
mod ask;
mod background;
pub mod cause;
mod census;
pub mod classify;
pub mod claude;
mod cleaning;
mod confinement;
pub mod conversation;
mod counters;
pub mod credentials;
pub mod disk;
mod disk_reserve;
pub mod drain;
pub mod driver;
pub mod earlier;
pub mod evals;
pub mod event_id;
pub mod exec;
pub mod frames;
pub mod history_cap;
pub mod hub;
pub mod jobs;
mod join;
pub mod launch;
pub mod limiting;
pub mod limits;
pub mod lines;
pub mod live;
pub mod message;
mod metering;
pub mod new_message;
pub mod omitted;
mod options;
pub mod own;
pub mod paths;
pub mod piece;
pub mod process;
pub mod published;
mod pulse;
pub mod queue;
pub mod reader;
pub mod registry;
mod remove_tree;
pub mod retain;
pub mod service;
pub mod shared;
pub mod shares;
pub mod state;
pub mod storage;
pub mod storing;
pub mod tenants;
mod timeline;
mod turn_result;
pub mod turns;
pub mod warden;
pub mod warm;

pub use crate::sandbox::confinement::Report as Confinement;
pub use api::*;
pub use own::Own;
pub use service::Sessions;
pub use tenants::{TenantRemoved, Visit};
