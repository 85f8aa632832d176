//! The only privileged code, and the sandbox's PID 1, which is forked from it.

pub mod again;
pub mod confine;
pub mod ending;
pub mod holding;
pub mod init;
pub mod policy;
pub mod reclaiming;
pub mod recovery;
pub mod rundir;
pub mod sandboxes;
pub mod server;
pub mod settings;
pub mod setup;
pub mod uids;
pub mod victims;
