//! Start and end of the daemon.
//!
//! ```text
//!   started as root, without systemd           started as user ashd (by systemd or the left stage)
//!   ---------------------------------          ---------------------------------------------------
//!   config; lock of the run directory          config (handed over, or read)
//!   directories, API sockets (only bound)      store, first API key
//!   ash-launcher, ash-gateway: find or start   launcher, gateway: connect
//!   drop privileges, execute own image ----->  sessions, router, listen, READY
//!                                              SIGHUP: read the configuration again
//!                                              SIGTERM: stop listening, leave sandboxes running
//! ```
//!
//! The second stage never has the model key: it runs with a new environment and gets the final
//! configuration, without the key, as a sealed file on stdin.
//!
//! `ash-launcher` and `ash-gateway` outlive ashd, and the next ashd finds them by their sockets. A
//! [`keeper`] restarts each after a crash; `ashd stop` ends ashd, sandboxes, launcher and gateway.

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
/// What keeps the daemon from serving, and the fix.
pub fn serve(file: Option<&Path>) -> Result<(), BootError> {
    sanitize::close_inherited(sanitize::passed_here()).map_err(BootError::io("closing inherited descriptors"))?;
    let source = Source::here(file)?;
    let config = source.read()?;
    logging::start("ashd", config.log.level.as_deref()).map_err(BootError::Refused)?;
    // Not at a reload: the next stage has none of these variables.
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
                "{} does not exist, and only root can start its process; start ashd as root (it drops its privileges), \
                 or `systemctl start ash-launcher.socket ash-gateway.socket`",
                socket.display()
            )));
        }
    }
    let listeners = listeners::for_unprivileged(&config)?;
    run::run(config, source, listeners)
}

/// The unprivileged stage of a daemon that was started as root.
///
/// # Errors
/// As [`serve`]; also when the privileged stage did not start it.
pub fn serve_handed_over() -> Result<(), BootError> {
    let handed = handover::take()?;
    sanitize::close_inherited(0).map_err(BootError::io("closing inherited descriptors"))?;
    logging::start("ashd", handed.config.log.level.as_deref()).map_err(BootError::Refused)?;
    run::run(handed.config, handed.source, handed.listeners)
}
