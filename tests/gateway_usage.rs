//! The gateway's record of usage and its start: real `ash-gateway` processes that are killed,
//! replaced, run out of disk, or must not start. Needs root, because peers are distinguished by
//! their users.
#![allow(clippy::unwrap_used)]

#[path = "gateway_support/process.rs"]
mod process;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ash_gateway::ledger::Marks;
use ash_protocol::gateway::Register;
use ashd::gateway::client::Gateway;
use process::{NOBODY, Process, command, run_dir, start};
use uuid::Uuid;

async fn register(client: &Gateway, listener: &TcpListener) -> Uuid {
    let session = Uuid::new_v4();
    let named = Register { tenant: "acme".into(), agent: "helper".into(), ..Register::new(session, "tok") };
    client.register(named, listener.try_clone().unwrap().into()).await.unwrap();
    session
}

fn ask(listener: &TcpListener, said: &str) -> TcpStream {
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let content = said.replace('\n', "\\n");
    let body = format!(
        r#"{{"model":"m","max_tokens":999,"stream":true,"messages":[{{"role":"user","content":"{content}"}}]}}"#
    );
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: tok\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    stream
}

fn whole(mut stream: TcpStream) -> String {
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

/// Requests and output tokens of each ledger. Acknowledges nothing.
async fn held(client: &Gateway) -> HashMap<Uuid, (u64, u64)> {
    let (collected, _) = client.collect(Marks::new()).await.unwrap();
    let mut sums: HashMap<Uuid, (u64, u64)> = collected.ledgers.iter().map(|id| (*id, (0, 0))).collect();
    for (ledger, entry) in collected.entries {
        assert_eq!((entry.payer.tenant.as_str(), entry.payer.agent.as_str()), ("acme", "helper"));
        let sum = sums.get_mut(&ledger).unwrap();
        *sum = (sum.0 + entry.requests, sum.1 + entry.tokens.output);
    }
    sums
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_keep_their_record_beside_each_other_and_it_goes_when_it_was_taken() {
    let run = run_dir();
    let (mut old, client) = start(run.path(), &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = register(&client, &listener).await;
    let _open = client.hold_open(session);
    let answer = ask(&listener, "@delay 50ms\n@repeat 30 word");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (new, _) = start(run.path(), &["--take-over"]).await;
    tokio::time::timeout(Duration::from_secs(5), client.restarted()).await.expect("the client is told");
    let named = Register { tenant: "acme".into(), agent: "helper".into(), ..Register::new(session, "tok") };
    client.register(named, listener.try_clone().unwrap().into()).await.unwrap();
    assert!(whole(ask(&listener, "@text one two three")).contains("message_stop"));
    assert!(whole(answer).contains("message_stop"));
    assert!((0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        old.0.try_wait().unwrap().is_some()
    }));
    let sums = held(&client).await;
    assert_eq!(sums.len(), 2, "{sums:?}");
    assert!(sums.values().all(|(requests, output)| *requests == 1 && *output > 1), "{sums:?}");

    // Acknowledged ledgers are removed; the running gateway's ledger stays.
    let (collected, _) = client.collect(Marks::new()).await.unwrap();
    let marks: Marks = collected.entries.iter().map(|(ledger, entry)| (*ledger, entry.n)).collect();
    let (rest, _) = client.collect(marks.clone()).await.unwrap();
    assert_eq!((rest.entries.len(), rest.ledgers.len(), rest.more), (0, 1, false));
    assert_eq!(std::fs::read_dir(run.path().join("state")).unwrap().count(), 1);
    // After a kill, nothing is counted twice.
    whole(ask(&listener, "@text four"));
    drop(new);
    let (_third, client) = start(run.path(), &[]).await;
    let (again, _) = client.collect(marks).await.unwrap();
    let requests: u64 = again.entries.iter().map(|(_, entry)| entry.requests).sum();
    assert_eq!(requests, 1, "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_requests_and_loses_no_count() {
    let run = run_dir();
    let state = run.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64k,mode=0700,uid=65534", "tmpfs"]).arg(&state);
    assert!(mount.status().unwrap().success());
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    let _unmount = Unmount(state.clone());
    let (_process, client) = start(run.path(), &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = register(&client, &listener).await;
    let _open = client.hold_open(session);
    let filler = state.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    // The first request is served: only then the write of its usage fails. The usage is owed.
    assert!(whole(ask(&listener, "@text hello")).contains("message_stop"));
    let refused = whole(ask(&listener, "@text hello"));
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("state directory"), "{refused}");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let begun = Instant::now();
    let mut served = 1;
    while served < 2 {
        served += u64::from(whole(ask(&listener, "@text hello")).contains("message_stop"));
        assert!(begun.elapsed() < Duration::from_secs(10), "requests are not admitted again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let requests: u64 = held(&client).await.values().map(|(requests, _)| requests).sum();
    assert_eq!(requests, served);
}

/// Starts a gateway that must refuse. Returns its exit status and output.
fn refusal(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_not_go_over_the_network_in_clear_unless_the_admin_says_so() {
    let run = run_dir();
    let with_key = |args: &[&str]| {
        let mut command = command(run.path());
        command.args(args).env("ANTHROPIC_API_KEY", "sk-ant-planted-key");
        command
    };
    let why = refusal(&mut with_key(&["--upstream", "http://192.0.2.1:8080/v1"]));
    assert!(why.contains("in clear") && why.contains("https://") && why.contains("--allow-insecure-upstream"), "{why}");
    assert!(!why.contains("planted"), "{why}");
    let why = refusal(with_key(&[]).env("ANTHROPIC_BASE_URL", "http://model.test"));
    assert!(why.contains("http://model.test") && why.contains("in clear"), "{why}");
    let log = std::fs::File::create(run.path().join("log")).unwrap();
    let mut allowed = with_key(&["--upstream", "http://192.0.2.1:8080/v1", "--allow-insecure-upstream"]);
    let _process = Process(allowed.stderr(log).spawn().unwrap());
    let begun = Instant::now();
    loop {
        let said = std::fs::read_to_string(run.path().join("log")).unwrap();
        if said.contains("insecure-upstream") && Gateway::connect(run.path()).await.is_ok() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_state_directory_of_somebody_else_is_left_alone() {
    let run = run_dir();
    let state = run.path().join("state");
    std::fs::create_dir(&state).unwrap();
    chown(&state, Some(1234), Some(1234)).unwrap();
    let why = refusal(command(run.path()).args(["--upstream", "offline"]));
    assert!(why.contains("belongs to uid 1234"), "{why}");
    std::fs::remove_dir(&state).unwrap();
    // The target of a link is not given away.
    let elsewhere = run.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &state).unwrap();
    let why = refusal(command(run.path()).args(["--upstream", "offline"]));
    assert!(why.contains("state directory"), "{why}");
    assert_ne!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&elsewhere).unwrap()), NOBODY);
}
