//! The router on a new database, called without a socket.
#![allow(dead_code, clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::sync::Arc;

use ash_kernel::seqpacket;
use ash_model::{SessionStatus, TenantId, now_ms};
use ash_protocol::gateway;
use ashd::config::Config;
use ashd::gateway::client::Gateway;
use ashd::http::{AppState, router};
use ashd::sandbox::Launcher;
use ashd::sessions::Sessions;
use ashd::store::{ApiKey, Session, Store};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tower::ServiceExt;
use uuid::Uuid;

pub const KEY: &str = "ash_key-of-the-default-tenant";
pub const OTHER: &str = "ash_key-of-another-tenant";

pub struct Api {
    router: Router,
    pub store: Store,
    pub data: TempDir,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Api {
    /// Two tenants with a key each; the first may create keys for others.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(edit: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).await.unwrap();
        for (token, tenant, admin) in [(KEY, "default", true), (OTHER, "acme", false)] {
            let key = ApiKey {
                id: Uuid::new_v4(),
                tenant: tenant.parse::<TenantId>().unwrap(),
                label: "test".into(),
                hash: Sha256::digest(token).into(),
                prefix: token[..8].into(),
                admin,
                created_at: now_ms(),
            };
            store.key_insert(key).await.unwrap();
        }
        let mut config = config(data.path());
        edit(&mut config);
        let config = Arc::new(config);
        let sessions = sessions(Arc::clone(&config), store.clone()).await;
        Self { router: router(AppState::new(config, store.clone(), sessions)), store, data }
    }

    pub async fn ended_session(&self, id: Uuid) -> Session {
        let session = Session {
            launch: ash_model::RawJson::of(&serde_json::json!({"extraEnv": {"SECRET": "hunter2"}})),
            ..Session::new(id, TenantId::default_tenant(), "a", SessionStatus::Ended)
        };
        self.store.session_insert(&session).await.unwrap();
        session
    }

    /// `head` is `METHOD path`, then one header per line.
    pub async fn call(&self, head: &str, body: impl Into<Body>) -> Answer {
        let mut lines = head.lines();
        let (method, path) = lines.next().and_then(|line| line.split_once(' ')).expect(head);
        let mut request = Request::builder().method(method).uri(path);
        for line in lines {
            let (name, value) = line.split_once(": ").expect(line);
            request = request.header(name, value);
        }
        let response = self.answer(request.body(body.into()).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// As `call`, with the first tenant's key.
    pub async fn own(&self, head: &str, body: impl Into<Body>) -> Answer {
        self.call(&format!("{head}\nAuthorization: Bearer {KEY}"), body).await
    }

    /// As `call`, with the other tenant's key.
    pub async fn other(&self, head: &str, body: impl Into<Body>) -> Answer {
        self.call(&format!("{head}\nAuthorization: Bearer {OTHER}"), body).await
    }
}

/// No sandbox is reached through this router: such tests use the whole daemon. So the gateway is a
/// thread that answers `hello` to everything.
async fn sessions(config: Arc<Config>, store: Store) -> Sessions {
    std::fs::create_dir_all(&config.run_dir).unwrap();
    let hello = gateway::Reply::Hello { version: "test".into(), pid: std::process::id(), upstream: "offline".into() };
    serve(&config.run_dir.join(gateway::SOCKET), serde_json::to_vec(&hello).unwrap());
    let gateway = Gateway::connect(&config.run_dir).await.unwrap();
    let launcher = Launcher::at(&config.run_dir);
    Sessions::assemble(config, store, launcher, gateway).unwrap()
}

/// Answers every packet of every connection with `reply`, until the process ends.
fn serve(path: &std::path::Path, reply: Vec<u8>) {
    let listener = seqpacket::listen(path).unwrap();
    let wait = |fd: &std::os::fd::OwnedFd| {
        let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
    };
    std::thread::spawn(move || {
        loop {
            wait(&listener);
            let Ok(peer) = seqpacket::accept(listener.as_fd()) else { continue };
            let reply = reply.clone();
            std::thread::spawn(move || {
                let mut buffer = vec![0; gateway::MAX_PACKET];
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

fn config(data: &std::path::Path) -> Config {
    Config { data_dir: data.to_owned(), run_dir: data.join("run"), ..Config::default() }
}
