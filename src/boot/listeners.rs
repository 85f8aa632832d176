//! The sockets of the API: systemd's, or bound here.
//!
//! Sockets bound here listen when the daemon can answer, so that no client waits for a daemon that
//! fails to start.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, getsockname, listen,
    setsockopt, socket, sockopt,
};

use super::BootError;
use super::users::Account;
use crate::config::Config;
use crate::http::Listener;
use ash_kernel::{inherited, tcp};
use ash_observe::systemd;

/// Connections waiting to be accepted; the kernel's limit is net.core.somaxconn, 4096.
const BACKLOG: i32 = 4096;
/// Bytes in the kernel for a client that does not read; data in flight to a reading client is not
/// limited by it.
const UNSENT: u32 = 128 << 10;
/// Name of the API's unix socket, below the run directory.
pub(super) const API_SOCKET: &str = "ashd.sock";

/// Bound sockets, and the file for the port once they listen.
#[derive(Debug)]
pub(super) struct Listeners {
    pub sockets: Vec<OwnedFd>,
    pub port_file: Option<OwnedFd>,
}

/// systemd's sockets, if it started this process.
fn from_systemd() -> Result<Vec<OwnedFd>, BootError> {
    let take = |fd: systemd::ListenFd| {
        inherited::claim(fd.number).map_err(BootError::io(format!("socket \"{}\" of systemd", fd.name)))
    };
    systemd::listen_fds().into_iter().map(take).collect()
}

/// As root: the port, `<run dir>/ashd.sock` (for root and ashd's group), and the file for the port.
pub(super) fn for_root(config: &Config, ashd: &Account) -> Result<Listeners, BootError> {
    let mut sockets = from_systemd()?;
    if sockets.is_empty() {
        sockets = vec![bind_tcp(config)?, bind_unix(&config.run_dir, ashd)?];
    }
    let port_file =
        port_file(&config.run_dir).map_err(BootError::io(config.run_dir.join("port").display().to_string()))?;
    Ok(Listeners { sockets, port_file: Some(port_file.into()) })
}

/// As ashd's user: systemd's sockets, or only the port, since the run directory belongs to root.
pub(super) fn for_unprivileged(config: &Config) -> Result<Listeners, BootError> {
    let mut sockets = from_systemd()?;
    if sockets.is_empty() {
        sockets = vec![bind_tcp(config)?];
    }
    let port_file = port_file(&config.run_dir).ok();
    if port_file.is_none() && config.server.port == 0 {
        tracing::warn!(run_dir = %config.run_dir.display(), "the chosen port is only logged: the run directory cannot be written");
    }
    Ok(Listeners { sockets, port_file: port_file.map(OwnedFd::from) })
}

fn port_file(run_dir: &Path) -> io::Result<File> {
    let path = run_dir.join("port");
    // A new file: readers of an old one see the old port, never a partial new one.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

fn bind_tcp(config: &Config) -> Result<OwnedFd, BootError> {
    let address = SocketAddr::new(config.server.host, config.server.port);
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let bound =
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).and_then(|fd| {
            // Connections of an ended ashd must not keep the port.
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
            Ok(fd)
        });
    bound.map_err(|errno| match errno {
        nix::errno::Errno::EADDRINUSE => BootError::Refused(format!(
            "{address} is in use, possibly by another ashd; choose another port (ASH_PORT, server.port; 0 picks a free one)"
        )),
        _ => BootError::Io { what: format!("address {address}"), source: errno.into() },
    })
}

fn bind_unix(run_dir: &Path, ashd: &Account) -> Result<OwnedFd, BootError> {
    let path = run_dir.join(API_SOCKET);
    let failed = || BootError::io(path.display().to_string());
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(BootError::Refused(format!(
            "another ashd is running at {}; stop it with `ashd stop`",
            path.display()
        )));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|fd| {
            bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(&path)?)?;
            Ok(fd)
        })
        .map_err(|errno| failed()(errno.into()))?;
    chown(&path, Some(0), Some(ashd.gid)).map_err(failed())?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o660)).map_err(failed())?;
    Ok(fd)
}

impl Listeners {
    /// Starts accepting connections. Writes the port when all sockets listen.
    pub fn listen(self) -> io::Result<Vec<Listener>> {
        let (mut listening, mut port) = (Vec::new(), None);
        for fd in self.sockets {
            listen(&fd.as_fd(), Backlog::new(BACKLOG)?)?;
            let family = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&fd))?.family();
            if family == Some(AddressFamily::Unix) {
                let socket = std::os::unix::net::UnixListener::from(fd);
                socket.set_nonblocking(true)?;
                listening.push(Listener::Unix(tokio::net::UnixListener::from_std(socket)?));
            } else {
                let socket = std::net::TcpListener::from(fd);
                socket.set_nonblocking(true)?;
                let address = socket.local_addr()?;
                tcp::bound_queue(socket.as_fd(), UNSENT)?;
                tracing::info!(%address, "listening");
                port = port.or(Some(address.port()));
                listening.push(Listener::Tcp(tokio::net::TcpListener::from_std(socket)?));
            }
        }
        if let (Some(file), Some(port)) = (self.port_file, port) {
            let mut file = File::from(file);
            file.seek(SeekFrom::Start(0))?;
            file.write_all(format!("{port}\n").as_bytes())?;
        }
        Ok(listening)
    }
}
