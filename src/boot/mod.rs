//! How the daemon starts and ends.
//!
//! ```text
//!   started as root, without systemd                     started as user ashd (systemd, or by the stage on the left)
//!   ---------------------------------                    -----------------------------------------------------------
//!   config; lock of the run directory                    config (handed over, or read)
//!   directories, API sockets (bound, not listening)      store, first API key
//!   ash-launcher, ash-gateway: found or started          launcher, gateway: connected
//!   privileges dropped, own image executed again ----->  sessions, router, listen, READY
//!                                                        SIGHUP: read the configuration again
//!                                                        SIGTERM: stop listening, leave sandboxes running
//! ```
//!
//! The second stage never had the model key: it is executed with a new environment and is handed the settled
//! configuration, without it, as a sealed file on stdin.
//!
//! `ash-launcher` and `ash-gateway` outlive ashd, and the next ashd finds them again by their sockets. Each has a keeper,
//! [`keeper`], that starts it again after a crash; `ashd stop` ends ashd, sandboxes, launcher and gateway.

mod companions;
mod confine;
mod directories;
mod error;
mod first_key;
mod handover;
mod idle_memory;
pub mod keeper;
mod listeners;
mod privileged;
mod privileges;
mod reload;
mod run;
mod stop;
mod users;
mod watchdog;

use std::path::Path;

pub use error::BootError;
pub use stop::stop;

use crate::config::{Source, foreign};
use ash_kernel::sanitize;
use ash_observe::logging;

/// `ashd serve`: serves until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps the daemon from serving, with the way out.
pub fn serve(file: Option<&Path>) -> Result<(), BootError> {
    sanitize::close_inherited(sanitize::passed_here()).map_err(BootError::io("closing inherited descriptors"))?;
    let source = Source::here(file)?;
    let config = source.read()?;
    logging::start("ashd", config.log.level.as_deref()).map_err(BootError::Refused)?;
    // Here and not at a reload: the next stage has none of these variables.
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for what in foreign::without_effect(names) {
        tracing::warn!(ASH_EVENT = "variable-without-effect", "{what}");
    }
    if nix::unistd::geteuid().is_root() {
        return privileged::start(config, source).map(|never| match never {});
    }
    for socket in [companions::launcher_socket(&config.run_dir), companions::gateway_socket(&config.run_dir)] {
        if !socket.exists() {
            return Err(BootError::Refused(format!(
                "{} is not there, and only root can start what answers at it; start ashd as root (it gives its privileges up), \
                 or `systemctl start ash-launcher.socket ash-gateway.socket`",
                socket.display()
            )));
        }
    }
    let listeners = listeners::for_unprivileged(&config)?;
    run::run(config, source, listeners)
}

/// The stage without privileges of a daemon that was started as root.
///
/// # Errors
/// As [`serve`]; also when it was not started by that stage.
pub fn serve_handed_over() -> Result<(), BootError> {
    let handed = handover::take()?;
    sanitize::close_inherited(0).map_err(BootError::io("closing inherited descriptors"))?;
    logging::start("ashd", handed.config.log.level.as_deref()).map_err(BootError::Refused)?;
    run::run(handed.config, handed.source, handed.listeners)
}
