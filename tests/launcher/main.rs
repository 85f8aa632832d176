//! The real launcher behind its real socket, as root, with real sandboxes. Each test has a launcher, directories, uids
//! and cgroups of its own.
#![allow(clippy::unwrap_used)]

mod again;
mod host;
mod hostile;
#[path = "../common/journal.rs"]
mod journal;
mod life;
mod looks;
mod story;
mod survival;
mod trust;
mod uids;
