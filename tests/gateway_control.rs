//! ashd's gateway client against real `ash-gateway` processes that are refused, killed, replaced
//! and taken over. Needs root, because peers are distinguished by their users.
#![allow(clippy::unwrap_used)]

#[path = "gateway_support/process.rs"]
mod process;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ash_protocol::gateway::Register;
use ashd::gateway::client::{Gateway, GatewayError};
use process::{NOBODY, Process, command, run_dir, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

fn gateway() -> std::path::PathBuf {
    ash_testkit::program("ash-gateway")
}

fn register(session: Uuid) -> Register {
    Register::new(session, "tok")
}

async fn ask(listener: &TcpListener, said: &str) -> TcpStream {
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let content = said.replace('\n', "\\n");
    let body = format!(
        r#"{{"model":"m","max_tokens":999,"stream":true,"messages":[{{"role":"user","content":"{content}"}}]}}"#
    );
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: tok\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    stream
}

async fn whole(mut stream: TcpStream) -> String {
    let mut all = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut all)).await.expect("ends").unwrap();
    all
}

#[tokio::test]
async fn sessions_come_and_go() {
    let run = run_dir();
    let (_process, client) = start(run.path(), &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = Uuid::new_v4();
    let _open = client.hold_open(session);
    client.register(register(session), listener.try_clone().unwrap().into()).await.unwrap();
    assert!(whole(ask(&listener, "@text hello").await).await.contains("message_stop"));
    let usage = client.usage().await.unwrap();
    assert_eq!((usage[0].session, usage[0].requests, usage[0].output_tokens), (session, 1, 2));
    client.unregister(session).await.unwrap();
    client.unregister(session).await.unwrap();
    assert_eq!(client.usage().await.unwrap(), usage, "the final count comes once more");
    assert!(client.usage().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_refused_says_why() {
    let run = run_dir();
    let (_process, client) = start(run.path(), &[]).await;
    let refused = async |register: Register, fd: std::os::fd::OwnedFd| match client.register(register, fd).await {
        Err(GatewayError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(refused(register(Uuid::new_v4()), file.into()).await.contains("not a listening socket"));
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(refused(register(Uuid::new_v4()), udp.into()).await.contains("listener"));
    let unix = std::os::unix::net::UnixListener::bind(run.path().join("u")).unwrap();
    assert!(refused(register(Uuid::new_v4()), unix.into()).await.contains("not a TCP socket"));
    let empty = Register { token: String::new(), ..register(Uuid::new_v4()) };
    assert!(refused(empty, listener().into()).await.contains("token"));
    let bad_key = Register { key: Some("two words".into()), ..register(Uuid::new_v4()) };
    let why = refused(bad_key, listener().into()).await;
    assert!(why.contains("key") && !why.contains("two words"), "{why}");
    assert!(client.usage().await.unwrap().is_empty(), "nothing was changed");
}

#[tokio::test]
async fn strangers_are_not_heard() {
    let run = run_dir();
    std::fs::set_permissions(run.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (_process, _client) = start(run.path(), &[]).await;
    let path = run.path().join("gateway.sock");
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\ns.settimeout(5)\n\
                  s.connect(sys.argv[1])\ntry:\n s.send(b'{\"op\":\"hello\"}')\n r=s.recv(9999)\nexcept OSError:\n r=b''\n\
                  sys.stdout.write(r.decode())";
    let hear = |uid: u32| {
        let output = Command::new("python3").args(["-c", script]).arg(&path).uid(uid).gid(uid).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(hear(NOBODY).contains("offline"), "ashd's user is heard");
    assert_eq!(hear(1234), "", "another user is not");
}

#[tokio::test]
async fn a_killed_gateway_is_found_again() {
    let run = run_dir();
    let (process, client) = start(run.path(), &[]).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(300), client.restarted()).await.is_err(),
        "nothing happened yet"
    );
    drop(process);
    assert!(matches!(client.hello().await, Err(GatewayError::Unreachable { .. })), "said clearly, after a while");
    let (second, _) = start(run.path(), &[]).await;
    tokio::time::timeout(Duration::from_secs(5), client.restarted()).await.expect("the restart is noticed");
    assert_eq!(client.hello().await.unwrap().pid, second.0.id());
}

#[tokio::test]
async fn a_second_gateway_is_refused_and_a_successor_takes_over() {
    let run = run_dir();
    let (mut old, client) = start(run.path(), &[]).await;
    let output = command(run.path()).args(["--upstream", "offline"]).stderr(Stdio::piped()).output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && why.contains("--take-over"), "{why}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = Uuid::new_v4();
    let _open = client.hold_open(session);
    client.register(register(session), listener.try_clone().unwrap().into()).await.unwrap();
    let open = ask(&listener, "@delay 50ms\n@repeat 30 word").await;
    tokio::time::sleep(Duration::from_millis(200)).await;

    let (new, _) = start(run.path(), &["--take-over"]).await;
    tokio::time::timeout(Duration::from_secs(5), client.restarted()).await.expect("the client is told");
    assert_eq!(client.hello().await.unwrap().pid, new.0.id());
    client.register(register(session), listener.try_clone().unwrap().into()).await.unwrap();
    assert!(whole(ask(&listener, "@text from the new one").await).await.contains("message_stop"));
    let answer = whole(open).await;
    assert_eq!(answer.matches("word ").count(), 30, "the old one finished its answer");
    assert!(answer.contains("message_stop"));
    assert!(old.ended(), "and then it left");
    assert!(run.path().join("gateway.sock").exists(), "without taking the path with it");
}

#[tokio::test]
async fn sigterm_finishes_the_open_answer() {
    let run = run_dir();
    let (mut process, client) = start(run.path(), &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = Uuid::new_v4();
    let _open = client.hold_open(session);
    client.register(register(session), listener.try_clone().unwrap().into()).await.unwrap();
    let open = ask(&listener, "@delay 50ms\n@repeat 20 word").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(whole(open).await.contains("message_stop"));
    assert!(process.ended());
}

#[test]
fn it_refuses_to_stay_root_and_explains_itself() {
    let run = run_dir();
    let attempt = |args: &[&str]| {
        let mut command = Command::new(gateway());
        let output =
            command.args(["--client-user", "nobody", "--run-dir"]).arg(run.path()).args(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(attempt(&["--upstream", "offline"]).contains("must not be root"));
    assert!(attempt(&["--upstream", "offline", "--user", "root"]).contains("is root"));
    assert!(attempt(&["--upstream", "offline", "--user", "no-such-user"]).contains("does not exist"));
    assert!(attempt(&["--upstream", "gopher://x", "--user", "nobody"]).contains("https://host"));
    let secret = attempt(&["--upstream", "https://me:hunter2@host", "--user", "nobody"]);
    assert!(secret.contains("argv") && !secret.contains("hunter2"), "{secret}");
    assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 0, "nothing is left behind");
    let help = Command::new(gateway()).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in ["CREDENTIALS_DIRECTORY", "--client-user", "Examples", "SIGTERM"] {
        assert!(help.contains(word), "{word}");
    }
}

/// As systemd does: the socket exists before the process, and outlives it.
#[tokio::test]
async fn a_socket_from_systemd_is_served_and_left_in_place() {
    let run = run_dir();
    let path = run.path().join("gateway.sock");
    let listener = ash_kernel::seqpacket::listen(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    let start = || activated(&gateway(), &listener, run.path());
    let first = start();
    let client = Gateway::connect(run.path()).await.unwrap();
    assert_eq!(client.hello().await.unwrap().pid, first.0.id());
    drop(first);
    assert!(path.exists());
    let second = start();
    tokio::time::timeout(Duration::from_secs(5), client.restarted()).await.expect("the restart is noticed");
    assert_eq!(client.hello().await.unwrap().pid, second.0.id(), "it waited in the socket's queue");
}

/// The shell plays systemd: it puts the socket at 3 and names the process that it becomes.
fn activated(program: &Path, listener: &std::os::fd::OwnedFd, run: &Path) -> Process {
    let fd = std::os::fd::AsRawFd::as_raw_fd(listener);
    ash_kernel::inherited::keep_on_exec(std::os::fd::AsFd::as_fd(listener)).unwrap();
    let command = format!(
        "exec 3<&{fd}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=gateway exec {} --upstream offline --user nobody \
         --client-user nobody --run-dir {} --state-dir {}",
        program.display(),
        run.display(),
        run.join("state").display()
    );
    Process(Command::new("bash").args(["-c", &command]).spawn().unwrap())
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// `systemctl reload ash-gateway`, and an upgrade.
#[tokio::test]
async fn a_reload_replaces_the_gateway_and_no_answer_breaks() {
    use nix::sys::signal::Signal::{SIGHUP, SIGTERM};
    let run = run_dir();
    let path = run.path().join("gateway.sock");
    let socket = ash_kernel::seqpacket::listen(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    let mut old = activated(&gateway(), &socket, run.path());
    let client = Gateway::connect(run.path()).await.unwrap();
    assert_eq!(client.hello().await.unwrap().pid, old.0.id());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = Uuid::new_v4();
    let _open = client.hold_open(session);
    client.register(register(session), listener.try_clone().unwrap().into()).await.unwrap();
    let open = ask(&listener, "@delay 50ms\n@repeat 30 word").await;
    tokio::time::sleep(Duration::from_millis(200)).await;

    signal(old.0.id(), SIGHUP);
    tokio::time::timeout(Duration::from_secs(10), client.restarted()).await.expect("the client is told");
    let new = client.hello().await.unwrap().pid;
    assert_ne!(new, old.0.id());
    client.register(register(session), listener.try_clone().unwrap().into()).await.unwrap();
    assert!(whole(ask(&listener, "@text from the new one").await).await.contains("message_stop"));
    assert!(old.0.try_wait().unwrap().is_none(), "the old one still has an answer to finish");
    // The unit's stop reaches both; the old process finishes its answers.
    signal(old.0.id(), SIGTERM);
    let answer = whole(open).await;
    assert_eq!(answer.matches("word ").count(), 30, "the old one finished its answer");
    assert!(answer.contains("message_stop") && old.ended(), "and then it left");

    // The new one can be replaced as well.
    signal(new, SIGHUP);
    tokio::time::timeout(Duration::from_secs(10), client.restarted()).await.expect("the client is told again");
    let third = client.hello().await.unwrap().pid;
    assert_ne!(third, new);
    signal(third, SIGTERM);
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        // Its parent is gone, so no process here can wait for it.
        std::fs::read_to_string(format!("/proc/{third}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    assert!(gone, "the third one ends when it is told to");
}

/// An upgrade with a broken program must not end the running gateway.
#[tokio::test]
async fn a_successor_that_does_not_start_changes_nothing() {
    use nix::sys::signal::Signal::SIGHUP;
    let run = run_dir();
    std::fs::set_permissions(run.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let socket = ash_kernel::seqpacket::listen(&run.path().join("gateway.sock")).unwrap();
    let program = run.path().join("ash-gateway");
    std::fs::copy(gateway(), &program).unwrap();
    let mut process = activated(&program, &socket, run.path());
    let client = Gateway::connect(run.path()).await.unwrap();
    let pid = client.hello().await.unwrap().pid;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = Uuid::new_v4();
    let _open = client.hold_open(session);
    client.register(register(session), listener.try_clone().unwrap().into()).await.unwrap();
    // By rename, as dpkg does: the running program's file stays.
    let broken = run.path().join("broken");
    std::fs::write(&broken, format!("#!/bin/sh\ntouch {}\nexit 1\n", run.path().join("state/tried").display()))
        .unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&broken, &program).unwrap();
    std::fs::set_permissions(run.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();

    signal(pid, SIGHUP);
    let tried = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        run.path().join("state/tried").exists()
    });
    assert!(tried, "the new program was started");
    let restarted = tokio::time::timeout(Duration::from_millis(500), client.restarted()).await;
    assert!(restarted.is_err(), "nobody was told of a new gateway");
    assert_eq!(client.hello().await.unwrap().pid, pid);
    assert!(whole(ask(&listener, "@text still here").await).await.contains("message_stop"));
    assert!(process.0.try_wait().unwrap().is_none());
}
