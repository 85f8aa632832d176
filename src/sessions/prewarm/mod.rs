//! Sandboxes created before a session needs them, of two kinds.
//!
//! ```text
//!   warm:    keeper --start, freeze--> [ shelf ] --claim--> a session of that id, used once
//!                                          |                (Request::Claim)
//!   parked:  keeper --make, prove----> [ shelf ] --claim--> the same; claude is started in it
//!                                          |                (Request::Create)
//!                                          +-- preconditions changed, slot needed, dead
//!                                                           --> destroyed with its directory
//! ```
//!
//! A warm sandbox belongs to one tenant and one state of one agent ([`Key`]). claude has answered
//! `initialize` in the agent's workspace. It is frozen, and contains only the agent's own data. A
//! parked sandbox is empty, and serves any session of its tenant that no warm one serves
//! ([`crate::sessions::launch::Parked`], docs/decisions/parked.md). Both have the id of their
//! future session (docs/decisions/one-id.md) and no row until then. A restarted ashd finds no row
//! for them and destroys them.

pub mod compatibility;
mod inventory;
mod slots;
mod spare_maker;
mod warm_maker;

pub use inventory::{Key, Stock, Warm};

/// Maximum warm sandboxes of one agent.
pub const MAX: u32 = 100;
