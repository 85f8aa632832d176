//! One module per kernel mechanism. All `unsafe` code is in this crate; each block has a SAFETY
//! note.
#![allow(unsafe_code)]

pub mod beneath;
pub mod caps;
pub mod cgroup;
pub mod clone;
pub mod code_pages;
pub mod confine;
pub mod copy;
pub mod freeze;
pub mod heap;
pub mod held;
pub mod idmap;
pub mod inherited;
pub mod kmsg;
pub mod landlock;
pub mod mounts;
pub mod net;
pub mod owned;
pub mod owner;
pub mod pidfd;
pub mod pressure;
pub mod private;
pub mod probe;
pub mod process;
pub mod procfs;
pub mod reclaim;
pub mod sanitize;
pub mod seccomp;
pub mod seqpacket;
pub mod single;
pub mod syscalls;
pub mod tcp;
pub mod tree;
pub mod trusted;
pub mod unprivileged;
pub mod walk;
#[cfg(feature = "tokio")]
pub mod watch;
