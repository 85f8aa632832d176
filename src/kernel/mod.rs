//! One file per kernel mechanism, and the only place with `unsafe`: each site says why it is sound.
//! See DESIGN §9.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod freeze;
pub mod inherited;
pub mod seqpacket;
