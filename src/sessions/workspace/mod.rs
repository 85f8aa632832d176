//! A session's files on the host, and their removal.

pub mod layout;
pub mod remove_tree;
