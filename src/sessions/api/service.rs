//! All sessions of this daemon: finds or starts a session's task, and passes requests on.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Live;
use crate::gateway::client::Gateway;
use crate::pool::Pool;
use crate::sandbox::Launcher;
use crate::sessions::api::evals::Evals;
use crate::sessions::api::exec::Execs;
use crate::sessions::api::limits::Tally;
use crate::sessions::api::metering::Metering;
use crate::sessions::api::new_message::NewMessage;
use crate::sessions::api::owned_session::Own;
use crate::sessions::api::prompt_queue::Jobs;
use crate::sessions::api::status::Census;
use crate::sessions::api::tenants::Tenants;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::context::Shared;
use crate::sessions::driver::Request;
use crate::sessions::driver::adopt;
use crate::sessions::driver::registry::{Handle, Registry};
use crate::sessions::launch::{Room, STARTS_AT_ONCE};
use crate::sessions::monitor::resource_monitor::Warden;
use crate::sessions::policy::options;
use crate::sessions::prewarm::{self, Key, Stock, Warm};
use crate::sessions::quota::admission::Admissions;
use crate::sessions::quota::stored::Storage;
use crate::sessions::stream::inotify::Hub;
use crate::sessions::stream::published::Published;
use crate::sessions::stream::reader::{self, ReaderError};
use crate::sessions::{CreateSession, EventId, FrameStream, PatchConfig, PoolStats, SessionError, WarmCount};
use crate::store::{Agent, Session, Store, StoreError, Turn};
use crate::vault::Vault;
use ash_model::{SessionStatus, Skipped, TenantId};
use ash_observe::tasks;

/// All sessions of this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    pub(in crate::sessions) shared: Arc<Shared>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("active", &self.active()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Adopts what outlived the previous daemon, then serves.
    pub async fn start(
        config: impl Into<Live>,
        store: Store,
        launcher: Launcher,
        gateway: Gateway,
    ) -> Result<Self, SessionError> {
        let sessions = Self::assemble(config, store, launcher, gateway)?;
        sessions.shared.keep_storage().await?;
        adopt::adopt(&sessions.shared).await?;
        sessions.watch_gateway();
        sessions.shared.keep_clean();
        sessions.shared.keep_metering();
        sessions.shared.keep_warm();
        sessions.work();
        sessions.work_evals();
        sessions.watch_limits();
        sessions.watch_steps();
        Ok(sessions)
    }

    /// Only constructs, without a search for sandboxes: for tests of the layers above.
    pub fn assemble(
        config: impl Into<Live>,
        store: Store,
        launcher: Launcher,
        gateway: Gateway,
    ) -> Result<Self, SessionError> {
        let hub = Hub::start().map_err(|e| SessionError::Failed(format!("inotify: {e}")))?;
        let live = config.into();
        let config = live.now();
        let vault = Vault::open(&config).map_err(|e| SessionError::Failed(e.to_string()))?;
        let storage = Storage::new(live.clone());
        let shared = Arc::new(Shared {
            pool: Pool::new(
                config.pool.max_sandboxes,
                config.pool.max_sandboxes_per_tenant,
                Duration::from_millis(config.pool.evict_after_ms),
            ),
            warden: Warden::new(&config.data_dir, launcher.clone(), storage.clone()),
            storage,
            tally: Tally::default(),
            limiting: tokio::sync::Mutex::default(),
            config: live,
            store,
            launcher,
            gateway,
            hub,
            registry: Registry::default(),
            execs: Execs::default(),
            starts: Admissions::new(STARTS_AT_ONCE),
            jobs: Jobs::default(),
            evals: Evals::default(),
            vault,
            warm: Stock::default(),
            no_swap: AtomicBool::new(false),
            census: Census::default(),
            tenants: Tenants::default(),
            metering: Metering::default(),
            stopping: CancellationToken::new(),
        });
        Ok(Self { shared })
    }

    /// Registers every session at a new gateway.
    fn watch_gateway(&self) {
        let shared = Arc::clone(&self.shared);
        tasks::spawn_restarting("gateway-watch", move || {
            let watched = Arc::clone(&shared);
            async move {
                loop {
                    watched.gateway.restarted().await;
                    tracing::warn!(
                        ASH_EVENT = "gateway-replaced",
                        "the gateway was replaced: registering every session again"
                    );
                    watched.register_warm_again().await;
                    for (_, handle) in watched.registry.all() {
                        let _ = handle.requests.send(Request::RegisterAgain).await;
                    }
                }
            }
        });
    }

    /// From now on no new session or turn begins, and streams end. Sandboxes continue.
    pub fn stop_accepting(&self) {
        self.shared.stopping.cancel();
    }

    /// Returns when the sandbox is ready and claude has answered `initialize`.
    pub async fn create(&self, tenant: &TenantId, body: CreateSession) -> Result<Session, SessionError> {
        self.shared.check_accepting()?;
        self.shared.check_write(tenant, 0).await?;
        let shared = &self.shared;
        if body.agent.is_empty() {
            return Err(SessionError::Invalid("agent is required: the name of a deployed agent".to_owned()));
        }
        let agent = shared.store.agent(tenant, &body.agent).await?;
        let agent = agent.ok_or_else(|| SessionError::AgentNotFound(body.agent.clone()))?;
        let credential = shared.credential_for(tenant, &body).await?;
        shared.agent_directory(&agent).await?;
        let (mut launch, config) = options::create(&agent, &body).map_err(SessionError::Invalid)?;
        options::use_credential(&mut launch, &body, credential);
        let mut session = shared.row(Uuid::new_v4(), &agent, &launch).await?;
        session.config = config;
        self.begin_session(agent, session, launch, body.credential_id.is_some()).await
    }

    /// In a warm, a parked or a new sandbox.
    async fn begin_session(
        &self,
        agent: Agent,
        mut session: Session,
        launch: LaunchOptions,
        own_key: bool,
    ) -> Result<Session, SessionError> {
        let shared = &self.shared;
        if !own_key && let Some(warm) = shared.claim(&agent, &session, &launch).await {
            return self.create_warm(warm, session).await;
        }
        shared.check_memory()?;
        let room = match shared.claim_parked(&session.tenant).await {
            Some(parked) => {
                (session.id, session.conversation) = (parked.id, parked.id);
                Room::Parked(Box::new(parked))
            }
            None => Room::Empty(shared.admit(&session.tenant, session.id).await?),
        };
        if let Err(e) = shared.store.session_insert(&session).await {
            if let Room::Parked(parked) = room {
                shared.unpark(*parked).await;
            }
            return Err(e.into());
        }
        shared.moved(None, SessionStatus::Starting, true);
        self.ask(&session.into(), |reply| Request::Create { room, reply }).await
    }

    /// The session takes over a ready sandbox, and its id.
    async fn create_warm(&self, warm: Warm, session: Session) -> Result<Session, SessionError> {
        let session = Session { id: warm.session.id, conversation: warm.session.conversation, ..session };
        if let Err(e) = self.shared.store.session_insert(&session).await {
            self.shared.discard(warm).await;
            return Err(e.into());
        }
        self.shared.moved(None, SessionStatus::Starting, true);
        let live = Box::new(warm.live);
        self.ask(&session.into(), |reply| Request::Claim { live, reply }).await
    }

    /// How many warm sandboxes are kept of this agent, and how many are ready now.
    pub async fn warm(&self, tenant: &TenantId, agent: &str) -> Result<WarmCount, SessionError> {
        let missing = || SessionError::AgentNotFound(agent.to_owned());
        let row = self.shared.store.agent(tenant, agent).await?.ok_or_else(missing)?;
        let own = self.shared.store.agent_warm(tenant, agent).await?.ok_or_else(missing)?;
        let (ready, warming) = self.shared.warm.warm.count(&Key::of(&row));
        Ok(WarmCount { count: own.unwrap_or(self.shared.config.now().pool.warm), own: own.is_some(), ready, warming })
    }

    /// Sets the number of warm sandboxes of this agent; `None` restores `[pool] warm`.
    pub async fn set_warm(
        &self,
        tenant: &TenantId,
        agent: &str,
        count: Option<u32>,
    ) -> Result<WarmCount, SessionError> {
        if let Some(count) = count.filter(|count| *count > prewarm::MAX) {
            return Err(SessionError::Invalid(format!("count must be 0 to {}, not {count}", prewarm::MAX)));
        }
        if !self.shared.store.agent_set_warm(tenant, agent, count).await? {
            return Err(SessionError::AgentNotFound(agent.to_owned()));
        }
        self.agents_changed();
        self.warm(tenant, agent).await
    }

    /// An agent was deployed, changed or deleted: its outdated warm sandboxes are destroyed.
    pub fn agents_changed(&self) {
        self.shared.warm.look_again();
    }

    /// The current row of the tenant's session.
    ///
    /// # Errors
    /// `NotFound`, also for another tenant's.
    pub async fn get(&self, tenant: &TenantId, id: Uuid) -> Result<Session, SessionError> {
        self.shared.store.session(tenant, id).await?.ok_or(SessionError::NotFound)
    }

    /// Accepts the message (durably) and returns the turn's frames.
    pub async fn send(&self, own: &Own, message: NewMessage) -> Result<FrameStream, SessionError> {
        self.check_new_turn(own).await?;
        let (published, partial) = (self.handle(own).published, message.partial);
        let id = Uuid::new_v4();
        let turn = self.ask(own, |reply| Request::Send { id, message: Box::new(message), reply }).await?;
        Ok(self.frames_of(own, turn, published, partial))
    }

    /// Called before every message.
    pub(in crate::sessions) async fn check_new_turn(&self, own: &Own) -> Result<(), SessionError> {
        self.shared.check_accepting()?;
        self.shared.check_write(own.tenant(), 0).await
    }

    /// As `send`. `begun` gets the id of the message's turn before it is sent: a caller who records
    /// it can find out later whether it was sent.
    pub async fn send_noting<F: Future<Output = Result<(), StoreError>>>(
        &self,
        own: &Own,
        message: NewMessage,
        begun: impl FnOnce(Uuid) -> F,
    ) -> Result<FrameStream, SessionError> {
        self.check_new_turn(own).await?;
        let (published, partial) = (self.handle(own).published, message.partial);
        let id = Uuid::new_v4();
        begun(id).await?;
        let turn = self.ask(own, |reply| Request::Send { id, message: Box::new(message), reply }).await?;
        Ok(self.frames_of(own, turn, published, partial))
    }

    /// A turn's frames from its beginning, live if it still runs; `None` when there is no such
    /// turn.
    pub async fn turn(&self, own: &Own, id: Uuid, partial: bool) -> Result<Option<FrameStream>, SessionError> {
        let published = self.handle(own).published;
        let turn = self.shared.store.turn_of_id(own.id(), id).await?;
        Ok(turn.map(|turn| self.frames_of(own, turn, published, partial)))
    }

    fn frames_of(&self, own: &Own, turn: Turn, published: watch::Receiver<Published>, partial: bool) -> FrameStream {
        let stdout = self.shared.dir(own.id()).stdout();
        let frames = reader::turn_stream(stdout, own.id(), self.shared.store.clone(), turn, published, partial);
        reader::until(&self.shared.stopping, frames)
    }

    /// Frames after `from` (or from now on), then live, without an end.
    pub async fn stream(
        &self,
        own: &Own,
        from: Option<EventId>,
        partial: Option<bool>,
    ) -> Result<FrameStream, SessionError> {
        let (id, published) = (own.id(), self.handle(own).published);
        let stdout = self.shared.dir(id).stdout();
        let store = self.shared.store.clone();
        match reader::session_stream(stdout, id, store, from, published, partial).await {
            Ok(frames) => Ok(reader::until(&self.shared.stopping, frames)),
            Err(e @ ReaderError::NotAPlace { .. }) => Err(SessionError::Invalid(e.to_string())),
            Err(ReaderError::Unavailable(why)) => Err(SessionError::Unavailable(why)),
        }
    }

    pub async fn pause(&self, own: &Own) -> Result<Session, SessionError> {
        self.ask(own, |reply| Request::Pause { reply }).await
    }
    pub async fn resume(&self, own: &Own) -> Result<Session, SessionError> {
        self.shared.check_accepting()?;
        self.ask(own, |reply| Request::Resume { reply }).await
    }
    pub async fn stop(&self, own: &Own) -> Result<Session, SessionError> {
        self.ask(own, |reply| Request::Stop { reply }).await
    }
    pub async fn end(&self, own: &Own) -> Result<Session, SessionError> {
        self.ask(own, |reply| Request::End { reply }).await
    }
    pub async fn interrupt(&self, own: &Own) -> Result<Session, SessionError> {
        self.ask(own, |reply| Request::Interrupt { reply }).await
    }
    pub async fn patch_config(&self, own: &Own, body: PatchConfig) -> Result<Session, SessionError> {
        self.ask(own, |reply| Request::Patch { body: Box::new(body), reply }).await
    }

    /// A new paused session with the files, the messages and the conversation of this one. Also
    /// returns what could not be copied.
    pub async fn fork(&self, own: &Own) -> Result<(Session, Skipped), SessionError> {
        self.shared.check_accepting()?;
        self.check_copy(own).await?;
        let new = Uuid::new_v4();
        let parent = self.ask(own, |reply| Request::Fork { to: new, reply }).await;
        let forked = match parent {
            Ok((parent, skipped)) => self.shared.insert_fork(&parent, new).await.map(|fork| (fork, skipped)),
            Err(e) => Err(e),
        };
        if forked.is_err() {
            self.shared.remove_directory(new).await;
        } else {
            self.touched(own.tenant(), Some(new), false);
        }
        forked
    }

    /// The session's workspace directory on the host, for the files API (live, paused or ended).
    pub fn workspace(&self, id: Uuid) -> PathBuf {
        self.shared.dir(id).workspace()
    }

    /// Constant time.
    pub fn pool_stats(&self) -> PoolStats {
        let census = self.shared.pool.census();
        PoolStats {
            total: census.cold + census.warming + census.warm + census.waiting + census.running,
            cold: census.cold,
            warming: census.warming,
            warm: census.warm,
            waiting: census.waiting,
            running: census.running,
            max_capacity: census.max,
            resume_warm_hits: census.resumed_warm,
            resume_cold_hits: census.resumed_cold,
            pre_warm_hits: census.pre_warmed,
        }
    }

    /// Sessions created since the daemon's start, by the kind of their sandbox. Constant time.
    pub fn created(&self) -> [(&'static str, u64); 3] {
        let census = self.shared.pool.census();
        [("prewarm", census.pre_warmed), ("parked", census.created_parked), ("cold", census.created_cold)]
    }

    /// Sessions that are `active`. Constant time.
    pub fn active(&self) -> usize {
        self.shared.census.of(SessionStatus::Active)
    }

    fn handle(&self, own: &Own) -> Handle {
        self.shared.handle(own.tenant().clone(), own.id())
    }
}
