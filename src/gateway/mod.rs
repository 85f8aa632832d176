//! ashd's side of the model gateway: the connection to its control socket, and the windows of the
//! sessions.
//!
//! ```text
//!   sessions --register, hold a window--> client --gateway.sock--> ash-gateway
//! ```

pub mod client;
pub mod windows;
