//! The model gateway (DESIGN §7): the only process that holds the model key and has a way out to the network.
//!
//! ```text
//!  ashd --(gateway.sock: register, unregister, usage, shutdown)--> control
//!                                                                     |
//!  sandbox's 127.0.0.1 --listener's descriptor--> serve --> admit --> forward --> model: a base URL, or `offline`
//!                                                              |                     |
//!                                                          401, 404 ...          relay (bounded buffer) + meter
//!  sandbox  <------------------------------------------------------------------------+
//! ```
//!
//! * [`protocol`] and [`client`]: what ashd needs.
//! * [`control`] answers ashd; [`registry`] holds what it registered; [`serve`] accepts and speaks HTTP to sandboxes.
//! * [`admit`] (pure) decides what a sandbox may ask; [`forward`] (pure) rewrites the headers; [`upstream`] sends;
//!   [`relay`] passes the answer on and [`meter`] (pure) counts its tokens.
//! * [`settings`] and [`privileges`]: how the process starts; [`successor`]: how it is replaced in place.

pub mod admit;
pub mod answer;
pub mod client;
pub mod control;
pub mod forward;
pub mod meter;
pub mod offline;
pub mod packets;
pub mod privileges;
pub mod protocol;
pub mod registry;
pub mod relay;
pub mod serve;
pub mod settings;
pub mod successor;
pub mod upstream;
