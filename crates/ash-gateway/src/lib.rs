//! The model gateway: the only process with the model key and with network access.
//!
//! ```text
//!  ashd --(gateway.sock: register, unregister, usage, shutdown)--> control
//!                                                                     |
//!  sandbox's 127.0.0.1 --listener's descriptor--> serve --> admit --> forward --> model: base URL,
//!                                                              |                  or `offline`
//!                                                          401, 404 ...              |
//!                                                              |           relay (bounded buffer)
//!                                                              |                 + meter
//!  sandbox  <--------------------------------------------------+---------------------+
//! ```
//!
//! * The protocol with ashd is in `ash-protocol`; ashd's side is in `src/gateway`.
//! * [`control`] serves ashd; [`registry`] holds the registered sessions; [`serve`] accepts
//!   connections of sandboxes and speaks HTTP to them.
//! * [`pace`] limits the rate of a session; [`admit`] (pure) decides what a sandbox may request,
//!   [`window`] when; [`forward`] (pure) rewrites headers; [`upstream`] sends, and [`mask`] removes
//!   keys from its errors; [`relay`] passes the answer on.
//! * [`meter`] (pure) counts the tokens of an answer; [`charge`] and [`ledger`] record them for
//!   ashd.
//! * [`share`] limits what the sessions of one tenant hold together.
//! * [`settings`] and [`privileges`]: start of the process; [`successor`]: its replacement.

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
