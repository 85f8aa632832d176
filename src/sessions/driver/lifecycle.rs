//! Unrequested transitions: deaths, alarms, and what a restarted ashd finds.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::libc::SIGKILL;
use serde_json::json;

use super::turn::message_file;
use super::{Driver, Interrupted, Running};
use crate::pool::Slot;
use crate::sandbox::SandboxEvent;
use crate::sandbox::usage::Usage;
use crate::sessions::SessionError;
use crate::sessions::claude::message::UserLine;
use crate::sessions::claude::process_record::of_turn;
use crate::sessions::claude::transcript;
use crate::sessions::claude::turn_tracker::Turns;
use crate::sessions::driver::adopt::{self, Attached};
use crate::sessions::monitor::exit_cause::{self, OomCount};
use crate::sessions::policy::timers;
use crate::sessions::policy::timers::Alarm;
use crate::sessions::stream::tail::{Tail, TailError};
use crate::sessions::workspace::layout::SessionDir;
use crate::store::{Commit, Store, Turn};
use ash_model::{SessionStatus, now_ms};
use ash_protocol::init::Exit;

/// claude's process name.
const NAME: &str = "claude";
/// Longest time to read the remaining output of an ended process.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Longest time from the kernel's choice of a victim to its end: gigabytes may be released.
const DYING: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) async fn sandbox_event(&mut self, event: Option<SandboxEvent>) {
        let status = match event {
            Some(SandboxEvent::Exited { child, status })
                if self.live.as_ref().is_some_and(|live| live.record.child == child) =>
            {
                Some(status)
            }
            Some(SandboxEvent::Died) | None => None,
            Some(_) => return,
        };
        self.died(status).await;
    }

    /// claude (with its status) or the whole sandbox has ended.
    pub(super) async fn died(&mut self, status: Option<Exit>) {
        self.catch_up().await;
        let Some(live) = &mut self.live else { return };
        let (shared, limits) = (self.shared.clone(), self.session.limits);
        let kills = OomCount::read(&live.sandbox.info.cgroup).since(live.oom);
        let killed = matches!(status, None | Some(Exit::Signal(SIGKILL)));
        let told = live.told_oom.take().filter(|(at, oom)| killed && at.elapsed() < DYING && oom.may_have_killed(NAME));
        let told = told.map(|(_, oom)| oom);
        let new = if kills.number > 0 { Some(shared.oom(self.session.id, &limits, kills).await) } else { None };
        let told_already = new.is_none() && told.is_some();
        let oom = new.or(told);
        let Some(live) = &self.live else { return };
        let usage = Usage::read(&live.sandbox.info.cgroup);
        let mut why = match status {
            Some(status) => exit_cause::exited(status, oom.as_ref(), &self.dir.stderr_tail(live.stderr_from)),
            None => exit_cause::sandbox_died(oom.as_ref()),
        };
        if oom.is_none()
            && let Some(refused) = usage.pids.refused.filter(|refused| *refused > 0)
        {
            why.push_str(&format!(" (before that, {refused} forks were refused by the limit of {} pids)", limits.pids));
        }
        let reason = exit_cause::reason(oom.is_some(), status);
        if let Some(data) = exit_cause::killed(oom.as_ref(), status, usage.memory.peak_bytes).filter(|_| !told_already)
        {
            self.shared.tally.count(reason);
            self.cause("killed", reason, data, &why);
        }
        self.fell(why, reason).await;
    }

    /// The session failed: informs readers and database first, then removes the rest.
    pub(super) async fn fell(&mut self, why: String, reason: &'static str) {
        tracing::warn!(ASH_SESSION = %self.session.id, ASH_TENANT = %self.session.tenant, ASH_EVENT = "fell", reason, "{why}");
        // A paused session stays paused: its next resume starts a new process.
        let mut change = if self.session.status == SessionStatus::Paused {
            let mut change = self.ledger.blank();
            let data = super::lifecycle("parked", json!({ "reason": reason, "error": why }));
            change.events.push(("lifecycle", data.into()));
            change
        } else {
            self.change(SessionStatus::Error, Some(why.clone()), "error", json!({ "reason": reason, "error": why }))
        };
        let running = self.turn.as_ref().map(|running| running.turn.clone());
        let interrupted = self.break_turn(&mut change, &why);
        if running.is_some() {
            change.events.push(("error", json!({ "error": why }).to_string().into()));
        }
        self.enter_or_note(change).await;
        self.tear_down().await;
        self.answer_interrupted(interrupted, Err(why));
    }

    /// A change of state that has already happened, whether or not the database accepts it.
    pub(super) async fn enter_or_note(&mut self, change: Commit) {
        let turn = change.turn.clone();
        let retry = change.clone();
        if let Err(e) = self.enter(change).await {
            // Readers must not hang on a full disk; the row follows when possible.
            tracing::error!(ASH_SESSION = %self.session.id, "cannot write the session's state to the database yet: {e}");
            turn.into_iter().for_each(|turn| self.ledger.publish(turn));
            if let Some((to, error)) = retry.status.clone() {
                self.shared.moved(Some(self.session.status), to, self.live.is_some());
                (self.session.status, self.session.error) = (to, error);
            }
            self.ledger.note(retry);
        }
    }

    /// Closes the running turn in `change`, with the reason.
    pub(super) fn break_turn(&mut self, change: &mut Commit, why: &str) -> Option<Interrupted> {
        let Running { mut turn, interrupted, since, .. } = self.turn.take()?;
        self.break_foreign(&mut turn, why);
        tracing::info!(ASH_EVENT = "turn-end", ASH_SESSION = %self.session.id, ASH_TURN = turn.number,
            ms = since.elapsed().as_millis(), error = why, "the turn was aborted");
        self.turns.broke();
        turn.end = Some(self.read_to().max(turn.start));
        turn.ended_at = Some(now_ms());
        turn.error = Some(interrupted.as_ref().and_then(|i| i.why.clone()).unwrap_or_else(|| why.to_owned()));
        change.stdout_offset = turn.end;
        change.of_turn = Some(turn.number);
        change.turn = Some(turn);
        interrupted
    }

    pub(super) fn answer_interrupted(&self, interrupted: Option<Interrupted>, how: Result<(), String>) {
        for reply in interrupted.into_iter().flat_map(|i| i.replies) {
            let _ = reply.send(match &how {
                Ok(()) => Ok(self.session.clone()),
                Err(why) => Err(SessionError::Failed(why.clone())),
            });
        }
    }

    /// Reads the available output. Bounded in bytes, memory and time, because a hostile payload may
    /// write faster than the database. The rest is read when the session is resumed.
    pub(super) async fn catch_up(&mut self) {
        const BATCHES: usize = 64;
        let until = tokio::time::Instant::now() + CATCH_UP;
        for _ in 0..BATCHES {
            while !self.ledger.has_room() {
                if tokio::time::timeout_at(until, self.ledger.landed()).await.is_err() {
                    return;
                }
            }
            if self.allowances.is_over() || tokio::time::Instant::now() >= until {
                return;
            }
            let drained = match self.live.as_mut().and_then(|live| live.tail.as_mut()) {
                Some(tail) => tail.drain(),
                None => return,
            };
            match drained {
                Ok(Some(batch)) => self.ingest(&batch).await,
                Ok(None) => return,
                Err(e) => {
                    tracing::warn!(ASH_SESSION = %self.session.id, "cannot read the last lines: {e}");
                    return;
                }
            }
        }
    }

    /// The payload damaged its own output.
    pub(super) async fn unreadable(&mut self, error: &TailError) {
        self.fell(error.to_string(), "output").await;
    }

    /// Destroys the sandbox and gives its slot back.
    pub(super) async fn tear_down(&mut self) {
        if let Some(live) = self.live.take() {
            self.session.stdout_offset = live.read_to;
            self.shared.remove_sandbox(self.session.id).await;
            self.shared.went_cold(self.session.status);
        }
    }

    /// Syncs claude's conversation and output in the background. A power cut then costs seconds of
    /// a conversation, not all of it or the half minute that the kernel may keep files in memory.
    pub(super) fn save(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        if live.unsaved_since.take().is_none() {
            return;
        }
        let first = !std::mem::replace(&mut live.saved, true);
        let (dir, id) = (self.dir.clone(), self.session.conversation);
        tokio::task::spawn_blocking(move || {
            let output = File::open(dir.stdout()).and_then(|file| file.sync_data());
            // Without a conversation there is nothing to lose.
            if let Err(e) = output.and_then(|()| transcript::sync(&dir.home(), id, first)) {
                tracing::debug!(conversation = %id, "cannot sync the session's files yet: {e}");
            }
        });
    }

    /// Makes the session cold: ends the process; the session can be resumed.
    pub(super) async fn park(&mut self, reason: &'static str) {
        if self.session.status == SessionStatus::Active {
            let change =
                self.change(SessionStatus::Paused, None, "paused", json!({ "reason": reason, "path": "cold" }));
            if let Err(e) = self.enter(change).await {
                tracing::error!(ASH_SESSION = %self.session.id, "cannot park the session: {e}");
                if let Some(live) = &mut self.live {
                    live.idle_since = Instant::now();
                }
                return;
            }
        } else {
            let mut change = self.ledger.blank();
            change.events.push(("lifecycle", super::lifecycle("parked", json!({ "reason": reason })).into()));
            self.ledger.note(change);
        }
        self.catch_up().await;
        self.tear_down().await;
    }

    pub(super) async fn alarm(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Rest => {}
            Alarm::Save => self.save(),
            Alarm::Freeze => {
                let Some(live) = &mut self.live else { return };
                if live.has_company() {
                    // Processes that the agent left running are activity.
                    live.idle_since = Instant::now();
                } else if let Err(e) = live.freeze().await {
                    tracing::warn!(ASH_SESSION = %self.session.id, "cannot freeze an idle session: {e}");
                    live.idle_since = Instant::now();
                } else {
                    self.save();
                }
            }
            Alarm::Reclaim => {
                let Some(live) = &mut self.live else { return };
                live.reclaimed = true;
                let (shared, id) = (self.shared.clone(), self.session.id);
                tokio::spawn(async move { shared.reclaim(id).await });
            }
            Alarm::Park => match &mut self.live {
                // Background work of a paused session is frozen anyway.
                Some(live) if live.has_guests() || (!live.frozen && live.has_company()) => {
                    live.idle_since = Instant::now();
                }
                _ => self.park("idle").await,
            },
            Alarm::PausedInTurn => {
                let why = format!(
                    "the turn was ended because the session stayed paused for more than {} ms during it \
                     (pause.max_in_turn_ms)",
                    self.shared.config.now().pause.max_in_turn_ms
                );
                self.interrupt(Some(why), None).await;
            }
            Alarm::TurnTooLong => {
                let why = format!(
                    "the turn was ended because it took longer than {} ms (limits.turn_ms)",
                    self.session.limits.turn_ms
                );
                self.turn_too_long(&why);
                self.interrupt(Some(why), None).await;
            }
            Alarm::InterruptIgnored => {
                let secs = timers::INTERRUPT_GRACE.as_secs();
                let before = self.turn.as_ref().and_then(|turn| turn.interrupted.as_ref()?.why.clone());
                let before = before.map(|why| format!("{why}; ")).unwrap_or_default();
                self.fell(
                    format!("{before}claude did not stop within {secs} s of an interrupt and was killed"),
                    "interrupt",
                )
                .await;
            }
        }
    }

    /// A sandbox of this session was found alive: processes in order what happened without ashd.
    pub(super) async fn adopt(&mut self, slot: Slot) {
        match self.attach(slot).await {
            Ok(exited) => {
                if let Some(status) = exited {
                    self.died(Some(status)).await;
                }
            }
            Err(why) => {
                self.shared.remove_sandbox(self.session.id).await;
                self.shared.went_cold(self.session.status);
                self.found_cold(&format!("the restarted ashd could not adopt the sandbox: {why}")).await;
            }
        }
    }

    async fn attach(&mut self, slot: Slot) -> Result<Option<Exit>, String> {
        if let Some(why) = &self.unusable {
            return Err(why.clone());
        }
        let (shared, dir) = (self.shared.clone(), self.dir.clone());
        // Before the registration, so that the running turn does not find its window closed.
        let _window = match self.open_turns_of_before().await? {
            Some(_) => Some(shared.gateway.hold_open(self.session.id)),
            None => None,
        };
        let attached = adopt::attach(&shared, &self.session, &self.options, &dir, self.newest, slot).await?;
        let Attached { mut live, accepted, exited } = attached;
        self.turns = Turns::idle(live.record.reports);
        if let Some(mut open) = self.open_turns_of_before().await? {
            let turn = &open.turn;
            let number = of_turn(turn.number);
            if !turn.unasked && accepted.is_none_or(|accepted| accepted < number) && exited.is_none() {
                let file = message_again(&shared.store, &dir, turn)
                    .await
                    .map_err(|e| format!("the message of turn {}: {e}", turn.number))?;
                live.numbers.turn(turn.number);
                live.sandbox.deliver(live.record.child, number, file.into()).await.map_err(|e| e.to_string())?;
            }
            open.turn.delivered = true;
            self.goes_on(open, live.record.reports);
        }
        if self.session.status == SessionStatus::Paused && exited.is_none() {
            live.freeze().await.map_err(|e| e.to_string())?;
            self.paused_since = Some(Instant::now());
            if self.is_held() {
                // A limit aborted its turn, and claude is still in it.
                let last = shared.store.last_turn(self.session.id).await.map_err(|e| e.to_string())?;
                live.unfinished = last.filter(|turn| turn.error.is_some()).map(|turn| turn.number);
            }
        }
        self.watch(&mut live);
        let found = live.sandbox.info.limits;
        self.live = Some(live);
        self.place();
        self.put_in_force_again(found).await;
        Ok(exited)
    }

    /// The session's processes did not survive. Records their last output, and pauses the session
    /// with the reason.
    pub(super) async fn found_cold(&mut self, why: &str) {
        if let Err(e) = self.take_down(why).await {
            tracing::error!(ASH_SESSION = %self.session.id, "cannot record the session's state: {e}");
        }
    }

    async fn take_down(&mut self, why: &str) -> Result<(), SessionError> {
        if let Some(open) = self.open_turns_of_before().await.map_err(SessionError::Failed)? {
            self.goes_on(open, false);
        }
        // A session that never had a process has no file.
        if let Ok(mut tail) = Tail::open(self.dir.root(), self.session.stdout_offset, &self.shared.hub) {
            loop {
                match tail.drain() {
                    Ok(Some(batch)) => self.ingest(&batch).await,
                    Ok(None) => break,
                    Err(e) => {
                        tracing::warn!(ASH_SESSION = %self.session.id, "cannot read the last lines: {e}");
                        break;
                    }
                }
                // Piece by piece: the database bounds the memory used here.
                self.ledger.commit(self.ledger.blank()).await?;
            }
        }
        let mut change = self.ledger.blank();
        if matches!(self.session.status, SessionStatus::Active | SessionStatus::Starting) {
            let data = json!({ "reason": "restart", "detail": why });
            change = self.change(SessionStatus::Paused, None, "paused", data);
        }
        if self.turn.is_some() {
            change.events.push(("error", json!({ "error": why }).to_string().into()));
        }
        self.break_turn(&mut change, why);
        change.stdout_offset = Some(self.read_to());
        self.enter(change).await
    }
}

/// The message of a turn that another ashd began.
async fn message_again(store: &Store, dir: &SessionDir, turn: &Turn) -> Result<File, String> {
    let message = store.message_of(turn).await.map_err(|e| e.to_string())?.ok_or("it is not in the history")?;
    let line = UserLine::again(message.into(), turn.id)?;
    message_file(dir, line).await.map_err(|e| e.to_string())
}
