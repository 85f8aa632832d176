//! ashd: Claude Code agents as a service on one Linux host.
//!
//! ```text
//!     REST/SSE client                      admin
//!          |                                 |
//!     +----v-------------------+        ashctl, systemctl, journalctl
//!     | ashd   user ashd       |
//!     |  no capabilities       |--- SQLite (WAL), session directories
//!     |  http sessions pool    |
//!     +----+---------------+---+
//!          |               | which session may use which key
//!          |          +----v-------------------+
//!          |          | ash-gateway            |  the only process with model key and network
//!          |          +----^-------------------+
//!          | typed requests| listeners inside the sandboxes' empty networks
//!     +----v---------------+---+
//!     | ash-launcher  root     |  clone3, mounts, uid maps, cgroups, freeze, kill
//!     +----+-------------------+
//!          | clone3(all namespaces)
//!     +----v-------------------+
//!     | sandbox init (PID 1)   |  reaps, starts commands, feeds claude's stdin
//!     |   +-- claude           |
//!     |       +-- bash, git... |
//!     +------------------------+
//! ```
//!
//! Dependencies have one direction: `http -> sessions -> {store, pool, sandbox, gateway, vault} ->
//! config`, and below them the crates of `crates/`. `tests/layers` has the complete table. `boot`
//! assembles everything.

pub mod boot;
pub mod config;
pub mod doctor;
pub mod gateway;
pub mod http;
pub mod pool;
pub mod sandbox;
pub mod sessions;
pub mod store;
pub mod vault;
