//! What is ready before anybody asked for a session, of two kinds.
//!
//! ```text
//!   warm:    keeper --start, freeze--> [ shelf ] --claim--> a session of that id (Request::Claim), used once
//!   parked:  keeper --make, prove----> [ shelf ] --claim--> the same (Request::Create), claude is started in it
//!                                         |
//!                                         +-- what it stands upon changed, room needed, dead --> destroyed, directory too
//! ```
//!
//! A warm sandbox is made for one tenant and one state of one agent ([`Key`]): claude has answered `initialize` in the agent's
//! workspace. It stands frozen, and holds nothing but what the agent itself says. A parked one is empty, and for any session
//! of its tenant that no warm one serves ([`crate::sessions::launch::Parked`], docs/decisions/parked.md). Both have the id of
//! the session they will become (docs/decisions/one-id.md) and no row until then. A restarted ashd finds no row for them and
//! destroys them like any other orphan.

pub mod compatibility;
mod inventory;
mod slots;
mod spare_maker;
mod warm_maker;

pub use inventory::{Key, Stock, Warm};

/// Most that may be kept of one agent.
pub const MAX: u32 = 100;
