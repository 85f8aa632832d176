//! Hostile and broken clients. After each of them the launcher continues to serve.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use ash_kernel::seqpacket;
use ash_model::Limits;
use ash_protocol::launcher::{Failure, MAX_PACKET, Reply, Request};
use nix::sys::signal::Signal;

use crate::host::{CLIENT, Host, patient, request};

fn connect(host: &Host) -> OwnedFd {
    seqpacket::connect(&host.run_dir().join("launcher.sock"), false).expect("connected")
}

/// `None` when the connection was closed.
fn reply(socket: &OwnedFd) -> Option<Reply> {
    let mut buffer = vec![0; MAX_PACKET];
    ash_kernel::pidfd::wait_readable(socket.as_fd(), patient(Duration::from_secs(10))).expect("an answer in time");
    let mut read = || seqpacket::recv(socket.as_fd(), &mut buffer).map(|packet| packet.len);
    // A reset is reported once, before data that was received earlier.
    let len = read().or_else(|_| read()).unwrap_or(0);
    (len > 0).then(|| serde_json::from_slice(&buffer[..len]).expect("a reply"))
}

fn ask(socket: &OwnedFd, bytes: &[u8]) -> Option<Reply> {
    // A refused connection already has its answer waiting, and accepts nothing more.
    seqpacket::send(socket.as_fd(), bytes, &[]).ok();
    reply(socket)
}

#[tokio::test]
async fn malformed_requests_are_answered_with_an_error() {
    let host = Host::start("malformed");
    let socket = connect(&host);
    let id = "01a00000-0000-7000-8000-000000000000";
    let create = |fields: &str| format!("{{\"op\":\"create\",\"id\":\"{id}\"{fields}}}");
    let requests = [
        "{".to_owned(),
        "\0\0\0".to_owned(),
        "\u{feff}{\"op\":\"hello\"}".to_owned(),
        "[]".to_owned(),
        "{\"op\":\"rm -rf\"}".to_owned(),
        "{\"op\":\"attach\",\"id\":\"../../etc\"}".to_owned(),
        "{\"op\":\"attach\",\"id\":\"..\"}".to_owned(),
        "{\"op\":\"destroy\",\"id\":\"\"}".to_owned(),
        format!("{{\"op\":\"attach\",\"id\":\"{id}\"}}"),
        format!("{{\"op\":\"attach\",\"id\":\"{id}\",\"path\":\"/etc\"}}"),
        create(""),
        create(",\"tenant\":\"../x\",\"claude\":\"configured\",\"limits\":{}"),
        create(",\"tenant\":\"t\",\"claude\":{\"version\":\"/bin/sh\"},\"limits\":{}"),
        format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000)),
    ];
    for request in &requests {
        let answer = ask(&socket, request.as_bytes());
        assert!(matches!(answer, Some(Reply::Error(_))), "{:.80}: {answer:?}", request);
    }
    let hello = ask(&socket, b"{\"op\":\"hello\"}");
    assert!(matches!(hello, Some(Reply::Hello { .. })), "the same connection is still good: {hello:?}");
    assert!(host.leftovers().is_empty());
}

#[tokio::test]
async fn a_packet_that_is_too_long_is_refused_and_the_connection_closed() {
    let host = Host::start("huge");
    let socket = connect(&host);
    let answer = ask(&socket, &vec![b' '; MAX_PACKET + 1]);
    assert!(matches!(answer, Some(Reply::Error(_))), "{answer:?}");
    assert!(reply(&socket).is_none());
    host.client().await.list().await.expect("it serves on");
}

#[tokio::test]
async fn descriptors_sent_along_are_closed() {
    let host = Host::start("stray");
    let open = || std::fs::read_dir(format!("/proc/{}/fd", host.pid())).expect("fds").count();
    let socket = connect(&host);
    assert!(ask(&socket, b"{\"op\":\"hello\"}").is_some());
    let before = open();
    let stray = std::fs::File::open("/dev/null").expect("null");
    for _ in 0..50 {
        let fds = [stray.as_fd(); 8];
        seqpacket::send(socket.as_fd(), b"{\"op\":\"hello\"}", &fds).expect("sent");
        assert!(matches!(reply(&socket), Some(Reply::Hello { .. })));
    }
    // The launcher opens files for short times; none of the 400 sent may be left.
    assert!(open() < before + 8, "{} descriptors, {before} before", open());
}

#[tokio::test]
async fn a_thousand_connections_and_a_client_that_never_reads() {
    let host = Host::start("crowd");
    let launcher = host.client().await;
    let mut kept = Vec::new();
    let mut refused = 0;
    for _ in 0..1000 {
        let socket = connect(&host);
        // The launcher answers a refused connection without a request.
        match ask(&socket, b"{\"op\":\"hello\"}") {
            Some(Reply::Hello { .. }) => kept.push(socket),
            Some(Reply::Error(Failure { message, .. })) => {
                assert!(message.contains("64"), "{message}");
                refused += 1;
            }
            None => refused += 1,
            Some(other) => panic!("{other:?}"),
        }
    }
    // One is the client's own.
    assert_eq!((kept.len(), refused), (63, 937));
    launcher.list().await.expect("who was there before is served");
    let deaf = kept.pop().expect("a connection");
    rustix::io::ioctl_fionbio(&deaf, true).expect("non-blocking");
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_millis(500) {
        match seqpacket::send(deaf.as_fd(), b"{\"op\":\"hello\"}", &[]) {
            Ok(()) => sent += 1,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => break,
        }
    }
    assert!(sent > 10);
    drop((kept, deaf));
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    sandbox.stat().await.expect("and the launcher works as before");
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_changes_nothing() {
    let host = Host::start("leaver");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let socket = connect(&host);
    let destroy = format!("{{\"op\":\"destroy\",\"id\":\"{}\"}}", sandbox.id());
    seqpacket::send(socket.as_fd(), destroy.as_bytes(), &[]).expect("sent");
    drop(socket);
    crate::host::wait_for("the end", || host.leftovers().is_empty());
    launcher.list().await.expect("it serves on");
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_done() {
    let host = Host::start("late");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    // The launcher hangs for longer than its clients wait.
    host.signal(Signal::SIGSTOP);
    let limits = Limits { pids: 99, ..Limits::default() };
    let late =
        [Request::SetLimits { id: sandbox.id(), limits }, Request::Create(request(host.session(), Limits::default()))];
    for late in late {
        seqpacket::send(connect(&host).as_fd(), &serde_json::to_vec(&late).expect("JSON"), &[]).expect("sent");
    }
    host.signal(Signal::SIGCONT);
    // Connections are served in their order.
    assert!(matches!(ask(&connect(&host), b"{\"op\":\"hello\"}"), Some(Reply::Hello { .. })));
    let listed = launcher.list().await.expect("listed");
    let found: Vec<_> = listed.iter().map(|info| (info.id, info.limits.pids)).collect();
    assert_eq!(found, [(sandbox.id(), Limits::default().pids)]);
}

/// Runs in a process of another user, started by the test below.
#[test]
fn as_another_user() {
    let Some(socket) = std::env::var_os("ASH_TEST_SOCKET") else { return };
    match seqpacket::connect(std::path::Path::new(&socket), false) {
        Err(error) => println!("VERDICT no connection: {error}"),
        Ok(socket) => println!("VERDICT {:?}", ask(&socket, b"{\"op\":\"list\"}")),
    }
}

#[tokio::test]
async fn only_ashd_and_root_are_heard() {
    let host = Host::start("uids");
    // A copy that any user may run.
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("client");
    std::fs::copy(std::env::current_exe().expect("own path"), &program).expect("copied");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("mode");
    let socket = host.run_dir().join("launcher.sock");
    let verdict = |uid: u32, gid: u32| {
        let mut command = std::process::Command::new(&program);
        command.args(["--exact", "hostile::as_another_user", "--nocapture"]).env("ASH_TEST_SOCKET", &socket);
        let output = command.uid(uid).gid(gid).current_dir("/").output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.split_once("VERDICT ")).map(|(_, verdict)| verdict.to_owned());
        line.unwrap_or_else(|| panic!("no verdict: {text} {}", String::from_utf8_lossy(&output.stderr)))
    };
    let heard = verdict(CLIENT, CLIENT);
    assert!(heard.contains("List"), "{heard}");
    let closed = verdict(CLIENT + 1, CLIENT + 1);
    assert!(closed.contains("no connection"), "the socket's mode keeps others out: {closed}");
    let wrong = verdict(CLIENT + 1, CLIENT);
    assert!(wrong.contains("must not connect"), "and so does the launcher, where the group lets them in: {wrong}");
}
