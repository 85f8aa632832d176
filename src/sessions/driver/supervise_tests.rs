//! A session's task that panics, on a real store, with a launcher and a gateway that send one fixed
//! reply.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, future::join_all};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::POISON;
use crate::config::Config;
use crate::gateway::client::Gateway;
use crate::sandbox::Launcher;
use crate::sessions::driver::Request;
use crate::sessions::{Own, Sessions};
use crate::store::{Commit, Session, Store, Turn};
use ash_kernel::seqpacket;
use ash_model::{SessionStatus, TenantId, now_ms};
use ash_protocol::gateway;
use ash_protocol::launcher;

/// Serves a socket until the test's process ends.
fn serve(path: &Path, reply: Vec<u8>) {
    let listener = seqpacket::listen(path).unwrap();
    let wait = |fd: &OwnedFd| {
        let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
    };
    std::thread::spawn(move || {
        loop {
            wait(&listener);
            let Ok(peer) = seqpacket::accept(listener.as_fd()) else { continue };
            let reply = reply.clone();
            std::thread::spawn(move || {
                let mut buffer = vec![0; launcher::MAX_PACKET.max(gateway::MAX_PACKET)];
                loop {
                    wait(&peer);
                    match seqpacket::recv(peer.as_fd(), &mut buffer) {
                        Ok(packet) if packet.len > 0 => seqpacket::send(peer.as_fd(), &reply, &[]).unwrap(),
                        _ => return,
                    }
                }
            });
        }
    });
}

/// The id of the fixture's turn.
const TURN: Uuid = Uuid::from_u128(1);

struct Fixture {
    _data: tempfile::TempDir,
    sessions: Sessions,
    store: Store,
    session: Session,
}

impl Fixture {
    /// An active session with a running turn, whose output holds one line that panics and one after
    /// it.
    async fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let run_dir = data.path().join("run");
        std::fs::create_dir_all(&run_dir).unwrap();
        let hello =
            gateway::Reply::Hello { version: "test".into(), pid: std::process::id(), upstream: "offline".into() };
        serve(&run_dir.join(gateway::SOCKET), serde_json::to_vec(&hello).unwrap());
        serve(&run_dir.join("launcher.sock"), serde_json::to_vec(&launcher::Reply::Done).unwrap());
        let store = Store::open(data.path()).await.unwrap();
        let gateway = Gateway::connect(&run_dir).await.unwrap();
        let config = Config { data_dir: data.path().to_owned(), run_dir: run_dir.clone(), ..Config::default() };
        let sessions = Sessions::assemble(Arc::new(config), store.clone(), Launcher::at(&run_dir), gateway).unwrap();

        let session = Session::new(Uuid::new_v4(), TenantId::default_tenant(), "a", SessionStatus::Active);
        store.session_insert(&session).await.unwrap();
        let mut change = Commit::of(&session);
        change.turn = Some(Turn {
            session: session.id,
            id: TURN,
            number: 1,
            start: 0,
            end: None,
            error: None,
            delivered: true,
            unasked: false,
            partial: false,
            started_at: now_ms(),
            ended_at: None,
        });
        store.commit(change).await.unwrap();
        sessions.shared.found(&[(SessionStatus::Active, 1)]);
        let dir = sessions.shared.dir(session.id);
        dir.make().unwrap();
        std::fs::write(dir.stdout(), format!("{{\"type\":\"{POISON}\"}}\n{{\"type\":\"other\"}}\n")).unwrap();
        Self { _data: data, sessions, store, session }
    }

    fn own(&self) -> Own {
        Own::from(self.session.clone())
    }

    /// Makes the task read the output, which panics.
    async fn trip(&self) {
        let shared = &self.sessions.shared;
        shared.pass_on(self.session.tenant.clone(), self.session.id, Request::FoundCold).await;
    }

    async fn row(&self) -> Session {
        self.store.session_of_any_tenant(self.session.id).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_the_turn_with_its_cause_and_the_session_still_ends() {
    let fixture = Fixture::new().await;
    let stream = fixture.sessions.turn(&fixture.own(), TURN, false).await.unwrap().unwrap();
    fixture.trip().await;
    let frames = tokio::time::timeout(Duration::from_secs(20), stream.collect::<Vec<_>>()).await.unwrap();
    let text: Vec<String> = frames.into_iter().map(|f| String::from_utf8_lossy(&f.unwrap()).into_owned()).collect();
    let text = text.concat();
    assert!(text.contains("event: error") && text.contains("panicked"), "{text}");
    assert!(text.trim_end().lines().last().unwrap().contains("sessionId"), "done is last: {text}");

    let row = fixture.row().await;
    assert_eq!(row.status, SessionStatus::Error);
    assert!(row.error.as_deref().is_some_and(|why| why.contains("panicked")), "{:?}", row.error);
    // The same line is not read again, by this daemon or the next.
    let length = std::fs::metadata(fixture.sessions.shared.dir(row.id).stdout()).unwrap().len();
    assert_eq!(row.stdout_offset, length);
    let census = &fixture.sessions.shared.census;
    // The rows come first; the task that wrote them updates the counters at once.
    let counts = || (census.of(SessionStatus::Active), census.of(SessionStatus::Error));
    let counted = async {
        while counts() != (0, 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted).await.unwrap_or_else(|_| panic!("{:?}", counts()));

    let ended = fixture.sessions.end(&fixture.own()).await.unwrap();
    assert_eq!(ended.status, SessionStatus::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_behind_a_panic_are_answered() {
    let fixture = Fixture::new().await;
    let shared = &fixture.sessions.shared;
    fixture.trip().await;
    // In the inbox during the panic: none of them is dropped.
    let mut answers = Vec::new();
    for _ in 0..8 {
        let (reply, answer) = oneshot::channel();
        shared.pass_on(fixture.session.tenant.clone(), fixture.session.id, Request::Look { reply }).await;
        answers.push(answer);
    }
    let answers = tokio::time::timeout(Duration::from_secs(20), join_all(answers)).await.unwrap();
    assert!(answers.iter().all(Result::is_ok), "a request lost its answer");
    let stopped = fixture.sessions.stop(&fixture.own()).await;
    assert!(stopped.is_err(), "stop of a session in state error is refused by its state, not by a dead task");
    assert!(!stopped.unwrap_err().to_string().contains("task failed"));
    fixture.sessions.end(&fixture.own()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_panics_again_and_again_can_be_ended() {
    let fixture = Fixture::new().await;
    for _ in 0..3 {
        fixture.trip().await;
        let dir = fixture.sessions.shared.dir(fixture.session.id);
        let mut output = std::fs::read_to_string(dir.stdout()).unwrap();
        output.push_str(&format!("{{\"type\":\"{POISON}\"}}\n"));
        std::fs::write(dir.stdout(), output).unwrap();
    }
    fixture.trip().await;
    let ended = tokio::time::timeout(Duration::from_secs(20), fixture.sessions.end(&fixture.own())).await.unwrap();
    assert_eq!(ended.unwrap().status, SessionStatus::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_launch_options_cannot_be_read_says_so_and_can_be_ended() {
    let fixture = Fixture::new().await;
    let mut change = Commit::of(&fixture.session);
    change.launch = Some(ash_model::RawJson::of(&serde_json::json!({ "env": 7 })));
    change.status = Some((SessionStatus::Paused, None));
    fixture.store.commit(change).await.unwrap();
    let resumed = fixture.sessions.resume(&fixture.own()).await.unwrap_err().to_string();
    assert!(resumed.contains("launch options") && resumed.contains("new session"), "{resumed}");
    let ended = fixture.sessions.end(&fixture.own()).await.unwrap();
    assert_eq!(ended.status, SessionStatus::Ended);
}

#[tokio::test]
async fn requests_behind_the_end_of_a_task_are_answered_at_once() {
    let fixture = Fixture::new().await;
    let dir = fixture.sessions.shared.dir(fixture.session.id);
    std::fs::write(dir.stdout(), "").unwrap();
    let handle = fixture.sessions.shared.handle(fixture.session.tenant.clone(), fixture.session.id);
    let (retire, retired) = oneshot::channel();
    handle.requests.send(Request::Retire { reply: retire }).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..8 {
        let (reply, answer) = oneshot::channel();
        handle.requests.send(Request::Stop { reply }).await.unwrap();
        answers.push(answer);
    }
    assert!(retired.await.unwrap().is_ok());
    for answer in join_all(answers).await {
        let refused = answer.expect("a request lost its answer").unwrap_err();
        assert!(matches!(refused, crate::sessions::SessionError::NotFound), "{refused}");
    }
}
