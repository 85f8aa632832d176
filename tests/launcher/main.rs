//! The real launcher behind its real socket, as root, with real sandboxes. Each test has its own
//! launcher, directories, uids and cgroups.
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
