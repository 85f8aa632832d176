//! Turns: a message in, lines out.

use std::fs::File;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Driver, Reply, Running};
use crate::model::now_ms;
use crate::sandbox::LauncherError;
use crate::sessions::classify::{Classifier, Kind};
use crate::sessions::claude::{self, ProcessFlags};
use crate::sessions::driver::ledger::sum;
use crate::sessions::lines::Batch;
use crate::sessions::live::{Applied, in_memory};
use crate::sessions::paths::SessionDir;
use crate::sessions::queue::Accept;
use crate::sessions::state::Verb;
use crate::sessions::turns::{Change, error_of};
use crate::sessions::{SendMessage, SessionError};
use crate::store::{OnDisk, Role, Turn};

/// A message whose turn is in the database, on its way to claude.
#[derive(Debug)]
pub struct Outgoing {
    number: i64,
    /// At its beginning.
    file: File,
    options: TurnOptions,
}

/// What a message asks for beside its content, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnOptions {
    /// Set by requests to the running process.
    pub applied: Applied,
    /// Set by flags of a new process.
    pub flags: ProcessFlags,
}

/// Checks a message; the error names the field.
pub fn check(body: &SendMessage, session_model: Option<&str>) -> Result<TurnOptions, String> {
    match &body.content {
        Value::String(text) if text.is_empty() => return Err("content must not be empty".to_owned()),
        Value::Array(blocks) if blocks.is_empty() => return Err("content must not be empty".to_owned()),
        Value::String(_) => {}
        Value::Array(blocks) => {
            if let Some(at) = blocks.iter().position(|block| !block.get("type").is_some_and(Value::is_string)) {
                return Err(format!("content[{at}] must be an object with a \"type\""));
            }
        }
        _ => return Err("content must be a string or an array of content blocks".to_owned()),
    }
    if body.max_turns == Some(0) {
        return Err("maxTurns must be at least 1".to_owned());
    }
    if body.max_budget_usd.is_some_and(|budget| !budget.is_finite() || budget <= 0.0) {
        return Err("maxBudgetUsd must be a positive number".to_owned());
    }
    let given = |value: &Option<Value>| value.clone().filter(|v| !v.is_null());
    let thinking = given(&body.thinking).map(|thinking| claude::thinking_tokens(&thinking)).transpose()?.flatten();
    let json_schema = given(&body.output_format).map(|format| claude::output_schema(&format)).transpose()?;
    let effort = given(&body.effort);
    if effort.as_ref().is_some_and(|effort| !effort.is_string() && !effort.is_number()) {
        return Err("effort must be a string (low, medium, high, ...)".to_owned());
    }
    let model = body.model.clone().or_else(|| session_model.map(str::to_owned));
    Ok(TurnOptions {
        applied: Applied { model, effort, thinking },
        flags: ProcessFlags { max_turns: body.max_turns, max_budget_usd: body.max_budget_usd, json_schema },
    })
}

/// Between the first sign of a process's end and its status.
const ENDING: Duration = Duration::from_secs(1);

/// Bytes of lines without a message after which the offset is written all the same.
const UNWRITTEN: u64 = 1 << 20;

impl Driver {
    /// A message: first it survives the end of ashd, then it is on its way. The client is told when the disk has it, which
    /// takes less time than claude's first word.
    pub(super) async fn send(&mut self, body: SendMessage, reply: Reply<Turn>) {
        // Lines that came a moment ago may be a turn that nobody asked for.
        self.catch_up().await;
        if let Accept::Refuse(refusal) = self.accept(Verb::Send) {
            return drop(reply.send(Err(refusal)));
        }
        match self.open_turn(body).await {
            Err(e) => drop(reply.send(Err(e))),
            Ok((outgoing, on_disk)) => {
                let turn = self.turn.as_ref().expect("open_turn has just set it").turn.clone();
                tokio::spawn(async move {
                    let told = on_disk.wait_once().await.map(|()| turn).map_err(SessionError::from);
                    // Whoever asked may have gone; the turn goes on.
                    let _ = reply.send(told);
                });
                self.route(outgoing).await;
            }
        }
    }

    async fn open_turn(&mut self, body: SendMessage) -> Result<(Outgoing, OnDisk), SessionError> {
        let options = check(&body, self.session.model.as_deref()).map_err(SessionError::Invalid)?;
        let Some(live) = &self.live else {
            return Err(SessionError::Failed("the session is active without a process; resume it".to_owned()));
        };
        let number = self.newest + 1;
        let turn = Turn {
            session: self.session.id,
            number,
            start: live.read_to,
            end: None,
            error: None,
            delivered: false,
            unasked: false,
            started_at: now_ms(),
            ended_at: None,
        };
        let uuid = Uuid::new_v4();
        let file = message_file(&self.dir, claude::user_line(&body.content, uuid)).await?;

        let mut change = self.ledger.blank();
        change.turn = Some(turn.clone());
        change.messages.push((Role::User, json!({ "type": "user", "content": body.content }).to_string()));
        change.touch = true;
        let on_disk = self.ledger.commit_early(change).await?;
        tracing::info!(ASH_EVENT = "turn-begin", ASH_SESSION = %self.session.id, ASH_TURN = number, "a turn begins");
        self.newest = number;
        self.session.last_active_at = now_ms();
        self.turns.asked(uuid);
        self.turn = Some(Running { turn, since: Instant::now(), interrupted: None });
        self.place();
        Ok((Outgoing { number, file, options }, on_disk))
    }

    /// To the process that runs, or to a new one when the options need it.
    async fn route(&mut self, outgoing: Outgoing) {
        let Some(live) = self
            .live
            .take_if(|live| live.stale || live.record.flags != outgoing.options.flags || needs_fresh(&outgoing))
        else {
            return self.dispatch(outgoing).await;
        };
        let flags = outgoing.options.flags.clone();
        self.turns = crate::sessions::turns::Turns::adopted(false);
        self.start_again(live, flags, outgoing);
    }

    /// Hands the message to claude's stdin.
    pub(super) async fn dispatch(&mut self, outgoing: Outgoing) {
        if let Err(e) = self.hand_over(outgoing).await {
            // Mostly because it is ending just now, and then its end is the better reason.
            let ended = match &mut self.live {
                Some(live) => tokio::time::timeout(ENDING, live.ended()).await.ok(),
                None => None,
            };
            match ended {
                Some(status) => self.died(status).await,
                None => self.fell(format!("the message could not be given to claude: {e}"), "deliver").await,
            }
        }
    }

    async fn hand_over(&mut self, outgoing: Outgoing) -> Result<(), LauncherError> {
        let Some(live) = &mut self.live else { return Ok(()) };
        live.thaw().await?;
        let wanted = &outgoing.options.applied;
        let id = |what: &str| format!("{what}-{}", outgoing.number);
        if live.applied.model != wanted.model {
            live.deliver_line(&claude::set_model_line(&id("model"), wanted.model.as_deref())).await?;
        }
        if live.applied.effort != wanted.effort {
            let effort = wanted.effort.clone().unwrap_or(Value::Null);
            live.deliver_line(&claude::set_effort_line(&id("effort"), &effort)).await?;
        }
        if live.applied.thinking != wanted.thinking {
            live.deliver_line(&claude::set_thinking_line(&id("thinking"), wanted.thinking)).await?;
        }
        live.applied = wanted.clone();
        let message = live.numbers.turn(outgoing.number);
        live.sandbox.deliver(live.record.child, message, outgoing.file.into()).await?;
        if let Some(running) = &mut self.turn {
            running.turn.delivered = true;
        }
        Ok(())
    }

    /// Lines that claude printed: readers may see them at once, the database follows.
    pub(super) async fn ingest(&mut self, batch: &Batch) {
        let mut note = self.ledger.blank();
        let mut answers = Vec::new();
        let in_turn = self.turn.is_some();
        // For what a process left that is gone.
        let mut spare = Classifier::default();
        for (offset, line) in batch.lines() {
            let end = offset + line.len() as u64 + 1;
            let classified = match &mut self.live {
                Some(live) => {
                    live.read_to = end;
                    live.classifier.classify(line)
                }
                None => {
                    self.session.stdout_offset = end;
                    spare.classify(line)
                }
            };
            if let Some(message) = classified.messages {
                note.messages.push(message);
            }
            note.events.extend(classified.events);
            if let Some(usage) = classified.usage {
                note.usage = Some(note.usage.as_ref().map_or(usage.clone(), |before| sum(before, &usage)));
            }
            match &classified.kind {
                Kind::ControlRequest { request_id, raw, .. } => {
                    answers.push(claude::answer_permission(self.options.permission_mode, request_id, raw));
                }
                Kind::ControlResponse { request_id, ok: false, error } => {
                    tracing::warn!(ASH_SESSION = %self.session.id, request = %request_id,
                        "claude refused a request: {}", error.as_deref().unwrap_or("no reason given"));
                }
                _ => {}
            }
            match self.turns.line(&classified.kind) {
                None => {}
                Some(Change::Began) => {
                    self.newest += 1;
                    let turn = Turn {
                        session: self.session.id,
                        number: self.newest,
                        start: offset,
                        end: None,
                        error: None,
                        delivered: true,
                        unasked: true,
                        started_at: now_ms(),
                        ended_at: None,
                    };
                    // What came before belongs to no turn; a commit holds one turn.
                    self.ledger.note(std::mem::replace(&mut note, self.ledger.blank()));
                    note.turn = Some(turn.clone());
                    self.turn = Some(Running { turn, since: Instant::now(), interrupted: None });
                    self.place();
                }
                Some(Change::Ended(result)) => {
                    if let Some(mut running) = self.turn.take() {
                        let interrupted = running.interrupted.take();
                        running.turn.end = Some(end);
                        running.turn.ended_at = Some(now_ms());
                        running.turn.error = match &interrupted {
                            Some(interrupted) => interrupted.why.clone(),
                            None => error_of(&result, false),
                        };
                        tracing::info!(ASH_EVENT = "turn-end", ASH_SESSION = %self.session.id,
                            ASH_TURN = running.turn.number, ms = running.since.elapsed().as_millis(),
                            error = running.turn.error, "the turn is over");
                        note.turn = Some(running.turn);
                        note.touch = true;
                        note.stdout_offset = Some(end);
                        self.ledger.note(std::mem::replace(&mut note, self.ledger.blank()));
                        if let Some(limit) = result.spent() {
                            self.spent(limit, &result);
                        }
                        self.turn_over(interrupted).await;
                    }
                }
            }
        }
        // What it says as it starts is no conversation.
        if let Some(live) = self.live.as_mut().filter(|_| in_turn || self.turn.is_some()) {
            live.unsaved_since.get_or_insert_with(Instant::now);
        }
        self.ledger.saw(batch.end());
        self.ledger.trim(&self.dir.stdout());
        // Deltas alone are not worth a transaction: after a restart they are just read again.
        let behind = batch.end().saturating_sub(self.session.stdout_offset);
        let worth = !note.messages.is_empty() || !note.events.is_empty() || note.usage.is_some() || note.turn.is_some();
        if worth || behind > UNWRITTEN {
            note.stdout_offset = Some(batch.end());
            self.session.stdout_offset = batch.end();
            self.ledger.note(note);
        }
        if let Some(live) = &mut self.live {
            for line in answers {
                if let Err(e) = live.deliver_line(&line).await {
                    tracing::warn!(ASH_SESSION = %self.session.id, "claude's question could not be answered: {e}");
                }
            }
        }
    }

    /// The turn is over: its interrupters are answered, a pause that was lifted for it is back in force.
    async fn turn_over(&mut self, interrupted: Option<super::Interrupted>) {
        if let Some(live) = &mut self.live {
            live.idle_since = Instant::now();
            if self.session.status == crate::model::SessionStatus::Paused
                && let Err(e) = live.freeze().await
            {
                tracing::error!(ASH_SESSION = %self.session.id, "a paused session could not be frozen again: {e}");
            }
        }
        self.place();
        for reply in interrupted.into_iter().flat_map(|i| i.replies) {
            let _ = reply.send(Ok(self.session.clone()));
        }
    }
}

/// A budget counts from the start of the process, so each message with one gets its own.
fn needs_fresh(outgoing: &Outgoing) -> bool {
    outgoing.options.flags.max_budget_usd.is_some()
}

/// The message as a file without a name, for init to read. An ashd that starts again makes it anew from the database.
pub(super) async fn message_file(dir: &SessionDir, line: Vec<u8>) -> Result<File, SessionError> {
    /// Bytes of a message that is kept in memory until claude has read it. A larger one is on the disk: a claude that never
    /// reads must not hold memory of ours.
    const IN_MEMORY: usize = 64 * 1024;
    let file = if line.len() <= IN_MEMORY {
        in_memory(&line)
    } else {
        let dir = dir.clone();
        let written = tokio::task::spawn_blocking(move || dir.unnamed(&line)).await;
        written.unwrap_or_else(|e| Err(std::io::Error::other(e)))
    };
    file.map_err(|e| match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            SessionError::Full("the disk that holds the sessions is full; the message was not accepted".to_owned())
        }
        _ => SessionError::Failed(format!("the message could not be written: {e}")),
    })
}
