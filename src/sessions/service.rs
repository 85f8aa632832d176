//! All sessions of this daemon: finds or makes the task of a session and passes requests on.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::config::Config;
use crate::gateway::client::Gateway;
use crate::model::{SessionStatus, TenantId, now_ms};
use crate::pool::{Admission, Pool, Slot};
use crate::sandbox::Launcher;
use crate::sessions::driver::{Driver, Reply, Request, lifecycle};
use crate::sessions::hub::Hub;
use crate::sessions::paths::SessionDir;
use crate::sessions::published::Published;
use crate::sessions::reader::{self, ReaderError};
use crate::sessions::registry::{self, Handle, Registry};
use crate::sessions::{
    CreateSession, EventId, FrameStream, PatchConfig, PoolStats, SendMessage, SessionError, adopt, options,
};
use crate::store::{Commit, Role, Session, Store};

/// Idle time after which a claude is frozen by itself (DESIGN §6).
const FREEZE_AFTER: Duration = Duration::from_secs(2);
/// Seconds a client should wait before it asks for a sandbox again.
const RETRY_AFTER_S: u64 = 5;
/// Requests for room that one admission makes of others before it gives up.
const MAX_EVICTIONS: usize = 8;

/// All sessions of this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("active", &self.active()).finish_non_exhaustive()
    }
}

/// What every session's task needs.
#[derive(Debug)]
pub struct Shared {
    pub config: Arc<Config>,
    pub store: Store,
    pub launcher: Launcher,
    pub gateway: Gateway,
    pub pool: Pool,
    pub hub: Hub,
    pub registry: Registry,
    pub freeze_after: Option<Duration>,
    active: AtomicI64,
    stopping: AtomicBool,
}

impl Sessions {
    /// Takes over what outlived the last daemon, then serves.
    pub async fn start(
        config: Arc<Config>,
        store: Store,
        launcher: Launcher,
        gateway: Gateway,
    ) -> Result<Self, SessionError> {
        let sessions = Self::assemble(config, store, launcher, gateway)?;
        adopt::adopt(&sessions.shared).await?;
        sessions.watch_gateway();
        Ok(sessions)
    }

    /// Only what [`Sessions::start`] puts together, without looking for sandboxes: for tests of the layers above.
    pub fn assemble(
        config: Arc<Config>,
        store: Store,
        launcher: Launcher,
        gateway: Gateway,
    ) -> Result<Self, SessionError> {
        let hub = Hub::start().map_err(|e| SessionError::Failed(format!("inotify: {e}")))?;
        let shared = Arc::new(Shared {
            pool: Pool::new(config.pool.max_sandboxes),
            config,
            store,
            launcher,
            gateway,
            hub,
            registry: Registry::default(),
            freeze_after: Some(FREEZE_AFTER),
            active: AtomicI64::new(0),
            stopping: AtomicBool::new(false),
        });
        Ok(Self { shared })
    }

    /// A new gateway knows no session: it is told of each again.
    fn watch_gateway(&self) {
        let watched = Arc::clone(&self.shared);
        tokio::spawn(async move {
            loop {
                watched.gateway.restarted().await;
                tracing::warn!(
                    ASH_EVENT = "gateway-replaced",
                    "the gateway was replaced: every session is registered again"
                );
                for (_, handle) in watched.registry.all() {
                    let _ = handle.requests.send(Request::RegisterAgain).await;
                }
            }
        });
    }

    /// No new session or turn is begun from now on; what runs goes on in its sandbox.
    pub fn stop_accepting(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Answers when the sandbox is ready and claude answered `initialize`, never before.
    pub async fn create(&self, tenant: &TenantId, body: CreateSession) -> Result<Session, SessionError> {
        self.shared.check_accepting()?;
        let shared = &self.shared;
        if body.agent.is_empty() {
            return Err(SessionError::Invalid("agent is required: the name of a deployed agent".to_owned()));
        }
        let agent = shared.store.agent(tenant, &body.agent).await?;
        let agent = agent.ok_or_else(|| SessionError::AgentNotFound(body.agent.clone()))?;
        if let Some(credential) = &body.credential_id {
            return Err(SessionError::Invalid(format!("credentialId: there is no credential \"{credential}\"")));
        }
        if !std::path::Path::new(&agent.path).is_dir() {
            return Err(SessionError::AgentDirectoryGone { agent: agent.name, path: agent.path });
        }
        let (launch, config) = options::create(&agent, &body).map_err(SessionError::Invalid)?;
        let id = Uuid::new_v4();
        let slot = shared.admit(id).await?;
        let now = now_ms();
        let session = Session {
            id,
            tenant: tenant.clone(),
            agent_name: agent.name,
            status: SessionStatus::Starting,
            error: None,
            model: launch.model.clone(),
            config,
            launch: serde_json::to_value(&launch).map_err(|e| SessionError::Failed(e.to_string()))?,
            limits: shared.config.limits,
            parent: None,
            stdout_offset: 0,
            created_at: now,
            last_active_at: now,
        };
        shared.store.session_insert(&session).await?;
        shared.moved(None, SessionStatus::Starting, true);
        self.ask(shared.handle(tenant.clone(), id), |reply| Request::Create { slot, reply }).await
    }

    pub async fn get(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.shared.store.session(tenant, id).await?.ok_or(SessionError::NotFound)
    }

    /// Accepts the message (durably) and returns the turn's frames.
    pub async fn send(&self, tenant: &TenantId, id: Uuid, body: SendMessage) -> Result<FrameStream, SessionError> {
        self.shared.check_accepting()?;
        let handle = self.find(tenant, id).await?;
        let (published, partial) = (handle.published.clone(), body.include_partial_messages);
        let turn = self.ask(handle, |reply| Request::Send { body: Box::new(body), reply }).await?;
        let stdout = self.shared.dir(id).stdout();
        Ok(reader::turn_stream(stdout, id, self.shared.store.clone(), turn, published, partial))
    }

    /// Frames after `from` (or from now on), then live, for ever.
    pub async fn stream(
        &self,
        tenant: &TenantId,
        id: Uuid,
        from: Option<EventId>,
        partial: bool,
    ) -> Result<FrameStream, SessionError> {
        let handle = self.find(tenant, id).await?;
        let stdout = self.shared.dir(id).stdout();
        reader::session_stream(stdout, id, self.shared.store.clone(), from, handle.published, partial).await.map_err(
            |e| match e {
                ReaderError::NotAPlace { .. } => SessionError::Invalid(e.to_string()),
                ReaderError::Unavailable(why) => SessionError::Unavailable(why),
            },
        )
    }

    pub async fn pause(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.ask(self.find(tenant, id).await?, |reply| Request::Pause { reply }).await
    }
    pub async fn resume(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.shared.check_accepting()?;
        self.ask(self.find(tenant, id).await?, |reply| Request::Resume { reply }).await
    }
    pub async fn stop(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.ask(self.find(tenant, id).await?, |reply| Request::Stop { reply }).await
    }
    pub async fn end(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.ask(self.find(tenant, id).await?, |reply| Request::End { reply }).await
    }
    pub async fn interrupt(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.ask(self.find(tenant, id).await?, |reply| Request::Interrupt { reply }).await
    }
    pub async fn patch_config(&self, tenant: &TenantId, id: Uuid, body: PatchConfig) -> Result<Session, SessionError> {
        self.ask(self.find(tenant, id).await?, |reply| Request::Patch { body: Box::new(body), reply }).await
    }

    /// A new paused session with the files, the messages and the conversation of this one.
    pub async fn fork(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.shared.check_accepting()?;
        let new = Uuid::new_v4();
        let parent = self.ask(self.find(tenant, id).await?, |reply| Request::Fork { to: new, reply }).await;
        let forked = match parent {
            Ok(parent) => self.shared.insert_fork(&parent, new).await,
            Err(e) => Err(e),
        };
        if forked.is_err() {
            let root = self.shared.dir(new).root().to_owned();
            let _ = tokio::fs::remove_dir_all(root).await;
        }
        forked
    }

    /// The session's workspace directory on the host, for the files API (live, paused or ended).
    pub async fn workspace(&self, tenant: &TenantId, id: Uuid) -> Result<PathBuf, SessionError> {
        self.get(tenant, id).await?;
        Ok(self.shared.dir(id).workspace())
    }

    /// Constant time.
    pub fn pool_stats(&self) -> PoolStats {
        let census = self.shared.pool.census();
        PoolStats {
            total: census.cold + census.warming + census.waiting + census.running,
            cold: census.cold,
            warming: census.warming,
            warm: 0,
            waiting: census.waiting,
            running: census.running,
            max_capacity: census.max,
            resume_warm_hits: census.resumed_warm,
            resume_cold_hits: census.resumed_cold,
            pre_warm_hits: 0,
        }
    }

    /// Sessions that are `active`. Constant time.
    pub fn active(&self) -> usize {
        usize::try_from(self.shared.active.load(Ordering::Relaxed)).unwrap_or(0)
    }

    async fn find(&self, tenant: &TenantId, id: Uuid) -> Result<Handle, SessionError> {
        if let Some(handle) = self.shared.registry.get(id) {
            return if handle.tenant == *tenant { Ok(handle) } else { Err(SessionError::NotFound) };
        }
        self.get(tenant, id).await?;
        Ok(self.shared.handle(tenant.clone(), id))
    }

    async fn ask<T>(&self, handle: Handle, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, SessionError> {
        let (reply, answer) = oneshot::channel();
        if handle.requests.send(make(reply)).await.is_err() {
            return Err(SessionError::Unavailable("the session's task has just rested; try again".to_owned()));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(SessionError::Failed("the session's task failed; see the journal".to_owned())))
    }
}

impl Shared {
    pub fn dir(&self, id: Uuid) -> SessionDir {
        SessionDir::new(&self.config.data_dir, id)
    }

    /// The session's task, started when it has none.
    pub fn handle(self: &Arc<Self>, tenant: TenantId, id: Uuid) -> Handle {
        self.registry.get_or_insert(id, || {
            let (handle, ends) = registry::channel(tenant, Published::default());
            tokio::spawn(Driver::run(Arc::clone(self), id, ends));
            handle
        })
    }

    fn check_accepting(&self) -> Result<(), SessionError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(SessionError::Unavailable("ashd is restarting; try again in a moment".to_owned()));
        }
        Ok(())
    }

    /// Counts a session's change of state; `None` for one that was not counted before.
    pub fn moved(&self, from: Option<SessionStatus>, to: SessionStatus, live: bool) {
        let active = |status| i64::from(status == SessionStatus::Active);
        self.active.fetch_add(active(to) - from.map_or(0, active), Ordering::Relaxed);
        // With a process the pool's slot counts it.
        let cold = |status| i64::from(!live && is_cold(status));
        self.pool.cold_changed(cold(to) - from.map_or(0, cold));
    }

    /// The process of a session in this state is gone.
    pub fn went_cold(&self, status: SessionStatus) {
        self.pool.cold_changed(i64::from(is_cold(status)));
    }

    /// A session in this state is about to have a process.
    pub fn went_live(&self, status: SessionStatus) {
        self.pool.cold_changed(-i64::from(is_cold(status)));
    }

    pub fn full(&self) -> SessionError {
        SessionError::Capacity { max: self.pool.max(), retry_after_s: RETRY_AFTER_S }
    }

    /// A slot, or whose sandbox may go for it (`None`: nobody's).
    pub fn admit_now(&self, id: Uuid) -> Result<Slot, Option<Uuid>> {
        match self.pool.admit(id) {
            Admission::Granted(slot) => Ok(slot),
            Admission::MakeRoom(victim) => Err(Some(victim)),
            Admission::Full => Err(None),
        }
    }

    /// A slot; paused sessions give up their sandboxes for it.
    async fn admit(self: &Arc<Self>, id: Uuid) -> Result<Slot, SessionError> {
        for _ in 0..MAX_EVICTIONS {
            match self.admit_now(id) {
                Ok(slot) => return Ok(slot),
                Err(None) => break,
                Err(Some(victim)) => self.make_room(victim).await,
            }
        }
        Err(self.full())
    }

    /// Asks a paused session to give up its sandbox, and waits until it did or declined.
    pub async fn make_room(&self, victim: Uuid) {
        let Some(handle) = self.registry.get(victim) else { return };
        let (reply, done) = oneshot::channel();
        if handle.requests.send(Request::Park { reply }).await.is_ok() {
            let _ = done.await;
        }
    }

    async fn insert_fork(&self, parent: &Session, id: Uuid) -> Result<Session, SessionError> {
        let now = now_ms();
        let fork = Session {
            id,
            status: SessionStatus::Paused,
            error: None,
            parent: Some(parent.id),
            stdout_offset: 0,
            created_at: now,
            last_active_at: now,
            ..parent.clone()
        };
        self.store.session_insert(&fork).await?;
        let mut after = 0;
        loop {
            const PAGE: u32 = 500;
            let page = self.store.messages(&parent.tenant, parent.id, PAGE, after).await?;
            let Some(last) = page.last() else { break };
            after = last.sequence;
            let mut copy = Commit::of(&fork);
            let role = |word: &str| if word == "user" { Role::User } else { Role::Assistant };
            copy.messages = page.into_iter().map(|m| (role(&m.role), m.content)).collect();
            self.store.commit(copy).await?;
        }
        let mut change = Commit::of(&fork);
        change.events.push(("lifecycle", lifecycle("forked", json!({ "from": parent.id }))));
        self.store.commit(change).await?;
        self.moved(None, SessionStatus::Paused, false);
        Ok(fork)
    }
}

fn is_cold(status: SessionStatus) -> bool {
    matches!(status, SessionStatus::Paused | SessionStatus::Stopped | SessionStatus::Error)
}
