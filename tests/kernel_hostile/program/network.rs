//! Network exits: sockets of every family, addresses outside, unix sockets of the host.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use libc as sys;
use libc::{
    EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, ECONNREFUSED, EEXIST, ENETUNREACH, ENOBUFS, ENODEV,
    ENOENT, EPERM, EPROTOTYPE,
};

use crate::act::Act::{Do, Family, Socket};
use crate::act::Control::{IfThere, Not, Shown};
use crate::act::{Attempt, Context, Outcome, at, attempt, call, errno};

const PERM: &[i32] = &[EPERM];
const FAR: &[i32] = &[ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT];
const GONE: &[i32] = &[ENOENT];
const STREAM: i32 = sys::SOCK_STREAM;
const DGRAM: i32 = sys::SOCK_DGRAM;
const RAW: i32 = sys::SOCK_RAW;
const SEQ: i32 = sys::SOCK_SEQPACKET;

#[rustfmt::skip]
pub const ATTEMPTS: &[Attempt] = &[
    attempt(Family("packet", sys::AF_PACKET, DGRAM, 0), PERM, Shown),
    attempt(Family("packet raw", sys::AF_PACKET, RAW, 0), PERM, Shown),
    attempt(Family("vsock", sys::AF_VSOCK, STREAM, 0), PERM, IfThere),
    attempt(Family("alg", sys::AF_ALG, SEQ, 0), PERM, IfThere),
    attempt(Family("bluetooth", sys::AF_BLUETOOTH, RAW, 1), PERM, IfThere),
    attempt(Family("can", sys::AF_CAN, RAW, 1), PERM, IfThere),
    attempt(Family("ax25", sys::AF_AX25, SEQ, 0), PERM, IfThere),
    attempt(Family("ipx", sys::AF_IPX, DGRAM, 0), PERM, IfThere),
    attempt(Family("appletalk", sys::AF_APPLETALK, DGRAM, 0), PERM, IfThere),
    attempt(Family("x25", sys::AF_X25, SEQ, 0), PERM, IfThere),
    attempt(Family("netrom", sys::AF_NETROM, SEQ, 0), PERM, IfThere),
    attempt(Family("decnet", 12, SEQ, 0), PERM, IfThere),
    attempt(Family("key", sys::AF_KEY, RAW, 2), PERM, IfThere),
    attempt(Family("llc", sys::AF_LLC, DGRAM, 0), PERM, IfThere),
    attempt(Family("rds", sys::AF_RDS, SEQ, 0), PERM, IfThere),
    attempt(Family("pppox", sys::AF_PPPOX, STREAM, 0), PERM, IfThere),
    attempt(Family("tipc", sys::AF_TIPC, RAW, 0), PERM, IfThere),
    attempt(Family("phonet", sys::AF_PHONET, DGRAM, 0), PERM, IfThere),
    attempt(Family("ieee802154", sys::AF_IEEE802154, RAW, 0), PERM, IfThere),
    attempt(Family("caif", 37, SEQ, 0), PERM, IfThere),
    attempt(Family("nfc", 39, RAW, 0), PERM, IfThere),
    attempt(Family("kcm", 41, DGRAM, 0), PERM, IfThere),
    attempt(Family("qipcrtr", 42, DGRAM, 0), PERM, IfThere),
    attempt(Family("smc", 43, STREAM, 0), PERM, IfThere),
    attempt(Family("xdp", 44, RAW, 0), PERM, IfThere),
    attempt(Family("mctp", 45, DGRAM, 0), PERM, IfThere),
    attempt(Family("rxrpc", 33, DGRAM, 2), PERM, IfThere),
    attempt(Family("isdn", 34, RAW, 0), PERM, IfThere),
    attempt(Family("icmp raw", sys::AF_INET, RAW, 1), PERM, Shown),
    attempt(Family("tcp raw", sys::AF_INET, RAW, 6), PERM, Shown),
    attempt(Family("ip raw", sys::AF_INET, RAW, 255), PERM, Shown),
    attempt(Family("icmp6 raw", sys::AF_INET6, RAW, 58), PERM, IfThere),
    attempt(Family("sctp", sys::AF_INET, STREAM, 132), PERM, IfThere),
    attempt(Family("sctp, one to many", sys::AF_INET, SEQ, 132), PERM, IfThere),
    attempt(Family("sctp over IPv6", sys::AF_INET6, SEQ, 132), PERM, IfThere),
    attempt(Family("dccp", sys::AF_INET, 6, 33), PERM, IfThere),
    attempt(Family("mptcp", sys::AF_INET, STREAM, 262), PERM, Shown),
    attempt(Family("mptcp over IPv6", sys::AF_INET6, STREAM, 262), PERM, IfThere),
    attempt(Family("smc over TCP", sys::AF_INET, STREAM, 256), PERM, IfThere),
    attempt(Family("udplite", sys::AF_INET, DGRAM, 136), PERM, IfThere),
    attempt(Family("l2tp", sys::AF_INET, DGRAM, 115), PERM, IfThere),
    attempt(Family("ping", sys::AF_INET, DGRAM, 1), PERM, IfThere),
    attempt(Family("ping over IPv6", sys::AF_INET6, DGRAM, 58), PERM, IfThere),
    attempt(Family("a module by its protocol", sys::AF_INET, DGRAM, 200), PERM, Not("runs modprobe")),
    attempt(Family("a module by its type", sys::AF_INET, 4, 0), PERM, Not("runs modprobe")),
    attempt(Family("a type past the last", sys::AF_INET, 11, 0), PERM, Not("refused everywhere")),
    attempt(Family("sctp with flags in the type", sys::AF_INET, STREAM | sys::SOCK_CLOEXEC | sys::SOCK_NONBLOCK, 132), PERM, IfThere),
    attempt(Family("a protocol of unix sockets", sys::AF_UNIX, STREAM, 2), PERM, Not("refused everywhere")),
    attempt(Do("a protocol with high bits set", |_| call(sys::SYS_socket, &[sys::AF_INET.into(), STREAM.into(), 262 | 1 << 32]).map(drop)), PERM, Shown),
    attempt(Do("a pair of TCP sockets", |_| { let pair = [0_i32; 2]; call(sys::SYS_socketpair, &[sys::AF_INET.into(), STREAM.into(), 0, at(&pair)]).map(drop) }), PERM, Not("refused everywhere")),
    attempt(Do("kernel TLS (TCP_ULP)", |_| ulp()), PERM, IfThere),
    attempt(Do("a program on a socket (SO_ATTACH_FILTER)", |_| filter(sys::SO_ATTACH_FILTER)), PERM, Shown),
    attempt(Do("a program on a port (SO_ATTACH_REUSEPORT_CBPF)", |_| filter(51)), PERM, IfThere),
    attempt(Do("a bridge's module (SIOCGIFBR)", |_| interface(0x8940)), PERM, Not("runs modprobe")),
    attempt(Do("a VLAN's module (SIOCGIFVLAN)", |_| interface(0x8982)), PERM, Not("runs modprobe")),
    attempt(Family("netlink generic", sys::AF_NETLINK, RAW, 16), PERM, Shown),
    attempt(Family("netlink audit", sys::AF_NETLINK, RAW, 9), PERM, IfThere),
    attempt(Family("netlink kobject", sys::AF_NETLINK, RAW, 15), PERM, Shown),
    attempt(Family("netlink netfilter", sys::AF_NETLINK, RAW, 12), PERM, IfThere),
    attempt(Family("netlink xfrm", sys::AF_NETLINK, RAW, 6), PERM, IfThere),
    attempt(Family("netlink connector", sys::AF_NETLINK, DGRAM, 11), PERM, IfThere),
    attempt(Family("netlink selinux", sys::AF_NETLINK, RAW, 7), PERM, IfThere),
    attempt(Family("netlink usersock", sys::AF_NETLINK, RAW, 2), PERM, Shown),
    attempt(Family("netlink sock_diag", sys::AF_NETLINK, RAW, 4), PERM, IfThere),
    attempt(Family("netlink crypto", sys::AF_NETLINK, RAW, 21), PERM, IfThere),
    attempt(Family("netlink scsi", sys::AF_NETLINK, RAW, 18), PERM, IfThere),
    attempt(Family("netlink rdma", sys::AF_NETLINK, RAW, 20), PERM, IfThere),
    attempt(Family("netlink fib lookup", sys::AF_NETLINK, RAW, 10), PERM, IfThere),
    attempt(Socket("/run/dbus/system_bus_socket"), GONE, IfThere),
    attempt(Socket("/var/run/dbus/system_bus_socket"), GONE, IfThere),
    attempt(Socket("/run/systemd/private"), GONE, IfThere),
    attempt(Socket("/run/systemd/journal/socket"), GONE, IfThere),
    attempt(Socket("/run/systemd/journal/stdout"), GONE, IfThere),
    attempt(Socket("/run/systemd/notify"), GONE, IfThere),
    attempt(Socket("/run/docker.sock"), GONE, IfThere),
    attempt(Socket("/var/run/docker.sock"), GONE, IfThere),
    attempt(Socket("/run/containerd/containerd.sock"), GONE, IfThere),
    attempt(Socket("/run/ashd/launcher.sock"), GONE, IfThere),
    attempt(Socket("/run/ashd/gateway.sock"), GONE, IfThere),
    attempt(Socket("/tmp/.X11-unix/X0"), GONE, IfThere),
    attempt(Do("reach the cloud's metadata (169.254.169.254:80)", |_| udp("169.254.169.254:80")), FAR, IfThere),
    attempt(Do("reach a second metadata address (169.254.170.2:80)", |_| udp("169.254.170.2:80")), FAR, IfThere),
    attempt(Do("reach 10/8 (10.0.0.1:80)", |_| udp("10.0.0.1:80")), FAR, IfThere),
    attempt(Do("reach 172.16/12 (172.16.0.1:80)", |_| udp("172.16.0.1:80")), FAR, IfThere),
    attempt(Do("reach 192.168/16 (192.168.0.1:80)", |_| udp("192.168.0.1:80")), FAR, IfThere),
    attempt(Do("reach 100.64/10 (100.64.0.1:80)", |_| udp("100.64.0.1:80")), FAR, IfThere),
    attempt(Do("reach the internet (192.0.2.1:443)", |_| udp("192.0.2.1:443")), FAR, IfThere),
    attempt(Do("reach a name server (8.8.8.8:53)", |_| udp("8.8.8.8:53")), FAR, IfThere),
    attempt(Do("reach a multicast group (224.0.0.251:5353)", |_| udp("224.0.0.251:5353")), FAR, IfThere),
    attempt(Do("reach the internet over TCP", |_| tcp("192.0.2.1:443")), FAR, Not("there is nobody to answer")),
    attempt(Do("reach the metadata over IPv6", |_| udp6("[fd00:ec2::254]:80")), FAR, IfThere),
    attempt(Do("reach the internet over IPv6", |_| udp6("[2001:db8::1]:443")), FAR, IfThere),
    attempt(Do("broadcast", broadcast), FAR, IfThere),
    attempt(Do("reach a server on the host's loopback", |c| tcp(&format!("127.0.0.1:{}", c.text("H_TCP")))), &[ECONNREFUSED], Shown),
    attempt(Do("reach another session's server", |c| tcp(&format!("127.0.0.1:{}", c.text("H_PORT")))), &[ECONNREFUSED], Shown),
    attempt(Do("reach the launcher's socket by its path", |c| packet(&c.text("H_RUN"), "launcher.sock")), GONE, Shown),
    attempt(Do("reach it through init's root", |c| packet(&format!("/proc/1/root{}", c.text("H_RUN")), "launcher.sock")), &[ENOENT, EACCES, EPERM], IfThere),
    attempt(Do("reach an abstract socket of the host", |c| abstract_socket(&c.text("H_ABSTRACT"))), &[ECONNREFUSED, EPERM], Shown),
    attempt(Do("reach another session's abstract socket", |c| abstract_socket(&c.text("H_FOREIGN"))), &[ECONNREFUSED, EPERM], Shown),
    attempt(Do("reach another command's abstract socket", |c| abstract_socket(&c.text("H_SIBLING"))), PERM, Shown),
    attempt(Do("reach systemd's abstract socket", |_| abstract_socket("/org/freedesktop/systemd1/notify")), &[ECONNREFUSED, EPERM], IfThere),
    attempt(Do("take the gateway's port", |_| take_port(Ipv4Addr::LOCALHOST)), &[EADDRINUSE], Not("nobody has it outside")),
    attempt(Do("take the gateway's port on all addresses", |_| take_port(Ipv4Addr::UNSPECIFIED)), &[EADDRINUSE], Not("nobody has it outside")),
    attempt(Do("a mark on packets (SO_MARK)", |_| option(sys::SOL_SOCKET, sys::SO_MARK, 1)), PERM, Shown),
    attempt(Do("a priority above 6", |_| option(sys::SOL_SOCKET, sys::SO_PRIORITY, 7)), PERM, Shown),
    attempt(Do("a buffer past the limit", |_| option(sys::SOL_SOCKET, sys::SO_RCVBUFFORCE, 1 << 20)), PERM, Shown),
    attempt(Do("debugging of a socket", |_| option(sys::SOL_SOCKET, sys::SO_DEBUG, 1)), &[EACCES, EPERM], Shown),
    attempt(Do("transparent proxying", |_| option(sys::IPPROTO_IP, sys::IP_TRANSPARENT, 1)), PERM, Shown),
    attempt(Do("repair of connections", |_| option(sys::IPPROTO_TCP, 19, 1)), PERM, Shown),
    attempt(Do("signed segments (TCP_MD5SIG)", |_| option(sys::IPPROTO_TCP, 14, 1)), PERM, Not("needs an address")),
    attempt(Do("signed segments (TCP-AO)", |_| option(sys::IPPROTO_TCP, 38, 1)), PERM, Not("not in every kernel")),
    attempt(Do("IPsec in UDP", |_| set(&socket(sys::AF_INET, DGRAM, 0)?, sys::IPPROTO_UDP, 100, 2)), PERM, IfThere),
    attempt(Do("64 KiB of options on a socket", |_| large_options()), &[ENOBUFS], Shown),
    attempt(Do("a filter table (iptables)", |_| option(sys::IPPROTO_IP, 64, 0)), &[EPERM, EACCES, libc::ENOPROTOOPT], Not("empties the host's table")),
    attempt(Do("a new address on lo", |c| netlink(c, 20, &address())), PERM, Shown),
    attempt(Do("a new link (dummy)", |c| netlink(c, 16, &link())), PERM, IfThere),
    attempt(Do("take lo down", |c| netlink(c, 16, &down())), PERM, Shown),
    attempt(Do("the name of an interface", |_| interface(sys::SIOCSIFNAME as i64)), &[EPERM, ENODEV], Not("would harm the machine")),
    attempt(Do("the flags of an interface", flags), PERM, Shown),
];

fn udp(to: &str) -> Outcome {
    UdpSocket::bind("0.0.0.0:0")?.connect(to)
}

fn udp6(to: &str) -> Outcome {
    UdpSocket::bind("[::]:0")?.connect(to)
}

fn tcp(to: &str) -> Outcome {
    TcpStream::connect_timeout(&to.parse().expect("an address"), Duration::from_secs(2)).map(drop)
}

fn broadcast(_: &Context) -> Outcome {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_broadcast(true)?;
    socket.send_to(b"x", "255.255.255.255:9").map(drop)
}

/// Connects to a packet socket in a directory, through a link, because socket addresses are short.
fn packet(dir: &str, name: &str) -> Outcome {
    let link = format!("/tmp/ash-hostile-{}-run", std::process::id());
    std::os::unix::fs::symlink(dir, &link)?;
    let answer = UnixStream::connect(Path::new(&link).join(name)).map(drop);
    std::fs::remove_file(&link)?;
    match answer {
        // It exists with another type: reached.
        Err(error) if error.raw_os_error() == Some(EPROTOTYPE) => Ok(()),
        other => other,
    }
}

fn abstract_socket(name: &str) -> Outcome {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?).map(drop)
}

fn socket(family: i32, kind: i32, protocol: i32) -> std::io::Result<OwnedFd> {
    let fd = call(sys::SYS_socket, &[family.into(), kind.into(), protocol.into()])?;
    // SAFETY: a new descriptor with no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn set(fd: &OwnedFd, level: i32, name: i32, value: i32) -> Outcome {
    call(sys::SYS_setsockopt, &[fd.as_raw_fd().into(), level.into(), name.into(), at(&value), 4]).map(drop)
}

fn option(level: i32, name: i32, value: i32) -> Outcome {
    set(&socket(sys::AF_INET, STREAM, 0)?, level, name, value)
}

/// `IPV6_2292PKTOPTIONS` keeps the whole text; its one control message has a level that is skipped.
fn large_options() -> Outcome {
    let fd = socket(sys::AF_INET6, DGRAM, 0)?;
    let mut text = vec![0_u64; 65_000 / 8];
    (text[0], text[1]) = (65_000, 0x1234 | 1 << 32);
    let arguments = [fd.as_raw_fd().into(), sys::IPPROTO_IPV6.into(), 6, at(text.as_slice()), 65_000];
    call(sys::SYS_setsockopt, &arguments).map(drop)
}

fn ulp() -> Outcome {
    let fd = socket(sys::AF_INET, STREAM, 0)?;
    call(sys::SYS_setsockopt, &[fd.as_raw_fd().into(), sys::IPPROTO_TCP.into(), 31, at(b"tls"), 3]).map(drop)
}

/// BPF_RET | BPF_K: accepts every packet.
fn filter(name: i32) -> Outcome {
    let fd = socket(sys::AF_INET, DGRAM, 0)?;
    let code = [0x06_u64 | 0xffff << 32];
    let program = [1_u64, at(&code) as u64];
    call(sys::SYS_setsockopt, &[fd.as_raw_fd().into(), sys::SOL_SOCKET.into(), name.into(), at(&program), 16]).map(drop)
}

fn take_port(ip: Ipv4Addr) -> Outcome {
    let fd = socket(sys::AF_INET, STREAM, 0)?;
    set(&fd, sys::SOL_SOCKET, sys::SO_REUSEADDR, 1)?;
    set(&fd, sys::SOL_SOCKET, sys::SO_REUSEPORT, 1)?;
    let address = sys::sockaddr_in {
        sin_family: sys::AF_INET as u16,
        sin_port: 4180_u16.to_be(),
        sin_addr: sys::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    call(sys::SYS_bind, &[fd.as_raw_fd().into(), at(&address), 16])?;
    call(sys::SYS_listen, &[fd.as_raw_fd().into(), 1]).map(drop)
}

/// ifaddrmsg for 127.0.0.2/8 on lo, with IFA_LOCAL.
fn address() -> Vec<u8> {
    let mut body = vec![2, 8, 0, 0];
    body.extend(1_u32.to_ne_bytes());
    body.extend([8, 0, 2, 0, 127, 0, 0, 2]);
    body
}

/// ifinfomsg with IFLA_LINKINFO { IFLA_INFO_KIND "dummy" }.
fn link() -> Vec<u8> {
    let mut body = vec![0; 16];
    body.extend([16, 0, 18, 0, 10, 0, 1, 0]);
    body.extend(b"dummy\0\0\0");
    body
}

/// ifinfomsg: interface 1, IFF_UP off.
fn down() -> Vec<u8> {
    let mut body = vec![0; 16];
    body[4] = 1;
    body[12] = 1;
    body
}

/// One request over NETLINK_ROUTE, and the kernel's answer. Outside it uses a network namespace of
/// its own.
fn netlink(context: &Context, kind: u16, body: &[u8]) -> Outcome {
    if context.outside {
        call(sys::SYS_unshare, &[sys::CLONE_NEWNET.into()])?;
    }
    let fd = socket(sys::AF_NETLINK, RAW, 0)?;
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    // NLM_F_REQUEST, ACK, EXCL, CREATE
    message.extend(if kind == 16 && body.len() == 16 { 5_u16 } else { 0x605 }.to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    call(sys::SYS_sendto, &[fd.as_raw_fd().into(), at(&message[..]), message.len() as i64, 0, 0, 0])?;
    let answer = [0_u8; 512];
    call(sys::SYS_recvfrom, &[fd.as_raw_fd().into(), at(&answer), 512, 0, 0, 0])?;
    match -i32::from_ne_bytes(answer[16..20].try_into().expect("four bytes")) {
        0 | EEXIST => Ok(()),
        number => Err(errno(number)),
    }
}

fn interface(request: i64) -> Outcome {
    let fd = socket(sys::AF_INET, DGRAM, 0)?;
    let mut name = [0_u8; 40];
    name[..2].copy_from_slice(b"lo");
    name[16..20].copy_from_slice(b"ash0");
    call(sys::SYS_ioctl, &[fd.as_raw_fd().into(), request, at(&name)]).map(drop)
}

fn flags(context: &Context) -> Outcome {
    if context.outside {
        call(sys::SYS_unshare, &[sys::CLONE_NEWNET.into()])?;
    }
    interface(sys::SIOCSIFFLAGS as i64)
}

/// Offers of the host or of another sandbox that must not be reached.
pub fn serve(name: &str) -> std::io::Result<(UnixListener, Option<TcpListener>)> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    let port = std::env::var("H_PORT").ok().and_then(|port| port.parse::<u16>().ok());
    let server = port.map(|port| TcpListener::bind(("127.0.0.1", port))).transpose()?;
    if let Ok(key) = std::env::var("H_KEY") {
        let key: i64 = key.parse().expect("a number");
        match call(sys::SYS_shmget, &[key, 4096, 0o1666]) {
            Err(error) if error.raw_os_error() == Some(EAGAIN) => return Err(error),
            _ => {}
        }
    }
    Ok((listener, server))
}
