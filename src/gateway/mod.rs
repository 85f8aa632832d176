//! ashd's side of the model gateway: one connection to its control socket, and the windows in which sessions may ask.
//!
//! ```text
//!   sessions --register, hold a window--> client --gateway.sock--> ash-gateway
//! ```

pub mod client;
pub mod windows;
