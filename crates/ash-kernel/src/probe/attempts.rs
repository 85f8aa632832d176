//! All attempts as data: those that a layer must refuse, and those that must work.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use libc as sys;
use nix::errno::Errno;

use super::Probe;
use super::calls::{make_code, mount, raw};
use ash_model::Layer;

/// One attempt. Without `errnos` it must work.
pub struct Attempt {
    name: &'static str,
    layer: Option<Layer>,
    errnos: &'static [Errno],
    act: fn() -> io::Result<()>,
}

impl Attempt {
    pub fn run(&self) -> Probe {
        let outcome = (self.act)();
        let errno =
            outcome.as_ref().err().map(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw));
        let ok = match errno {
            None => self.errnos.is_empty(),
            Some(errno) => self.errnos.contains(&errno),
        };
        let expected: Vec<String> = self.errnos.iter().map(|errno| format!("{errno:?}")).collect();
        Probe {
            name: self.name.to_owned(),
            layer: self.layer,
            expected: if expected.is_empty() { "works".to_owned() } else { expected.join(" or ") },
            observed: errno.map_or_else(|| "works".to_owned(), |errno| format!("{errno:?}")),
            ok,
        }
    }
}

const fn refused(layer: Layer, name: &'static str, errnos: &'static [Errno], act: fn() -> io::Result<()>) -> Attempt {
    Attempt { name, layer: Some(layer), errnos, act }
}

const fn works(name: &'static str, act: fn() -> io::Result<()>) -> Attempt {
    Attempt { name, layer: None, errnos: &[], act }
}

fn call(number: i64, args: &[i64]) -> io::Result<()> {
    raw(number, args).map(drop)
}

fn read(path: &str) -> io::Result<()> {
    File::open(path)?.read(&mut [0; 1]).map(drop)
}

fn open_to_write(path: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

/// A file without a name, which is not visible in the directory or to watchers.
fn store(dir: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(sys::O_TMPFILE).open(dir)?;
    file.write_all(b"ash")
}

const PERM: &[Errno] = &[Errno::EPERM];
const ACCES: &[Errno] = &[Errno::EACCES];
const NOSYS: &[Errno] = &[Errno::ENOSYS];
const GONE: &[Errno] = &[Errno::ENOENT];
const FAR: &[Errno] = &[Errno::ENETUNREACH];
const FORBIDDEN: &[Errno] = &[Errno::EACCES, Errno::EPERM, Errno::EROFS];
/// `ENOENT`: a kernel without this feature has no such file.
const COVERED: &[Errno] = &[Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::ENOENT];
const HIDDEN: &[Errno] = &[Errno::EACCES, Errno::EPERM, Errno::ENOENT];
/// A descriptor that is never open. A call that passes the layer returns EBADF, which is in no
/// list.
const BAD: i64 = -1;

#[rustfmt::skip]
static ATTEMPTS: &[Attempt] = &[
    refused(Layer::UserNamespace, "become root", &[Errno::EINVAL, Errno::EPERM], || call(sys::SYS_setuid, &[0])),
    refused(Layer::UserNamespace, "signal init", PERM_OR_SRCH, || call(sys::SYS_kill, &[1, 0])),
    refused(Layer::MountNamespace, "read the host's /etc/shadow", GONE, || read("/etc/shadow")),
    refused(Layer::MountNamespace, "read the host's /root", GONE, || read("/root/.")),
    refused(Layer::MountNamespace, "read the host's /var", GONE, || read("/var/.")),
    refused(Layer::MountNamespace, "read the host's /sys", GONE, || read("/sys/kernel")),
    refused(Layer::MountNamespace, "reach cgroup files", GONE, || read("/sys/fs/cgroup/cgroup.procs")),
    refused(Layer::MountNamespace, "write below /usr", FORBIDDEN, || open_to_write("/usr/bin/env")),
    refused(Layer::MountNamespace, "write claude's binary", FORBIDDEN, || open_to_write("/opt/claude/claude")),
    refused(Layer::MountNamespace, "write /etc/passwd", FORBIDDEN, || open_to_write("/etc/passwd")),
    refused(Layer::MountNamespace, "pull /proc/sysrq-trigger", COVERED, || open_to_write("/proc/sysrq-trigger")),
    refused(Layer::MountNamespace, "write /proc/sys/kernel/core_pattern", FORBIDDEN, || open_to_write("/proc/sys/kernel/core_pattern")),
    refused(Layer::MountNamespace, "reach the launcher's socket", GONE, || UnixStream::connect("/run/ashd/launcher.sock").map(drop)),
    refused(Layer::MountNamespace, "reach D-Bus", GONE, || UnixStream::connect("/run/dbus/system_bus_socket").map(drop)),
    refused(Layer::MountNamespace, "read memory of the host", GONE, || read("/dev/mem")),
    refused(Layer::PidNamespace, "read init's environment", HIDDEN, || read("/proc/1/environ")),
    refused(Layer::PidNamespace, "enter init's root", HIDDEN, || read("/proc/1/root/.")),
    refused(Layer::NetworkNamespace, "reach the cloud's metadata", FAR, || udp("169.254.169.254:80")),
    refused(Layer::NetworkNamespace, "reach a private address", FAR, || udp("10.0.0.1:80")),
    refused(Layer::NetworkNamespace, "reach the internet", FAR, || udp("192.0.2.1:443")),
    refused(Layer::NetworkNamespace, "reach the internet over IPv6", &[Errno::ENETUNREACH, Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL], || udp6("[2001:db8::1]:443")),
    refused(Layer::Landlock, "write /proc/self/comm", ACCES, || open_to_write("/proc/self/comm")),
    refused(Layer::Landlock, "write /proc/self/oom_score_adj", ACCES, || open_to_write("/proc/self/oom_score_adj")),
    refused(Layer::UserNamespace, "draw on the quotas of another user", PERM, another_owner),
    refused(Layer::UserNamespace, "raise the quota of queued signals", PERM, || raise(nix::sys::resource::Resource::RLIMIT_SIGPENDING)),
    refused(Layer::UserNamespace, "raise the quota of message queues", PERM, || raise(nix::sys::resource::Resource::RLIMIT_MSGQUEUE)),
    refused(Layer::UserNamespace, "raise the quota of user namespaces", FORBIDDEN, || open_to_write("/proc/sys/user/max_user_namespaces")),
    refused(Layer::MountNamespace, "read the kernel's command line", &[Errno::ENODATA], || told("/proc/cmdline")),
    refused(Layer::Seccomp, "unshare a user namespace", PERM, || call(sys::SYS_unshare, &[sys::CLONE_NEWUSER as i64])),
    refused(Layer::Seccomp, "clone3", NOSYS, || call(sys::SYS_clone3, &[0, 0])),
    refused(Layer::Seccomp, "setns", PERM, || call(sys::SYS_setns, &[BAD, 0])),
    refused(Layer::Seccomp, "mount a tmpfs", PERM, || mount(c"tmpfs", c"/tmp")),
    refused(Layer::Seccomp, "pivot_root", PERM, || call(sys::SYS_pivot_root, &[0, 0])),
    refused(Layer::Seccomp, "open_tree", PERM, || call(sys::SYS_open_tree, &[BAD, 0, 0])),
    refused(Layer::Seccomp, "bpf", PERM, || call(sys::SYS_bpf, &[0, 0, 0])),
    refused(Layer::Seccomp, "io_uring_setup", NOSYS, || call(sys::SYS_io_uring_setup, &[1, 0])),
    refused(Layer::Seccomp, "asynchronous I/O of the kernel (io_setup)", NOSYS, || call(sys::SYS_io_setup, &[1, 0])),
    refused(Layer::Seccomp, "perf_event_open", PERM, || call(sys::SYS_perf_event_open, &[0, 0, BAD, BAD, 0])),
    refused(Layer::Seccomp, "userfaultfd", PERM, || call(sys::SYS_userfaultfd, &[1])),
    refused(Layer::Seccomp, "keyctl", PERM, || call(sys::SYS_keyctl, &[0, -3, 0])),
    refused(Layer::Seccomp, "open_by_handle_at", PERM, || call(sys::SYS_open_by_handle_at, &[BAD, 0, 0])),
    refused(Layer::Seccomp, "pidfd_getfd", PERM, || call(sys::SYS_pidfd_getfd, &[BAD, 0, 0])),
    refused(Layer::Seccomp, "memfd_secret", PERM, || call(sys::SYS_memfd_secret, &[0])),
    refused(Layer::Seccomp, "load a kernel module", PERM, || call(sys::SYS_finit_module, &[BAD, 0, 0])),
    refused(Layer::Seccomp, "a packet socket", PERM, || call(sys::SYS_socket, &[sys::AF_PACKET as i64, sys::SOCK_DGRAM as i64, 0])),
    refused(Layer::Seccomp, "a vsock socket", PERM, || call(sys::SYS_socket, &[sys::AF_VSOCK as i64, sys::SOCK_STREAM as i64, 0])),
    refused(Layer::Seccomp, "an AF_ALG socket", PERM, || call(sys::SYS_socket, &[sys::AF_ALG as i64, sys::SOCK_SEQPACKET as i64, 0])),
    refused(Layer::Seccomp, "an audit socket", PERM, || call(sys::SYS_socket, &[sys::AF_NETLINK as i64, sys::SOCK_RAW as i64, 9])),
    refused(Layer::Seccomp, "an SCTP socket", PERM, || call(sys::SYS_socket, &[sys::AF_INET as i64, sys::SOCK_STREAM as i64, 132])),
    refused(Layer::Seccomp, "an MPTCP socket", PERM, || call(sys::SYS_socket, &[sys::AF_INET as i64, sys::SOCK_STREAM as i64, 262])),
    refused(Layer::Seccomp, "a line discipline (TIOCSETD)", PERM, || call(sys::SYS_ioctl, &[BAD, sys::TIOCSETD as i64, 0])),
    refused(Layer::Seccomp, "a lease of a file", PERM, || call(sys::SYS_fcntl, &[BAD, sys::F_SETLEASE as i64, 0])),
    refused(Layer::Seccomp, "a filter of a socket", PERM, || call(sys::SYS_setsockopt, &[BAD, sys::SOL_SOCKET as i64, sys::SO_ATTACH_FILTER as i64, 0, 0])),
    refused(Layer::Seccomp, "type into a terminal (TIOCSTI)", PERM, || call(sys::SYS_ioctl, &[BAD, sys::TIOCSTI as i64, 0])),
    refused(Layer::Seccomp, "a raw socket", PERM, || call(sys::SYS_socket, &[sys::AF_INET as i64, sys::SOCK_RAW as i64, 1])),
    refused(Layer::Capabilities, "a real-time priority", PERM, realtime),
    refused(Layer::Capabilities, "a niceness below 0", ACCES, || call(sys::SYS_setpriority, &[0, 0, -5])),
    refused(Layer::Capabilities, "make a block device", FORBIDDEN, block_device),
    works("write in /workspace", || store("/workspace")),
    works("write in /home/agent", || store("/home/agent")),
    works("write in /tmp", || store("/tmp")),
    works("shared memory", || store("/dev/shm")),
    works("run what is in /usr", || Ok(rustix::fs::access("/usr/bin/env", rustix::fs::Access::EXEC_OK)?)),
    works("run claude", || Ok(rustix::fs::access("/opt/claude/claude", rustix::fs::Access::EXEC_OK)?)),
    works("random bytes", || read("/dev/urandom")),
    works("a process", process),
    works("a thread", || std::thread::Builder::new().spawn(|| ()).map(|thread| drop(thread.join()))),
    works("code made at run time", make_code),
    works("a server and a client on loopback", loopback),
    works("unix sockets", || UnixStream::pair().map(drop)),
    works("a pseudo-terminal", pty),
    works("anonymous files", || Ok(rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC).map(drop)?)),
    // With a descriptor that is never open: a real call would return EBADF.
    works("syncfs, which is not made", || call(sys::SYS_syncfs, &[BAD])),
    works("watching files", || Ok(rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).map(drop)?)),
    works("an epoll loop", || Ok(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).map(drop)?)),
];

/// `ESRCH`: a process hidden by the pid namespace is refused as well.
const PERM_OR_SRCH: &[Errno] = &[Errno::EPERM, Errno::ESRCH];

pub fn all() -> &'static [Attempt] {
    ATTEMPTS
}

/// A datagram socket: connecting it only looks up a route and sends nothing.
fn udp(to: &str) -> io::Result<()> {
    UdpSocket::bind("0.0.0.0:0")?.connect(to)
}

fn udp6(to: &str) -> io::Result<()> {
    UdpSocket::bind("[::]:0")?.connect(to)
}

/// Success: the kernel charges a user outside of this sandbox.
fn another_owner() -> io::Result<()> {
    match crate::owner::of_this_namespace()? {
        OVERFLOW => Ok(()),
        _ => Err(Errno::EPERM.into()),
    }
}

/// The id shown for ids without a mapping in the namespace (user_namespaces(7)).
const OVERFLOW: u32 = 65_534;

/// Success: the limit can be raised, or there is none.
fn raise(resource: nix::sys::resource::Resource) -> io::Result<()> {
    let (soft, hard) = nix::sys::resource::getrlimit(resource)?;
    Ok(nix::sys::resource::setrlimit(resource, soft, hard.saturating_add(1))?)
}

/// Reports an empty file as ENODATA.
fn told(path: &str) -> io::Result<()> {
    match File::open(path)?.read(&mut [0; 1])? {
        0 => Err(Errno::ENODATA.into()),
        _ => Ok(()),
    }
}

fn realtime() -> io::Result<()> {
    // The parameter is in readable memory of this program: SCHED_FIFO with priority 1.
    static PRIORITY: i32 = 1;
    call(sys::SYS_sched_setscheduler, &[0, i64::from(sys::SCHED_FIFO), &raw const PRIORITY as i64])
}

fn block_device() -> io::Result<()> {
    let kind = rustix::fs::FileType::BlockDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    Ok(rustix::fs::mknodat(rustix::fs::CWD, "/tmp/.ash-probe", kind, mode, rustix::fs::makedev(8, 0))?)
}

fn process() -> io::Result<()> {
    use crate::clone::{Fork, exit_now, fork};
    match fork(&crate::single::require_single_thread()?)? {
        Fork::Child(_forked) => exit_now(0),
        Fork::Parent(pid) => Ok(nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).map(drop)?),
    }
}

fn loopback() -> io::Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(server.local_addr()?)?;
    let (mut accepted, _) = server.accept()?;
    client.write_all(b"ash")?;
    accepted.read_exact(&mut [0; 3])
}

fn pty() -> io::Result<()> {
    let controller = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)?;
    rustix::pty::grantpt(&controller)?;
    rustix::pty::unlockpt(&controller)?;
    let name = rustix::pty::ptsname(&controller, Vec::new())?;
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(sys::O_NOCTTY)
        .open(std::path::Path::new(std::ffi::OsStr::new(name.to_str().map_err(io::Error::other)?)))?;
    drop(terminal);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_are_there_and_every_name_once() {
        let mut names: Vec<_> = ATTEMPTS.iter().map(|attempt| attempt.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ATTEMPTS.len());
        assert!(ATTEMPTS.iter().filter(|attempt| attempt.errnos.is_empty()).count() >= 12);
        assert!(ATTEMPTS.iter().filter(|attempt| attempt.layer.is_some()).count() >= 40);
        // Finds mistakes in the table: an attempt that must work has no layer, one that must fail
        // has one.
        assert!(ATTEMPTS.iter().all(|attempt| attempt.errnos.is_empty() == attempt.layer.is_none()));
    }

    #[test]
    fn another_errno_is_no_refusal() {
        let odd = refused(Layer::Seccomp, "x", PERM, || Err(io::Error::from_raw_os_error(sys::EBADF)));
        let probe = odd.run();
        assert!(!probe.ok && probe.observed == "EBADF" && probe.expected == "EPERM", "{probe:?}");
        assert!(works("x", || Ok(())).run().ok);
        assert!(!works("x", || Err(io::Error::from_raw_os_error(sys::EPERM))).run().ok);
    }
}
