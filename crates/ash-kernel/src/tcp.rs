//! Socket options of TCP connections (tcp(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};

/// Seconds of silence before the kernel probes the other end, and between probes.
const PROBE_AFTER_S: u32 = 60;
const PROBE_EVERY_S: u32 = 15;

/// Limits the unsent data (`TCP_NOTSENT_LOWAT`) and detects dead peers. Accepted connections
/// inherit both from the listener.
///
/// # Errors
/// The descriptor is not a TCP socket.
pub fn bound_queue(listener: BorrowedFd<'_>, unsent: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(unsent).unwrap_or(libc::c_int::MAX);
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: reads one int of that size, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const value).cast(),
            length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    setsockopt(&listener, sockopt::KeepAlive, &true)?;
    setsockopt(&listener, sockopt::TcpKeepIdle, &PROBE_AFTER_S)?;
    setsockopt(&listener, sockopt::TcpKeepInterval, &PROBE_EVERY_S)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn accepted_connections_inherit_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        bound_queue(listener.as_fd(), 4096).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(getsockopt(&accepted, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&accepted, sockopt::TcpKeepIdle).unwrap(), PROBE_AFTER_S);
        // A client that does not read: without the limit the kernel accepts megabytes.
        accepted.set_nonblocking(true).unwrap();
        let mut taken = 0;
        while let Ok(length) = std::io::Write::write(&mut (&accepted), &[0; 65_536]) {
            taken += length;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert!(taken > 0);
    }
}
