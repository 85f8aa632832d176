//! Warm sandboxes: claude has answered `initialize` in the agent's workspace before anybody asked for a session.
//!
//! ```text
//!   keeper --start, freeze--> [ stock ] --claim--> a session of that id (Request::Claim), used once
//!                                |
//!                                +-- agent changed or deleted, room needed, dead --> destroyed, directory too
//! ```
//!
//! Each is made for one tenant and one state of one agent ([`Key`]) under the id of the session it will become
//! (docs/decisions/one-id.md), has no row until then, and holds nothing but what the agent itself says. It stands frozen.
//! A restarted ashd finds no row for it and destroys it like any other orphan.

pub mod fit;
mod keeper;
mod stock;

pub use stock::{Key, Stock, Warm};

/// Most that may be kept of one agent.
pub const MAX: u32 = 100;
