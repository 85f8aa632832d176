//! Turns: a message in, lines out.

use std::fs::File;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::{Driver, Reply, Running};
use crate::sandbox::LauncherError;
use crate::sessions::SessionError;
use crate::sessions::api::new_message::{NewMessage, TurnOptions};
use crate::sessions::claude;
use crate::sessions::claude::message::{UserLine, stored};
use crate::sessions::claude::turn_tracker::Turns;
use crate::sessions::launch::running::{IN_MEMORY, in_memory};
use crate::sessions::policy::acceptance::Accept;
use crate::sessions::policy::transitions::Verb;
use crate::sessions::workspace::layout::SessionDir;
use crate::store::{OnDisk, Role, Text, Turn};
use ash_model::now_ms;

/// A message whose turn is in the database, on its way to claude.
#[derive(Debug)]
pub struct Outgoing {
    number: i64,
    /// Positioned at its beginning.
    file: File,
    options: TurnOptions,
}

/// Between the first sign of a process's end and its status.
const ENDING: Duration = Duration::from_secs(1);

impl Driver {
    /// Sends a message. It first survives the end of ashd, then goes to claude. The client gets its
    /// answer when the disk has it, which takes less time than claude's first output.
    pub(super) async fn send(&mut self, id: Uuid, message: NewMessage, reply: Reply<Turn>) {
        // Lines that just came may be an unasked turn.
        self.catch_up().await;
        if let Accept::Refuse(refusal) = self.accept(Verb::Send) {
            return drop(reply.send(Err(refusal)));
        }
        match self.open_turn(id, message).await {
            Err(e) => drop(reply.send(Err(e))),
            Ok((outgoing, on_disk)) => {
                let turn = self.turn.as_ref().expect("open_turn has just set it").turn.clone();
                tokio::spawn(async move {
                    let told = on_disk.wait_once().await.map(|()| turn).map_err(SessionError::from);
                    // The client may have gone; the turn continues.
                    let _ = reply.send(told);
                });
                self.route(outgoing).await;
            }
        }
    }

    async fn open_turn(&mut self, id: Uuid, message: NewMessage) -> Result<(Outgoing, OnDisk), SessionError> {
        let options = message.options(self.session.model.as_deref());
        let Some(live) = &self.live else {
            return Err(SessionError::Failed("the session is active without a process; resume it".to_owned()));
        };
        let number = self.newest + 1;
        let turn = Turn {
            session: self.session.id,
            id,
            number,
            start: live.read_to,
            end: None,
            error: None,
            delivered: false,
            unasked: false,
            partial: message.partial,
            started_at: now_ms(),
            ended_at: None,
        };
        // From here on there is one copy of it.
        let text = stored(&message.content);
        drop(message);
        let file = message_file(&self.dir, UserLine::of(Text::clone(&text), id)).await?;

        let mut change = self.ledger.blank();
        change.turn = Some(turn.clone());
        change.of_turn = Some(number);
        change.messages.push((Role::User, text));
        change.touch = true;
        let on_disk = self.ledger.commit_early(change).await?;
        tracing::info!(ASH_EVENT = "turn-begin", ASH_SESSION = %self.session.id, ASH_TURN = number, "a turn begins");
        self.newest = number;
        self.session.last_active_at = now_ms();
        self.turns.asked(id);
        self.cap.reset();
        self.turn = Some(self.running(turn));
        let (shared, id) = (&self.shared, self.session.id);
        if let Some(live) = &mut self.live {
            live.background.turn(super::ingest::longest(&self.session), || shared.gateway.hold_open(id));
        }
        self.place();
        Ok((Outgoing { number, file, options }, on_disk))
    }

    /// A turn that runs from now on. The gateway opens its window while the message is on its way.
    pub(super) fn running(&self, turn: Turn) -> Running {
        let window = self.shared.gateway.hold_open(self.session.id);
        Running { turn, since: Instant::now(), interrupted: None, _window: window }
    }

    /// Routes to the running process, or to a new one when the options need it.
    async fn route(&mut self, outgoing: Outgoing) {
        let Some(live) = self
            .live
            .take_if(|live| live.stale || live.record.flags != outgoing.options.flags || needs_fresh(&outgoing))
        else {
            return self.dispatch(outgoing).await;
        };
        let flags = outgoing.options.flags.clone();
        if let Some(running) = &self.turn {
            self.turns = Turns::adopted(running.turn.id, false, false);
        }
        self.start_again(live, flags, outgoing);
    }

    /// Writes the message to claude's stdin.
    pub(super) async fn dispatch(&mut self, outgoing: Outgoing) {
        if let Err(e) = self.hand_over(outgoing).await {
            // Usually claude is ending, and its exit status is the better reason.
            let ended = match &mut self.live {
                Some(live) => tokio::time::timeout(ENDING, live.ended()).await.ok(),
                None => None,
            };
            match ended {
                Some(status) => self.died(status).await,
                None => self.fell(format!("cannot deliver the message to claude: {e}"), "deliver").await,
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
}

/// A budget counts from the start of the process, so each message with one gets its own.
fn needs_fresh(outgoing: &Outgoing) -> bool {
    outgoing.options.flags.max_budget_usd.is_some()
}

/// The message as an unnamed file for init. A restarted ashd creates it again from the database.
pub(super) async fn message_file(dir: &SessionDir, line: UserLine) -> Result<File, SessionError> {
    let file = if line.len() <= IN_MEMORY {
        let mut bytes = Vec::new();
        line.write(&mut bytes).and_then(|()| in_memory(&bytes))
    } else {
        let dir = dir.clone();
        let written = tokio::task::spawn_blocking(move || dir.unnamed(|file| line.write(file))).await;
        written.unwrap_or_else(|e| Err(std::io::Error::other(e)))
    };
    file.map_err(|e| match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            SessionError::Full("the disk of the sessions is full; the message was not accepted".to_owned())
        }
        _ => SessionError::Failed(format!("cannot write the message: {e}")),
    })
}
