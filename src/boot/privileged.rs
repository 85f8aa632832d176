//! The single-threaded stage that runs as root: prepares, starts what is missing, drops privileges.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::{BootError, companions, directories, handover, listeners, privileges, users};
use crate::config::{Config, Source};

/// Returns only on failure.
pub(super) fn start(config: Config, source: Source) -> Result<Infallible, BootError> {
    let accounts = users::find(&config.launcher, &config.gateway.user)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    directories::prepare(&config.data_dir, &config.run_dir, &accounts.ashd)?;
    directories::prepare_state(&config.gateway_state_dir(), &accounts.gateway)?;
    // Two concurrent starts would start two launchers. The lock ends with this stage, at the exec.
    let _lock = lock(&config.run_dir)?;
    let listeners = listeners::for_root(&config, &accounts.ashd)?;
    companions::ensure(&config, &accounts)?;
    let letter = handover::write(&config, source, &listeners)?;
    drop(config);
    tracing::debug!(user = accounts.ashd.name, "dropping privileges");
    privileges::become_and_execute(&accounts.ashd, letter, super::keeper::UNPRIVILEGED)
}

fn lock(run_dir: &Path) -> Result<Flock<std::fs::File>, BootError> {
    let path = run_dir.join("start.lock");
    let failed = || BootError::io(path.display().to_string());
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed())?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed()(errno.into()))
}
