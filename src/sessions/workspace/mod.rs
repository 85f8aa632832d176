//! Where a session keeps its files on the host, and how they are removed.

pub mod layout;
pub mod remove_tree;
