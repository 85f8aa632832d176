//! What a tenant may store, hold and use, and how much of it is in use.

pub mod admission;
pub mod disk_reserve;
pub mod history_cap;
pub mod shares;
pub mod stored;
