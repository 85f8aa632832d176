//! The model gateway (DESIGN §7): the only process that holds the model key and has a way out to the network.

pub mod client;
pub mod protocol;
