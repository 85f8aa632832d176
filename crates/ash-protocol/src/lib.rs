//! Messages between the processes of ashd, and their framing.
//!
//! ```text
//!   ashd --launcher.sock (launcher)--> ash-launcher --clone--> init of a sandbox
//!     |  \--init.sock (init)--------------------------------------^
//!     \--gateway.sock (gateway)--> ash-gateway
//! ```
//!
//! Every message is one JSON object in one packet of a `SOCK_SEQPACKET` unix socket. Descriptors
//! are sent along.

pub mod gateway;
pub mod init;
pub mod launcher;
#[cfg(feature = "tokio")]
pub mod packets;
