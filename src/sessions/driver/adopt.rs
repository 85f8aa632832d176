//! Daemon start: sessions whose sandboxes survived continue; the others record what happened.
//!
//! Three sources, none trusted alone: the rows (what should be), the launcher (what lives), and
//! each sandbox's init (what its claude has received, and whether it still runs).
//!
//! | row | sandbox | becomes |
//! |---|---|---|
//! | active, paused | alive | adopted; a running turn continues |
//! | starting | any | destroyed; paused, reason restart (no client knows of it) |
//! | active | gone | paused, reason restart; an open turn ends with an error |
//! | paused | gone | the same, and resumes cold |
//! | stopped, ended, error, none | alive | destroyed |

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;
use uuid::Uuid;

use crate::pool::Slot;
use crate::sessions::SessionError;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::claude::background::Background;
use crate::sessions::claude::process_record::{FIRST_EXEC_CHILD, MessageNumbers, ProcessRecord};
use crate::sessions::context::Shared;
use crate::sessions::driver::Request;
use crate::sessions::launch::launcher_error;
use crate::sessions::launch::running::{Applied, Live};
use crate::sessions::stream::tail::Tail;
use crate::sessions::workspace::layout::SessionDir;
use crate::store::Session;
use ash_model::SessionStatus;
use ash_protocol::init::{Exit, Listener};

/// Sessions examined in parallel.
const AT_ONCE: usize = 32;

/// Reconciles rows and sandboxes. Adopted sessions are handed to their tasks, which finish the
/// work. The others are only counted, because there may be very many.
pub async fn adopt(shared: &Arc<Shared>) -> Result<(), SessionError> {
    let alive = shared.launcher.list().await.map_err(|e| launcher_error(&e))?;
    let alive: HashSet<_> = alive.into_iter().map(|info| info.id).collect();
    let counts = shared.store.session_statuses().await?;
    let mut unsettled = shared.store.sessions_unsettled().await?;
    let seen: HashSet<_> = unsettled.iter().map(|(id, _, _)| *id).collect();
    let mut orphans = Vec::new();
    for id in &alive {
        let row = match seen.contains(id) {
            true => continue,
            false => shared.store.session_of_any_tenant(*id).await?,
        };
        match row {
            Some(row) if row.status == SessionStatus::Paused => unsettled.push((row.id, row.tenant, row.status)),
            _ => orphans.push(*id),
        }
    }
    let starting = unsettled.iter().filter(|(_, _, status)| *status == SessionStatus::Starting).map(|(id, _, _)| *id);
    orphans.extend(starting.filter(|id| alive.contains(id)));
    for id in &orphans {
        tracing::warn!(ASH_SESSION = %id, ASH_EVENT = "orphan", "destroying a sandbox without a session");
    }
    let orphaned: HashSet<_> = orphans.iter().copied().collect();
    futures_util::stream::iter(orphans).for_each_concurrent(AT_ONCE, |id| shared.remove_sandbox(id)).await;

    let total: u64 = counts.iter().map(|(_, n)| n).sum();
    shared.found(&counts);
    let goes_on = |id: &Uuid| alive.contains(id) && !orphaned.contains(id);
    let kept = unsettled.iter().filter(|(id, _, _)| goes_on(id)).count();
    futures_util::stream::iter(unsettled)
        .for_each_concurrent(AT_ONCE, |(id, tenant, status)| async move {
            if goes_on(&id) {
                shared.went_live(status);
                let slot = shared.pool.adopt(&tenant, id);
                let handle = shared.handle(tenant, id);
                let _ = handle.requests.send(Request::Adopt { slot }).await;
            } else {
                let handle = shared.handle(tenant, id);
                let _ = handle.requests.send(Request::FoundCold).await;
            }
        })
        .await;
    tracing::info!(ASH_EVENT = "adopted", alive = kept, sessions = total, "sessions found at the start");
    Ok(())
}

/// An adopted sandbox.
#[derive(Debug)]
pub struct Attached {
    pub live: Live,
    /// Number of the newest message that init has for claude.
    pub accepted: Option<u64>,
    /// How claude ended while no ashd ran; `None` while it runs.
    pub exited: Option<Exit>,
}

/// A handle of the session's sandbox, following claude's output from where the database ends.
pub async fn attach(
    shared: &Shared,
    session: &Session,
    options: &LaunchOptions,
    dir: &SessionDir,
    newest: i64,
    slot: Slot,
) -> Result<Attached, String> {
    let sandbox = shared.launcher.attach(session.id).await.map_err(|e| e.to_string())?;
    // A frozen init cannot answer.
    sandbox.thaw().await.map_err(|e| e.to_string())?;
    let events = sandbox.take_events().ok_or("its events are taken")?;
    let record = ProcessRecord::read(dir).map_err(|e| format!("process.json: {e}"))?.ok_or("it never had a process")?;
    let children = sandbox.stat().await.map_err(|e| e.to_string())?;
    let newest_claude = children.iter().filter(|c| c.child < FIRST_EXEC_CHILD).max_by_key(|c| c.child);
    let claude = newest_claude.filter(|c| c.child == record.child).ok_or("its claude was never started")?;
    let accepted = claude.accepted;
    // No message was written to it: ashd was killed between two steps of a start.
    if accepted.is_none() && claude.exited.is_none() {
        return Err("its claude was not ready yet".to_owned());
    }
    let exited = claude.exited;
    // Before the registration, so that running work does not find its window closed.
    let mut background = Background::default();
    let longest = std::time::Duration::from_millis(session.limits.turn_ms);
    background.set(record.background, longest, || shared.gateway.hold_open(session.id));
    let listener = sandbox.listener(Listener::Model).await.map_err(|e| e.to_string())?;
    if let Err(e) = shared.register(session, &listener, &record.token, options).await {
        // Not fatal: when the gateway is back, every session is registered again.
        tracing::warn!(ASH_SESSION = %session.id, "cannot register the session at the gateway yet: {e}");
    }
    let tail = Tail::open(dir.root(), session.stdout_offset, &shared.hub).map_err(|e| e.to_string())?;
    let mut live = Live::new(sandbox, events, slot, listener, record);
    live.tail = Some(tail);
    live.read_to = session.stdout_offset;
    live.background = background;
    // The turn's own number must stay free for a message that init may lack.
    live.numbers = MessageNumbers::after(newest, accepted);
    live.applied = Applied::unknown();
    Ok(Attached { live, accepted, exited })
}
