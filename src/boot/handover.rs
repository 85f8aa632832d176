//! Passes the final configuration as a sealed file on stdin, and the bound sockets by number, from
//! the privileged to the unprivileged stage.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::BootError;
use super::listeners::Listeners;
use crate::config::{Config, Source};
use ash_kernel::{inherited, seqpacket};

#[derive(Serialize, Deserialize)]
struct Letter {
    config: Config,
    /// For a reload.
    source: Source,
    sockets: Vec<RawFd>,
    port_file: Option<RawFd>,
}

pub(super) struct Handed {
    pub config: Config,
    pub source: Source,
    pub listeners: Listeners,
}

/// The file for the next stage's stdin. Its descriptors are inherited by the exec from here on.
pub(super) fn write(config: &Config, source: Source, listeners: &Listeners) -> Result<OwnedFd, BootError> {
    let keep = |fd: &OwnedFd| inherited::keep_on_exec(fd.as_fd()).map(|()| fd.as_raw_fd());
    let failed = || BootError::io("cannot hand over to the unprivileged stage");
    let letter = Letter {
        config: config.clone(),
        source: source.without_model_key(),
        sockets: listeners.sockets.iter().map(keep).collect::<Result<_, _>>().map_err(failed())?,
        port_file: listeners.port_file.as_ref().map(keep).transpose().map_err(failed())?,
    };
    let text = serde_json::to_vec(&letter).map_err(|why| failed()(why.into()))?;
    seqpacket::sealed_memfd("ashd-config", &text).map_err(failed())
}

/// Reads what the privileged stage wrote.
pub(super) fn take() -> Result<Handed, BootError> {
    let failed = || BootError::io("cannot read the handover of the privileged stage from stdin");
    let mut text = Vec::new();
    std::io::stdin().lock().take(1 << 20).read_to_end(&mut text).map_err(failed())?;
    let letter: Letter = serde_json::from_slice(&text).map_err(|why| failed()(why.into()))?;
    let sockets = letter.sockets.into_iter().map(inherited::claim).collect::<Result<_, _>>().map_err(failed())?;
    let port_file = letter.port_file.map(inherited::claim).transpose().map_err(failed())?;
    let config = Config { file: Some(letter.source.file().to_owned()), ..letter.config };
    Ok(Handed { config, source: letter.source, listeners: Listeners { sockets, port_file } })
}
