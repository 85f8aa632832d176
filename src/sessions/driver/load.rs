//! Start of a session's task: reads the session from the database.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::Driver;
use super::flood::Allowances;
use super::journal::Ledger;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::claude::turn_tracker::Turns;
use crate::sessions::context::Shared;
use crate::sessions::driver::registry::Ends;
use crate::sessions::quota::history_cap::HistoryCap;
use crate::sessions::stream::trim;
use crate::sessions::workspace::layout::SessionDir;
use crate::store::{Session, Turn};
use ash_model::SessionStatus;

impl Driver {
    pub(super) async fn load(shared: &Arc<Shared>, id: Uuid, ends: Ends) -> Result<Self, (String, Ends)> {
        let read = async {
            let session = shared.store.session_of_any_tenant(id).await.map_err(|e| e.to_string())?;
            let session = session.ok_or("its row is missing")?;
            let options = serde_json::from_str(session.launch.get()).map_err(|e| e.to_string());
            let last = shared.store.last_turn(id).await.map_err(|e| e.to_string())?;
            let open = shared.store.open_turns(id).await.map_err(|e| e.to_string())?;
            // A level above may have changed in between.
            let levels = shared.levels(&session).await.map_err(|e| e.to_string())?;
            Ok((Session { limits: levels.effective(), ..session }, options, last, open))
        };
        type Read = (Session, Result<LaunchOptions, String>, Option<Turn>, Vec<Turn>);
        let (session, options, last, open): Read = match read.await {
            Ok(read) => read,
            Err(why) => return Err((why, ends)),
        };
        let (options, unusable) = match options {
            Ok(options) => (options, None),
            Err(why) => (
                LaunchOptions::default(),
                Some(format!("the stored launch options of this session cannot be read: {why}. Create a new session.")),
            ),
        };
        let mut ledger = Ledger::new(shared.store.clone(), &session, ends.published);
        let foreign = open.get(1).map(|turn| turn.start);
        ledger.saw(foreign.map_or(session.stdout_offset, |start| start.min(session.stdout_offset)));
        // A session that never had a process has no file.
        ledger.floor(trim::found_floor(&SessionDir::new(&shared.config.now().data_dir, id).stdout()).unwrap_or(0));
        let newest = last.as_ref().map_or(0, |turn| turn.number);
        // The oldest running turn comes first; those behind it are read when it is over.
        if let Some(turn) = open.into_iter().next().or_else(|| last.clone()) {
            ledger.publish(turn);
        }
        last.into_iter().for_each(|turn| ledger.publish(turn));
        if session.status == SessionStatus::Ended {
            ledger.close(Some("the session has ended".to_owned()));
        }
        ledger.loaded();
        tracing::Span::current().record("ASH_AGENT", session.agent_name.as_str());
        Ok(Self {
            dir: SessionDir::new(&shared.config.now().data_dir, id),
            shared: Arc::clone(shared),
            session,
            options,
            unusable,
            requests: ends.requests,
            pulse: ends.pulse,
            ledger,
            live: None,
            start: None,
            waiting: Vec::new(),
            turns: Turns::idle(false),
            turn: None,
            foreign: None,
            cap: HistoryCap::default(),
            newest,
            paused_since: None,
            last_asked: Instant::now(),
            allowances: Allowances::default(),
            retired: false,
        })
    }
}
