//! The start of the daemon: sessions whose sandboxes outlived the last one go on, the others are told what happened.
//!
//! Three witnesses, none trusted alone: the rows (what should be), the launcher (what lives), and each sandbox's init
//! (what its claude has received and whether it still runs).
//!
//! | row | sandbox | becomes |
//! |---|---|---|
//! | active, paused | alive | taken over; a running turn goes on |
//! | starting | any | destroyed; paused, reason restart (nobody was told that it exists) |
//! | active | gone | paused, reason restart; an open turn ends with an error |
//! | paused | gone | the same, and resumes cold |
//! | stopped, ended, error, none | alive | destroyed |

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use serde_json::json;

use crate::launcher::init_protocol::Exit;
use crate::model::{SessionStatus, now_ms};
use crate::pool::Slot;
use crate::sessions::SessionError;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::driver::{Request, lifecycle};
use crate::sessions::launch::launcher_error;
use crate::sessions::lines::Tail;
use crate::sessions::live::{Applied, Live};
use crate::sessions::paths::SessionDir;
use crate::sessions::process::{FIRST_EXEC_CHILD, MessageNumbers, ProcessRecord};
use crate::sessions::shared::Shared;
use crate::store::{Commit, Session, Turn};

/// Sessions that are looked at in parallel.
const AT_ONCE: usize = 32;

/// Puts rows and sandboxes in agreement. Sessions that go on are handed to their tasks, which finish the work.
pub async fn adopt(shared: &Arc<Shared>) -> Result<(), SessionError> {
    let alive = shared.launcher.list().await.map_err(|e| launcher_error(&e))?;
    let alive: HashSet<_> = alive.into_iter().map(|info| info.id).collect();
    let claimed = [SessionStatus::Starting, SessionStatus::Active, SessionStatus::Paused];
    let rows = shared.store.sessions_in(&claimed).await?;
    let cold = shared.store.sessions_in(&[SessionStatus::Stopped, SessionStatus::Error]).await?.len();
    shared.pool.cold_changed(i64::try_from(cold).unwrap_or(i64::MAX));

    let goes_on = |row: &Session| alive.contains(&row.id) && row.status != SessionStatus::Starting;
    let kept: HashSet<_> = rows.iter().filter(|row| goes_on(row)).map(|row| row.id).collect();
    let orphans: Vec<_> = alive.difference(&kept).copied().collect();
    for id in &orphans {
        tracing::warn!(ASH_SESSION = %id, ASH_EVENT = "orphan", "a sandbox that no session claims is destroyed");
    }
    futures_util::stream::iter(orphans).for_each_concurrent(AT_ONCE, |id| shared.remove_sandbox(id)).await;

    let total = rows.len();
    futures_util::stream::iter(rows)
        .for_each_concurrent(AT_ONCE, |row| async {
            if goes_on(&row) {
                shared.moved(None, row.status, true);
                let slot = shared.pool.adopt(row.id);
                let handle = shared.handle(row.tenant, row.id);
                let _ = handle.requests.send(Request::Adopt { slot }).await;
            } else {
                shared.moved(None, SessionStatus::Paused, false);
                let last = shared.store.last_turn(row.id).await;
                let closed = match last.map(|last| closing(&row, last, "ashd was restarted and the sandbox was gone")) {
                    Ok(Some(change)) => shared.store.commit(change).await.map(drop),
                    Ok(None) => Ok(()),
                    Err(e) => Err(e),
                };
                if let Err(e) = closed {
                    tracing::error!(ASH_SESSION = %row.id, "its state could not be recorded: {e}");
                }
            }
        })
        .await;
    tracing::info!(ASH_EVENT = "adopted", alive = kept.len(), sessions = total, "sessions found at the start");
    Ok(())
}

/// What is written of a session whose processes are gone; `None` when the row says so already.
pub fn closing(session: &Session, last: Option<Turn>, why: &str) -> Option<Commit> {
    let mut change = Commit::of(session);
    if matches!(session.status, SessionStatus::Active | SessionStatus::Starting) {
        change.status = Some((SessionStatus::Paused, None));
        change.events.push(("lifecycle", lifecycle("paused", json!({ "reason": "restart", "detail": why }))));
    }
    if let Some(mut turn) = last.filter(|turn| turn.end.is_none()) {
        turn.end = Some(session.stdout_offset.max(turn.start));
        turn.ended_at = Some(now_ms());
        turn.error = Some(why.to_owned());
        change.events.push(("error", json!({ "error": why }).to_string()));
        change.turn = Some(turn);
    }
    (change.status.is_some() || change.turn.is_some()).then_some(change)
}

/// A sandbox that is taken over.
#[derive(Debug)]
pub struct Attached {
    pub live: Live,
    /// Number of the newest message that init has for claude.
    pub accepted: Option<u64>,
    /// How claude ended while no ashd looked; `None` while it runs.
    pub exited: Option<Exit>,
}

/// A handle of the session's sandbox with claude's output followed from where the database ends.
pub async fn attach(
    shared: &Shared,
    session: &Session,
    options: &LaunchOptions,
    dir: &SessionDir,
    newest: i64,
    slot: Slot,
) -> Result<Attached, String> {
    let sandbox = shared.launcher.attach(session.id).await.map_err(|e| e.to_string())?;
    // Frozen, it could not answer: its init stands still too.
    sandbox.thaw().await.map_err(|e| e.to_string())?;
    let events = sandbox.take_events().ok_or("its events are taken")?;
    let record = ProcessRecord::read(dir).map_err(|e| format!("process.json: {e}"))?.ok_or("it never had a process")?;
    let children = sandbox.stat().await.map_err(|e| e.to_string())?;
    let newest_claude = children.iter().filter(|c| c.child < FIRST_EXEC_CHILD).max_by_key(|c| c.child);
    let claude = newest_claude.filter(|c| c.child == record.child).ok_or("its claude was never started")?;
    let accepted = claude.accepted;
    // Nothing was written to it: it was killed off between two steps of a start.
    if accepted.is_none() && claude.exited.is_none() {
        return Err("its claude was not ready yet".to_owned());
    }
    let exited = claude.exited;
    let listener = shared.open_gateway(session, &sandbox, &record.token, options).await.map_err(|e| e.to_string())?;
    let tail = Tail::open(dir.root(), session.stdout_offset, &shared.hub).map_err(|e| e.to_string())?;
    let mut live = Live::new(sandbox, events, slot, listener, record);
    live.tail = Some(tail);
    live.read_to = session.stdout_offset;
    // The turn's own number must stay free for a message that init may lack.
    live.numbers = MessageNumbers::after(newest, accepted);
    live.applied = Applied::unknown();
    Ok(Attached { live, accepted, exited })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Limits, TenantId};

    #[test]
    fn only_what_is_open_is_closed() {
        let session = |status| Session {
            id: uuid::Uuid::nil(),
            tenant: TenantId::default_tenant(),
            agent_name: "a".into(),
            status,
            error: None,
            model: None,
            config: None,
            launch: json!({}),
            limits: Limits::default(),
            parent: None,
            stdout_offset: 100,
            created_at: 0,
            last_active_at: 0,
        };
        let turn = |end| Turn {
            session: uuid::Uuid::nil(),
            number: 3,
            start: 40,
            end,
            error: None,
            delivered: false,
            unasked: false,
            started_at: 0,
            ended_at: None,
        };
        use SessionStatus::{Active, Paused, Starting};
        assert!(closing(&session(Paused), Some(turn(Some(90))), "gone").is_none());
        assert!(closing(&session(Paused), None, "gone").is_none());
        for status in [Active, Starting] {
            let change = closing(&session(status), Some(turn(None)), "gone").unwrap();
            assert_eq!(change.status, Some((Paused, None)));
            let turn = change.turn.unwrap();
            assert_eq!((turn.end, turn.error.as_deref()), (Some(100), Some("gone")));
            assert_eq!(change.events[0].0, "lifecycle");
            assert!(change.events[0].1.contains("restart"));
        }
        let change = closing(&session(Paused), Some(turn(None)), "gone").unwrap();
        assert_eq!((change.status, change.events.len()), (None, 1));
    }
}
