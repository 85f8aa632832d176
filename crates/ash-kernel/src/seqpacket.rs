//! Packets with descriptors: `SOCK_SEQPACKET` unix sockets and sealed memfds.
//!
//! ```text
//!   ashd  --launcher.sock-->  launcher      one packet = one JSON message (+ up to 8 descriptors)
//!   ashd  --init.sock------>  init (PID 1)  packets too large for the buffer are refused
//! ```
//!
//! All functions are synchronous and use a [`BorrowedFd`]. On a non-blocking socket they return
//! [`io::ErrorKind::WouldBlock`], so poll loops and tokio's `AsyncFd` use the same functions.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Most descriptors of one packet. More are refused on both sides.
pub const MAX_FDS: usize = 8;

/// Connections waiting for `accept`. Further ones get `EAGAIN` (non-blocking) or wait.
const BACKLOG: i32 = 64;

/// `sun_path` is 108 bytes with its final zero (unix(7)).
const MAX_PATH: usize = 107;

#[derive(Debug)]
pub struct Packet {
    /// Filled bytes of the caller's buffer. 0: the other side closed the connection.
    pub len: usize,
    /// The received descriptors, close-on-exec, in the sender's order.
    pub fds: Vec<OwnedFd>,
}

/// The peer, as recorded by the kernel when the connection was made (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id in the caller's pid namespace. 0 if it has none.
    pub pid: i32,
    /// uid in the caller's user namespace. 65534 if it has none.
    pub uid: u32,
    pub gid: u32,
}

/// Creates a non-blocking, close-on-exec socket that listens at `path`. The path must not exist.
/// The caller removes it.
///
/// # Errors
/// `InvalidInput` for a path of more than 107 bytes; otherwise as for bind(2) and listen(2).
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(true)?;
    net::bind(&socket, &address(path)?)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub mode: u32,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A [`listen`] socket at `name` in a directory, with this mode, owner and group before any client
/// can connect. The name must not exist. After an error it does not exist.
///
/// Mode and owner are set on a descriptor of the bound node, never on a replacement: write access
/// to the directory gives no access to other files.
///
/// # Errors
/// `PermissionDenied` if the name was replaced; otherwise as for bind(2), chmod(2), chown(2) and
/// listen(2).
pub fn listen_in(directory: BorrowedFd<'_>, name: &str, access: Access) -> io::Result<OwnedFd> {
    use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
    let socket = socket(true)?;
    // By descriptor: the path is short, whatever the directory's name.
    net::bind(&socket, &address(Path::new(&format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())))?)?;
    let prepare = || -> io::Result<()> {
        let node =
            rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let found = rustix::fs::fstat(&node)?;
        let own = rustix::process::geteuid().as_raw();
        if !FileType::from_raw_mode(found.st_mode).is_socket() || found.st_uid != own || found.st_nlink != 1 {
            let why = format!("{name} was replaced while it was created");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        // The only form of chmod(2) for an `O_PATH` descriptor.
        rustix::fs::chmodat(
            CWD,
            format!("/proc/self/fd/{}", node.as_raw_fd()),
            Mode::from_raw_mode(access.mode),
            AtFlags::empty(),
        )?;
        let (uid, gid) = (access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw));
        rustix::fs::chownat(&node, "", uid, gid, AtFlags::EMPTY_PATH)?;
        Ok(net::listen(&socket, BACKLOG)?)
    };
    match prepare() {
        Ok(()) => Ok(socket),
        Err(error) => {
            // Also removes a replacement: a failure must not leave the name.
            rustix::fs::unlinkat(directory, name, AtFlags::empty()).ok();
            Err(error)
        }
    }
}

/// Connects to a socket of [`listen`]. The connection is close-on-exec, and non-blocking if
/// requested.
///
/// # Errors
/// `InvalidInput` for a path of more than 107 bytes; otherwise as for connect(2) (`WouldBlock` if
/// the listener's queue is full and the socket is non-blocking).
pub fn connect(path: &Path, nonblocking: bool) -> io::Result<OwnedFd> {
    let socket = socket(nonblocking)?;
    net::connect(&socket, &address(path)?)?;
    Ok(socket)
}

/// Accepts the next connection: close-on-exec and non-blocking.
///
/// # Errors
/// `WouldBlock` if there is none.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Two connected sockets, close-on-exec, blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet completely or not at all. A closed connection is an error (`BrokenPipe`), never
/// a signal.
///
/// # Errors
/// `InvalidInput` for an empty packet (which looks like a closed connection) or more than
/// [`MAX_FDS`] descriptors; `WouldBlock` if the socket's buffer is full; `EMSGSIZE` for a packet
/// that can never fit.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || fds.len() > MAX_FDS {
        let why = format!("a packet must have at least 1 byte and at most {MAX_FDS} descriptors");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("descriptors do not fit into the control buffer"));
    }
    loop {
        match net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one packet into `buffer`.
///
/// # Errors
/// `WouldBlock` if there is none. `InvalidData` if the packet is longer than the buffer or has more
/// than [`MAX_FDS`] descriptors. It is then consumed, its descriptors are closed, and the caller
/// should close the connection.
pub fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        // The kernel fills the control buffer as far as possible. `fds` closes those descriptors
        // here.
        let why = format!("a packet longer than {} bytes or with more than {MAX_FDS} descriptors", buffer.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(Packet { len: got.bytes, fds })
}

/// Whether the other end is closed. Data sent before can still be read.
pub fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    // Does not wait. A failed poll is ignored, because the next use of the socket reports the
    // error.
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let cred = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(Peer { pid: cred.pid(), uid: cred.uid(), gid: cred.gid() })
}

/// An anonymous file with these contents, at offset 0, sealed against changes after the receiver's
/// check.
pub fn sealed_memfd(name: &str, contents: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = contents;
    let mut at = 0;
    while !rest.is_empty() {
        let n = rustix::io::pwrite(&file, rest, at)?;
        rest = &rest[n..];
        at += n as u64;
    }
    rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file)
}

/// The whole contents of a file, read from offset 0 without moving its position.
///
/// # Errors
/// `InvalidData` for more than `max` bytes.
pub fn read_all(file: BorrowedFd<'_>, max: usize) -> io::Result<Vec<u8>> {
    let size = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(usize::MAX);
    let too_long = || io::Error::new(io::ErrorKind::InvalidData, format!("longer than {max} bytes"));
    if size > max {
        return Err(too_long());
    }
    let mut bytes = vec![0; size + 1];
    let mut filled = 0;
    loop {
        let n = rustix::io::pread(file, &mut bytes[filled..], filled as u64)?;
        filled += n;
        if n == 0 {
            bytes.truncate(filled);
            return Ok(bytes);
        }
        if filled > max {
            return Err(too_long());
        }
        if filled == bytes.len() {
            bytes.resize((filled * 2).min(max + 1), 0);
        }
    }
}

fn socket(nonblocking: bool) -> io::Result<OwnedFd> {
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, nonblocking);
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        let why = format!("the socket path {} has {length} bytes: at most {MAX_PATH} are allowed", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn packets_keep_their_bounds_and_descriptors() {
        let (a, b) = pair().unwrap();
        let file = sealed_memfd("spec", b"contents").unwrap();
        send(a.as_fd(), b"one", &[file.as_fd(), a.as_fd()]).unwrap();
        send(a.as_fd(), b"two!", &[]).unwrap();
        let mut buffer = [0; 16];
        let one = recv(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..one.len], one.fds.len()), (&b"one"[..], 2));
        assert_eq!(read_all(one.fds[0].as_fd(), 8).unwrap(), b"contents");
        assert!(read_all(one.fds[0].as_fd(), 7).is_err());
        let flags = rustix::io::fcntl_getfd(&one.fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let two = recv(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..two.len], two.fds.len()), (&b"two!"[..], 0));
        drop((a, one));
        assert_eq!(recv(b.as_fd(), &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn too_long_or_too_many_is_refused_and_nothing_leaks() {
        let (a, b) = pair().unwrap();
        let before = open_descriptors();
        let mut buffer = [0; 4];
        send(a.as_fd(), b"12345", &[a.as_fd(), b.as_fd()]).unwrap();
        assert_eq!(recv(b.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(send(a.as_fd(), b"x", &[a.as_fd(); MAX_FDS + 1]).is_err());
        assert!(send(a.as_fd(), b"", &[]).is_err());
        // A sender without this module: 20 descriptors at once.
        let raw = [a.as_raw_fd(); 20];
        let control = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"x")], &control, flags, None).unwrap();
        assert_eq!(recv(b.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(open_descriptors(), before);
    }

    #[test]
    fn a_listener_knows_its_peer_and_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(accept(listener.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let client = connect(&path, true).unwrap();
        let server = accept(listener.as_fd()).unwrap();
        let peer = peer(server.as_fd()).unwrap();
        assert_eq!(peer.pid, std::process::id() as i32);
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert_eq!(recv(client.as_fd(), &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(server);
        assert_eq!(recv(client.as_fd(), &mut [0; 8]).unwrap().len, 0);
        assert_eq!(send(client.as_fd(), b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let long = dir.path().join("x".repeat(108));
        assert!(listen(&long).unwrap_err().to_string().contains("107"));
    }

    #[test]
    fn a_sealed_memfd_cannot_change() {
        let file = sealed_memfd("spec", b"abc").unwrap();
        assert!(rustix::io::pwrite(&file, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        assert_eq!(read_all(file.as_fd(), 3).unwrap(), b"abc");
    }
}
