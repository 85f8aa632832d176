//! Executes requests as decided by [`queue`](crate::sessions::policy::acceptance).

use std::time::Instant;

use serde_json::{Value, json};

use super::starts::Purpose;
use super::{Driver, Interrupted, Reply, Request};
use crate::pool::Admission;
use crate::sessions::api::exec::Place;
use crate::sessions::claude::Whose;
use crate::sessions::launch::running::Live;
use crate::sessions::launch::{Room, launcher_error};
use crate::sessions::policy::acceptance::Accept;
use crate::sessions::policy::transitions::Verb;
use crate::sessions::{PatchConfig, SessionError, claude};
use crate::store::{Session, StoreError};
use ash_model::{RawJson, SessionStatus};

impl Driver {
    pub(super) async fn request(&mut self, request: Request) {
        let verb = match &request {
            Request::Send { .. } => Verb::Send,
            Request::Exec { .. } => Verb::Exec,
            Request::Interrupt { .. } => Verb::Interrupt,
            Request::Pause { .. } => Verb::Pause,
            Request::Resume { .. } => Verb::Resume,
            Request::Stop { .. } => Verb::Stop,
            Request::End { .. } => Verb::End,
            Request::Patch { .. } | Request::Limits { .. } => Verb::Patch,
            Request::Fork { .. } => Verb::Fork,
            Request::Create { .. }
            | Request::Claim { .. }
            | Request::Adopt { .. }
            | Request::FoundCold
            | Request::Park { .. }
            | Request::RegisterAgain
            | Request::Retire { .. }
            | Request::LimitsMoved { .. }
            | Request::Found(_)
            | Request::FilesChanged
            | Request::Look { .. } => return self.internal(request).await,
        };
        match self.accept(verb) {
            Accept::Wait => return self.waiting.push(request),
            Accept::Refuse(refusal) => return refuse(request, refusal),
            Accept::Overtake => self.overtake().await,
            Accept::Now => {}
        }
        match request {
            Request::Send { id, message, reply } => self.send(id, *message, reply).await,
            Request::Exec { reply } => answer(reply, self.place_for_command().await),
            Request::Interrupt { reply } => self.interrupt(None, Some(reply)).await,
            Request::Pause { reply } => answer(reply, self.pause().await),
            Request::Resume { reply } => self.resume(reply).await,
            Request::Stop { reply } => {
                let ended = self.finish(SessionStatus::Stopped, "stopped", "the session was stopped").await;
                answer(reply, ended);
            }
            Request::End { reply } => {
                let ended = self.finish(SessionStatus::Ended, "ended", "the session was ended").await;
                answer(reply, ended);
            }
            Request::Patch { body, reply } => answer(reply, self.patch(*body).await),
            Request::Limits { change, admin, reply } => answer(reply, self.change_limits(&change, admin).await),
            Request::Fork { to, reply } => answer(reply, self.copy_to(to).await),
            // The others are internal.
            _ => {}
        }
    }

    async fn internal(&mut self, request: Request) {
        match request {
            Request::Create { room, reply } => self.start_cold(room, Purpose::Create(reply)),
            Request::Claim { live, reply } => self.claimed(*live, reply).await,
            Request::Adopt { slot } => self.adopt(slot).await,
            Request::FoundCold => self.found_cold("ashd was restarted and the sandbox was gone").await,
            Request::Park { reply } => {
                let idle = |live: &Live| !live.has_guests() && (live.frozen || !live.has_company());
                let spare = self.live.as_ref().is_some_and(|live| match self.session.status {
                    SessionStatus::Paused => true,
                    SessionStatus::Active => idle(live),
                    _ => false,
                });
                if spare && self.turn.is_none() && self.start.is_none() {
                    self.park("evicted").await;
                } else {
                    // Asks again at its next alarm.
                    self.place();
                }
                let _ = reply.send(());
            }
            // The running start may have registered with the previous gateway process.
            Request::RegisterAgain if self.start.is_some() => self.waiting.push(request),
            Request::RegisterAgain => {
                if let Some(live) = &self.live
                    && let Err(e) =
                        self.shared.register(&self.session, &live.listener, &live.record.token, &self.options).await
                {
                    tracing::error!(ASH_SESSION = %self.session.id, "cannot register the session at the gateway: {e}");
                }
            }
            Request::LimitsMoved { .. } if self.start.is_some() => self.waiting.push(request),
            Request::LimitsMoved { reply } => answer(reply, self.follow_limits().await),
            Request::Retire { reply } => answer(reply, self.retire().await),
            Request::Found(finding) => self.found(finding).await,
            Request::FilesChanged => self.release().await,
            Request::Look { reply } => drop(reply.send(self.look())),
            _ => {}
        }
    }

    /// Only the place: the command runs outside of this task, beside its turn.
    async fn place_for_command(&mut self) -> Result<Place, SessionError> {
        let Some(live) = &mut self.live else { return Err(SessionError::NotActive(self.session.status)) };
        live.thaw().await.map_err(|e| launcher_error(&e))?;
        live.idle_since = Instant::now();
        let env = claude::environment(&self.options.env, &Whose::of(&self.session), &live.record.token).vars;
        let window = self.shared.gateway.hold_open(self.session.id);
        Ok(Place { sandbox: live.sandbox.clone(), env, guest: live.guest(), window })
    }

    /// Freezes, then records it; if that fails, thaws again.
    async fn pause(&mut self) -> Result<Session, SessionError> {
        if let Some(live) = &mut self.live {
            live.freeze().await.map_err(|e| launcher_error(&e))?;
        }
        let more = if self.turn.is_some() {
            json!({ "reason": "client", "turn": true })
        } else {
            json!({ "reason": "client" })
        };
        let change = self.change(SessionStatus::Paused, None, "paused", more);
        if let Err(e) = self.enter(change).await {
            if let Some(live) = &mut self.live {
                live.thaw().await.map_err(|e| launcher_error(&e))?;
            }
            return Err(e);
        }
        self.save();
        Ok(self.session.clone())
    }

    async fn resume(&mut self, reply: Reply<Session>) {
        if self.session.status == SessionStatus::Active {
            return answer(reply, Ok(self.session.clone()));
        }
        if (self.is_held() || self.live.is_none())
            && let Err(e) = self.check_held().await
        {
            return answer(reply, Err(e));
        }
        if self.live.is_some() {
            return answer(reply, self.resume_warm().await);
        }
        if let Err(e) = self.shared.check_memory() {
            return answer(reply, Err(e));
        }
        match self.shared.pool.admit(&self.session.tenant, self.session.id) {
            Admission::Granted(slot) => self.start_cold(Room::Empty(slot), Purpose::Resume(reply)),
            Admission::Full(why) => answer(reply, Err(self.shared.full(why))),
            // Another session's task must free a slot. Not awaited: two full ones would wait for
            // each other.
            Admission::MakeRoom(victim) => {
                let (shared, id, tenant) = (self.shared.clone(), self.session.id, self.session.tenant.clone());
                tokio::spawn(async move {
                    shared.make_room(victim).await;
                    shared.pass_on(tenant, id, Request::Resume { reply }).await;
                });
            }
        }
    }

    pub(super) async fn resume_warm(&mut self) -> Result<Session, SessionError> {
        let live = self.live.as_mut().expect("asked for only with a live sandbox");
        live.thaw().await.map_err(|e| launcher_error(&e))?;
        if let Some(number) = live.unfinished.take() {
            // Its readers were told that it is over.
            let sent = live.deliver_line(&claude::interrupt_line(&format!("interrupt-{number}"))).await;
            sent.map_err(|e| launcher_error(&e))?;
        }
        live.idle_since = Instant::now();
        let change = self.change(SessionStatus::Active, None, "resumed", json!({ "path": "warm" }));
        if let Err(e) = self.enter(change).await {
            if let Some(live) = &mut self.live {
                live.freeze().await.map_err(|e| launcher_error(&e))?;
            }
            return Err(e);
        }
        self.shared.pool.resumed(true);
        Ok(self.session.clone())
    }

    /// Stop and end: ends everything of the session but its directory.
    async fn finish(&mut self, to: SessionStatus, action: &'static str, why: &str) -> Result<Session, SessionError> {
        if self.session.status == to {
            return Ok(self.session.clone());
        }
        if let Some(live) = &mut self.live {
            // Keeps the output so far, and none after it.
            if let Err(e) = live.freeze().await {
                tracing::warn!(ASH_SESSION = %self.session.id, "cannot freeze the sandbox before its end: {e}");
            }
        }
        self.catch_up().await;
        let mut change = self.change(to, None, action, Value::Null);
        let interrupted = self.break_turn(&mut change, why);
        if let Err(e) = self.enter(change.clone()).await {
            if !matches!(e, SessionError::Store(StoreError::Full)) {
                return Err(e);
            }
            // An end can be written when nothing must be written before it.
            self.ledger.give_up();
            self.enter(change).await?;
        }
        self.tear_down().await;
        self.answer_interrupted(interrupted, Ok(()));
        if to == SessionStatus::Ended {
            self.ledger.close(Some(why.to_owned()));
        }
        Ok(self.session.clone())
    }

    /// Ends this task. It leaves the registry before clients get an answer.
    async fn retire(&mut self) -> Result<(), SessionError> {
        self.overtake().await;
        self.finish(SessionStatus::Ended, "ended", "the session was ended").await?;
        self.retired = self.shared.registry.remove_if(self.session.id, || true);
        Ok(())
    }

    /// Refuses requests behind the one that retired this task: their session is about to be
    /// removed.
    pub(super) fn refuse_rest(&mut self) {
        self.requests.close();
        for request in std::mem::take(&mut self.waiting) {
            refuse(request, SessionError::NotFound);
        }
        while let Ok(request) = self.requests.try_recv() {
            refuse(request, SessionError::NotFound);
        }
    }

    /// Ends the running turn cleanly; without one there is nothing to do. `why` informs the turn's
    /// readers when no client asked.
    pub(super) async fn interrupt(&mut self, why: Option<String>, reply: Option<Reply<Session>>) {
        let hit_foreign = self.foreign.is_some();
        let Some(running) = &mut self.turn else {
            reply.into_iter().for_each(|reply| answer(reply, Ok(self.session.clone())));
            return;
        };
        let at = Instant::now();
        let first = running.interrupted.is_none();
        let interrupted = running.interrupted.get_or_insert(Interrupted { at, why, replies: Vec::new(), hit_foreign });
        // Answered when the turn has ended, cleanly or by force.
        interrupted.replies.extend(reply);
        if !first {
            return;
        }
        let number = running.turn.number;
        let Some(live) = &mut self.live else { return };
        let sent = async {
            live.thaw().await?;
            live.deliver_line(&claude::interrupt_line(&format!("interrupt-{number}"))).await
        };
        if let Err(e) = sent.await {
            tracing::warn!(ASH_SESSION = %self.session.id, "the interrupt was not delivered: {e}");
        }
    }

    async fn patch(&mut self, body: PatchConfig) -> Result<Session, SessionError> {
        let mut options = self.options.clone();
        let mut config = self.session.config.clone().unwrap_or_else(|| json!({}).into());
        crate::sessions::policy::options::patch(&mut options, &mut config, &body).map_err(SessionError::Invalid)?;
        let launch = RawJson::of(&options);
        let mut change = self.ledger.blank();
        change.launch = Some(launch.clone());
        change.config = Some(Some(config.clone()));
        if body.model.is_some() {
            change.model = Some(body.model.clone());
        }
        self.ledger.commit(change).await?;
        if body.model.is_some() {
            self.session.model = body.model;
        }
        // All but the model are flags, which the running process lacks.
        let flags_differ = {
            let mut same = options.clone();
            same.model = self.options.model.clone();
            same != self.options
        };
        if flags_differ && let Some(live) = &mut self.live {
            live.stale = true;
        }
        self.session.launch = launch;
        self.session.config = Some(config);
        self.options = options;
        Ok(self.session.clone())
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, SessionError>) {
    // The client may have gone; the work is done.
    let _ = reply.send(result);
}

fn refuse(request: Request, refusal: SessionError) {
    match request {
        Request::Send { reply, .. } => answer(reply, Err(refusal)),
        Request::Fork { reply, .. } => answer(reply, Err(refusal)),
        Request::Exec { reply } => answer(reply, Err(refusal)),
        Request::Interrupt { reply }
        | Request::Pause { reply }
        | Request::Resume { reply }
        | Request::Stop { reply }
        | Request::End { reply }
        | Request::Patch { reply, .. }
        | Request::Limits { reply, .. }
        | Request::LimitsMoved { reply }
        | Request::Claim { reply, .. }
        | Request::Create { reply, .. } => answer(reply, Err(refusal)),
        Request::Retire { reply } => answer(reply, Err(refusal)),
        // No client waits for the others.
        Request::Adopt { .. }
        | Request::FoundCold
        | Request::Park { .. }
        | Request::RegisterAgain
        | Request::Found(_)
        | Request::FilesChanged
        | Request::Look { .. } => {}
    }
}
