//! The background task that maintains the stock: destroys outdated sandboxes and creates missing
//! ones, one at a time, and never at the cost of a session. Parked sandboxes have their own task,
//! [`super::spare_maker`].

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Key, Warm, compatibility};
use crate::pool::{Slot, Spare};
use crate::sessions::claude::{LaunchOptions, ProcessFlags};
use crate::sessions::context::Shared;
use crate::sessions::launch::{Plan, Program, Room};
use crate::sessions::policy::options;
use crate::sessions::{CreateSession, SessionError};
use crate::store::{Agent, Session};
use ash_model::{Limits, RawJson, SandboxState, SessionStatus, TenantId};
use ash_observe::tasks;

/// Interval of checks for dead sandboxes and free slots.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Delay after one was taken: its session has its first turn now, and the next start takes half a
/// second of a core.
pub(super) const REFILL_AFTER: Duration = Duration::from_secs(1);
/// Delay after a failed start, so that a broken agent is not retried all the time.
const REST: Duration = Duration::from_secs(60);

/// What must be unchanged for a warm sandbox to be kept.
#[derive(PartialEq)]
struct Mould {
    options: LaunchOptions,
    limits: Limits,
    print: u64,
    program: Program,
}

impl Warm {
    fn mould(&self) -> Mould {
        let (options, program) = (self.options.clone(), self.program.clone());
        Mould { options, limits: self.session.limits, print: self.print, program }
    }
}

impl Shared {
    /// Starts the keeper. It ends with the daemon; the next start destroys its sandboxes.
    pub fn keep_warm(self: &Arc<Self>) {
        self.keep_parked();
        let shared = Arc::clone(self);
        tasks::spawn_restarting("warm-sandboxes", move || {
            let shared = Arc::clone(&shared);
            async move {
                let mut failed = HashMap::new();
                loop {
                    while shared.warm_step(&mut failed).await {}
                    let _ = tokio::time::timeout(LOOK_AGAIN, shared.warm.changed()).await;
                    if shared.warm.was_taken() {
                        tokio::time::sleep(REFILL_AFTER).await;
                    }
                }
            }
        });
    }

    /// One step; `false` when everything is as it should be (or cannot be changed now).
    async fn warm_step(self: &Arc<Self>, failed: &mut HashMap<Key, Instant>) -> bool {
        if self.stopping.is_cancelled() {
            return false;
        }
        let agents = match self.store.agents_to_warm(self.config.now().pool.warm).await {
            Ok(agents) => agents,
            Err(e) => {
                tracing::warn!("cannot read which agents to keep warm: {e}");
                return false;
            }
        };
        let mut wanted = HashMap::new();
        for (agent, count) in &agents {
            // Unknown: its warm sandboxes are destroyed, and the next start reports the reason.
            wanted.insert(Key::of(agent), (self.mould(agent).await.ok(), *count as usize));
        }
        let keep = |warm: &Warm| {
            wanted.get(&warm.key).filter(|(mould, _)| mould.as_ref() == Some(&warm.mould())).map_or(0, |w| w.1)
        };
        for warm in self.warm.warm.sweep(keep) {
            self.discard(warm).await;
        }
        failed.retain(|key, since| wanted.contains_key(key) && since.elapsed() < REST);
        let missing = agents.into_iter().find(|(agent, count)| {
            let key = Key::of(agent);
            !failed.contains_key(&key) && self.warm.warm.count(&key).0 < *count as usize
        });
        let Some((agent, _)) = missing else { return false };
        if self.short_of_memory().is_some()
            || self.has_reserve().is_err()
            || self.is_storage_full(&agent.tenant).is_some()
        {
            return false;
        }
        match self.make_warm(&agent).await {
            Ok(made) => made,
            Err(e) => {
                tracing::warn!(ASH_TENANT = %agent.tenant, ASH_AGENT = %agent.name, ASH_EVENT = "warm-failed",
                    "cannot create a warm sandbox, retrying in {} s: {e}", REST.as_secs());
                failed.insert(Key::of(&agent), Instant::now());
                true
            }
        }
    }

    /// `Ok(false)` when no slot is free, or a session needed it meanwhile.
    async fn make_warm(self: &Arc<Self>, agent: &Agent) -> Result<bool, SessionError> {
        let Mould { options, print, program, .. } = self.mould(agent).await?;
        let id = Uuid::new_v4();
        let session = self.row(id, agent, &options).await?;
        let Some(slot) = self.admit_warm(&agent.tenant, id).await else { return Ok(false) };
        let key = Key::of(agent);
        let cancel = self.warm.warm.making(id, key.clone());
        let plan = Plan {
            shared: Arc::clone(self),
            dir: self.dir(id),
            session: session.clone(),
            options: options.clone(),
            flags: ProcessFlags::default(),
            turn: 0,
            offset: 0,
            cancel: cancel.clone(),
        };
        let made = match plan.cold(Room::Empty(slot)).await {
            Ok(mut live) => match live.freeze().await {
                Ok(()) => {
                    live.spare();
                    Ok(Warm { key, session, options, print, program, live })
                }
                Err(e) => {
                    self.remove_sandbox(id).await;
                    Err(SessionError::Failed(e.to_string()))
                }
            },
            Err(e) => Err(e),
        };
        if made.is_err() {
            self.remove_directory(id).await;
        }
        match made {
            Ok(warm) => {
                self.warm.warm.made(Some(warm));
                Ok(true)
            }
            Err(e) => {
                self.warm.warm.made(None);
                if cancel.is_cancelled() { Ok(false) } else { Err(e) }
            }
        }
    }

    /// A slot for a warm sandbox; parked ones are evicted for it.
    async fn admit_warm(&self, tenant: &TenantId, id: Uuid) -> Option<Slot> {
        loop {
            match self.pool.admit_spare(tenant, id, Spare::Warm) {
                None if self.give_up_parked().await => {}
                admitted => return admitted,
            }
        }
    }

    /// The properties of a warm sandbox of this agent created now.
    async fn mould(&self, agent: &Agent) -> Result<Mould, SessionError> {
        let (options, _) = options::create(agent, &CreateSession::default()).map_err(SessionError::Invalid)?;
        let limits = self.levels_of(&agent.tenant, Some(&agent.name), None).await?.effective();
        Ok(Mould { options, limits, print: self.agent_print(agent).await?, program: self.program() })
    }

    /// A new session of this agent, as a row that is not stored yet.
    pub async fn row(&self, id: Uuid, agent: &Agent, launch: &LaunchOptions) -> Result<Session, SessionError> {
        Ok(Session {
            model: launch.model.clone(),
            launch: RawJson::of(launch),
            limits: self.levels_of(&agent.tenant, Some(&agent.name), None).await?.effective(),
            ..Session::new(id, agent.tenant.clone(), &agent.name, SessionStatus::Starting)
        })
    }

    /// See [`compatibility::fingerprint`]. An uploaded agent's directory never changes.
    async fn agent_print(&self, agent: &Agent) -> Result<u64, SessionError> {
        let directory = self.agent_directory(agent).await?;
        if directory.is_uploaded() {
            return Ok(0);
        }
        let name = agent.path.clone();
        let print = tokio::task::spawn_blocking(move || compatibility::fingerprint(directory.as_fd())).await;
        let print = print.map_err(|e| SessionError::Failed(e.to_string()))?;
        print.map_err(|e| SessionError::Failed(format!("the agent's directory {name}: {e}")))
    }

    /// A warm sandbox for this new session, if one fits. No other session gets it.
    pub async fn claim(self: &Arc<Self>, agent: &Agent, session: &Session, options: &LaunchOptions) -> Option<Warm> {
        let key = Key::of(agent);
        if self.warm.warm.count(&key).0 == 0 {
            return None;
        }
        // The cold start reports a directory that cannot be read.
        let print = self.agent_print(agent).await.ok()?;
        let program = self.program();
        let serves = |warm: &Warm| {
            warm.key == key
                && warm.print == print
                && warm.program == program
                && warm.session.limits == session.limits
                && compatibility::fits(&warm.options, options)
        };
        let (found, dead) = self.warm.warm.take(serves);
        for warm in dead {
            // Awaited: the session that starts cold instead may need its slot.
            self.discard(warm).await;
        }
        if found.is_some() {
            self.warm.taken();
        }
        self.warm.look_again();
        found
    }

    /// Destroys a warm sandbox and everything it had.
    pub async fn discard(&self, warm: Warm) {
        let id = warm.session.id;
        self.remove_sandbox(id).await;
        drop(warm);
        self.remove_directory(id).await;
    }

    /// Registers all at a new gateway.
    pub async fn register_warm_again(&self) {
        for warm in self.warm.warm.take_all() {
            match self.register(&warm.session, &warm.live.listener, &warm.live.record.token, &warm.options).await {
                Ok(()) => self.warm.warm.put(warm),
                Err(e) => {
                    tracing::warn!(ASH_SESSION = %warm.session.id, "discarding a warm sandbox: {e}");
                    self.discard(warm).await;
                }
            }
        }
    }
}

impl crate::sessions::launch::running::Live {
    /// Tells the pool that it has no session yet.
    fn spare(&self) {
        self.slot().set(SandboxState::Warm, false);
    }
}
