//! What a daemon can still do after it has confined itself, tried by a process with the gateway's
//! plan.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use ash_gateway::confine::plan;
use ash_gateway::settings::Upstream;
use ash_kernel::clone::{Fork, exit_now, fork};
use ash_kernel::confine;
use ash_kernel::single::require_single_thread;

pub const TESTS: &[crate::Test] =
    &[("own::a_plan_allows_what_it_says_and_refuses_the_rest", a_plan_allows_what_it_says_and_refuses_the_rest)];

fn a_plan_allows_what_it_says_and_refuses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (state, other, run) = (dir.path().join("state"), dir.path().join("other"), dir.path().join("run"));
    std::fs::create_dir(&state).unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::create_dir(&run).unwrap();
    std::fs::write(other.join("file"), "readable").unwrap();
    let (model, stranger) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = (model.local_addr().unwrap().port(), stranger.local_addr().unwrap().port());
    let upstream = Upstream::choose(Some(&format!("http://127.0.0.1:{}", ports.0)), None, false).unwrap();
    let plan = plan(&run, &upstream, std::slice::from_ref(&state));
    let (heard, tell) = rustix::pipe::pipe().unwrap();
    let pid = match fork(&require_single_thread().unwrap()).unwrap() {
        Fork::Child(forked) => {
            drop(heard);
            let one = forked.single();
            let said = match confine::apply(&one, &plan) {
                Err(error) => format!("{error}\n"),
                Ok(()) => tries(&state, &other, ports, || confine::apply(&one, &plan).map_err(io::Error::other)),
            };
            std::fs::File::from(tell).write_all(said.as_bytes()).ok();
            exit_now(0)
        }
        Fork::Parent(pid) => pid,
    };
    drop(tell);
    let mut said = String::new();
    std::fs::File::from(heard).read_to_string(&mut said).unwrap();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    assert_eq!(said, "tried\n");
}

/// One line for each violation.
fn tries(state: &Path, other: &Path, ports: (u16, u16), again: impl FnOnce() -> io::Result<()>) -> String {
    const DENIED: Option<i32> = Some(nix::libc::EACCES);
    const REFUSED: Option<i32> = Some(nix::libc::EPERM);
    let mut wrong = String::new();
    let mut is = |what: &str, found: io::Result<()>, wanted: Option<i32>| {
        if found.as_ref().err().map(|error| error.raw_os_error()) != wanted.map(Some) {
            wrong.push_str(&format!("{what}: {found:?}\n"));
        }
    };
    let connect = |port| TcpStream::connect(("127.0.0.1", port)).map(drop);
    is("write state", std::fs::write(state.join("file"), "x"), None);
    is("rename state", std::fs::rename(state.join("file"), state.join("renamed")), None);
    is("write elsewhere", std::fs::write(other.join("new"), "x"), DENIED);
    is("truncate elsewhere", std::fs::write(other.join("file"), "x"), DENIED);
    is("remove elsewhere", std::fs::remove_file(other.join("file")), DENIED);
    is("read elsewhere", std::fs::read(other.join("file")).map(drop), None);
    is("the model's port", connect(ports.0), None);
    is("another port", connect(ports.1), DENIED);
    is("bind a port", TcpListener::bind("127.0.0.1:0").map(drop), DENIED);
    let family = |family| {
        let kind = nix::sys::socket::SockType::Datagram;
        nix::sys::socket::socket(family, kind, nix::sys::socket::SockFlag::empty(), None)
            .map(drop)
            .map_err(io::Error::from)
    };
    is("an internet socket", family(nix::sys::socket::AddressFamily::Inet), None);
    is("a vsock socket", family(nix::sys::socket::AddressFamily::Vsock), REFUSED);
    let unshare = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS).map_err(io::Error::from);
    is("a namespace", unshare, Some(nix::libc::ENOSYS));
    let run = |program: &str| std::process::Command::new(program).status().map(drop);
    is("a program of the system", run("/usr/bin/true"), None);
    let filters = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        status.lines().find(|line| line.starts_with("Seccomp_filters")).map(str::to_owned)
    };
    let before = filters();
    is("the same again", again(), None);
    if before.is_none() || before != filters() {
        wrong.push_str(&format!("the filters are stacked: {before:?}, {:?}\n", filters()));
    }
    // Last, because an ended thread is counted for a moment longer.
    if std::thread::Builder::new().spawn(|| ()).map(|thread| drop(thread.join())).is_err() {
        wrong.push_str("no thread can be started\n");
    }
    wrong + "tried\n"
}
