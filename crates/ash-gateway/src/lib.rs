//! The model gateway: the only process that holds the model key and has a way out to the network.
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
//! * [`protocol`], [`client`] and [`windows`]: what ashd needs.
//! * [`control`] answers ashd; [`registry`] holds what it registered; [`serve`] accepts and speaks HTTP to sandboxes.
//! * [`pace`] slows a session that asks too fast; [`admit`] (pure) decides what a sandbox may ask, [`window`] when;
//!   [`forward`] (pure) rewrites the headers; [`upstream`] sends, and [`mask`] keeps keys out of its errors; [`relay`] passes
//!   the answer on.
//! * [`meter`] (pure) counts the tokens of an answer, [`charge`] and [`ledger`] record them for ashd.
//! * [`share`] bounds what the sessions of one tenant may hold together.
//! * [`settings`] and [`privileges`]: how the process starts; [`successor`]: how it is replaced in place.

pub mod admit;
pub mod answer;
pub mod charge;
pub mod confine;
pub mod control;
pub mod forward;
pub mod ledger;
pub mod mask;
pub mod meter;
pub mod offline;
pub mod pace;
pub mod paced;
pub mod privileges;
pub mod registry;
pub mod relay;
pub mod serve;
pub mod settings;
pub mod share;
pub mod successor;
pub mod upstream;
pub mod window;
