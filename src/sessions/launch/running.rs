//! A session's running sandbox and its claude, as the session's task holds them.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::MemfdFlags;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::pool::Slot;
use crate::sandbox::{LauncherError, Sandbox, SandboxEvent};
use crate::sessions::claude::background::Background;
use crate::sessions::claude::classify::Classifier;
use crate::sessions::claude::process_record::{MessageNumbers, ProcessRecord};
use crate::sessions::monitor::exit_cause::{Oom, OomCount};
use crate::sessions::monitor::resource_monitor::Watch;
use crate::sessions::stream::tail::Tail;
use ash_model::SandboxState;
use ash_protocol::init::Exit;

/// Bytes of a line that is kept in memory until claude has read it. A larger one goes to the disk:
/// a claude that never reads must not hold memory of ashd.
pub const IN_MEMORY: usize = 64 * 1024;
/// Maximum answers that wait for a thaw.
const UNANSWERED: usize = 64;

/// Dropping it gives the pool's slot back but keeps the sandbox: call `Shared::remove_sandbox`
/// first.
#[derive(Debug)]
pub struct Live {
    pub sandbox: Sandbox,
    pub events: mpsc::UnboundedReceiver<SandboxEvent>,
    slot: Slot,
    /// The gateway's listener. Kept, because a frozen init cannot return it again.
    pub listener: OwnedFd,
    pub record: ProcessRecord,
    pub numbers: MessageNumbers,
    pub applied: Applied,
    pub classifier: Classifier,
    /// `None` only while a process is being started.
    pub tail: Option<Tail>,
    /// Bytes of stdout that were processed.
    pub read_to: u64,
    /// Out-of-memory kills already reported.
    pub oom: OomCount,
    /// The newest reported kill while claude still seemed to run. The victim may be claude, whose
    /// memory takes a while to be released.
    pub told_oom: Option<(Instant, Oom)>,
    /// Where the newest process's part of stderr begins.
    pub stderr_from: u64,
    pub frozen: bool,
    /// How the agent's `startup.sh` failed, until it is in the timeline.
    pub startup_failed: Option<String>,
    /// The sandbox existed before the session.
    pub parked: bool,
    /// Its memory was reclaimed since it was frozen.
    pub reclaimed: bool,
    /// When claude printed the first line since its files were synced; `None`: all is on the disk.
    pub unsaved_since: Option<Instant>,
    /// Its files were synced before.
    pub saved: bool,
    /// The session's options changed since the process was started: the next message gets a new
    /// one.
    pub stale: bool,
    /// `None` while a process is being started.
    pub watch: Option<Watch>,
    /// It was stopped because of deleted files that its processes hold open.
    pub nameless: bool,
    /// Number of a turn that was broken off while claude was frozen; it is interrupted after the
    /// thaw.
    pub unfinished: Option<i64>,
    /// When the newest turn ended, or the process started.
    pub idle_since: Instant,
    /// claude's background agents: they may ask the model, and the session is not idle.
    pub background: Background,
    /// Answers to requests that claude made before it was frozen.
    unanswered: Vec<Vec<u8>>,
    /// Cloned for each running command of a client.
    guests: Arc<()>,
}

/// Settings changed in the running process by requests, so that a turn without the option restores
/// the session's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    pub model: Option<String>,
    pub effort: Option<Value>,
    pub thinking: Option<u64>,
}

impl Applied {
    /// For a process that another ashd drove: the next message sets everything again.
    pub fn unknown() -> Self {
        Self { model: Some(String::new()), effort: Some(Value::Bool(false)), thinking: Some(u64::MAX) }
    }
}

impl Live {
    pub fn new(
        sandbox: Sandbox,
        events: mpsc::UnboundedReceiver<SandboxEvent>,
        slot: Slot,
        listener: OwnedFd,
        record: ProcessRecord,
    ) -> Self {
        let oom = OomCount::read(&sandbox.info.cgroup);
        Self {
            sandbox,
            events,
            slot,
            listener,
            record,
            numbers: MessageNumbers::after(0, None),
            applied: Applied::default(),
            classifier: Classifier::default(),
            tail: None,
            read_to: 0,
            oom,
            told_oom: None,
            stderr_from: 0,
            frozen: false,
            startup_failed: None,
            parked: false,
            reclaimed: false,
            unsaved_since: None,
            saved: false,
            stale: false,
            watch: None,
            nameless: false,
            unfinished: None,
            idle_since: Instant::now(),
            background: Background::default(),
            unanswered: Vec::new(),
            guests: Arc::default(),
        }
    }

    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// For another sandbox of the session, when this one is destroyed.
    pub fn into_slot(self) -> Slot {
        self.slot
    }

    /// Updates the pool. A paused session between turns may be parked to make room.
    pub fn place(&self, turn: bool, paused: bool) {
        let state = if turn { SandboxState::Running } else { SandboxState::Waiting };
        self.slot.set(state, paused && !turn);
    }

    pub async fn freeze(&mut self) -> Result<(), LauncherError> {
        if !self.frozen {
            self.sandbox.freeze().await?;
            self.set_frozen(true);
        }
        Ok(())
    }

    pub async fn thaw(&mut self) -> Result<(), LauncherError> {
        if self.frozen {
            self.sandbox.thaw().await?;
            self.reclaimed = false;
            self.set_frozen(false);
            for line in std::mem::take(&mut self.unanswered) {
                if let Err(e) = self.deliver_line(&line).await {
                    tracing::warn!("cannot answer a request of claude after a thaw: {e}");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Keeps an answer until the sandbox is thawed, because a frozen init takes none. Above
    /// [`UNANSWERED`] answers it is dropped.
    pub fn answer_later(&mut self, line: Vec<u8>) {
        if self.unanswered.len() < UNANSWERED && line.len() <= IN_MEMORY {
            self.unanswered.push(line);
        }
    }

    /// Returns when claude (with its status) or the whole sandbox (`None`) has ended.
    pub async fn ended(&mut self) -> Option<Exit> {
        loop {
            match self.events.recv().await {
                Some(SandboxEvent::Exited { child, status }) if child == self.record.child => return Some(status),
                Some(SandboxEvent::Died) | None => return None,
                Some(_) => {}
            }
        }
    }

    fn set_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
        if let Some(watch) = &self.watch {
            watch.set_frozen(frozen);
        }
    }

    /// Sends a control line to claude's stdin. The line stays in memory: another process has no use
    /// for it.
    pub async fn deliver_line(&mut self, line: &[u8]) -> Result<(), LauncherError> {
        let file = in_memory(line).map_err(|e| LauncherError::Protocol(format!("memfd: {e}")))?;
        self.deliver_file(file).await
    }

    /// Sends a line from the beginning of a file.
    pub async fn deliver_file(&mut self, line: File) -> Result<(), LauncherError> {
        let number = self.numbers.line();
        self.sandbox.deliver(self.record.child, number, line.into()).await
    }

    /// Held by a client's command while it runs.
    pub fn guest(&self) -> Arc<()> {
        Arc::clone(&self.guests)
    }

    pub fn has_guests(&self) -> bool {
        Arc::strong_count(&self.guests) > 1
    }

    /// Whether processes other than init and claude run in the sandbox: a command, a server that
    /// the agent left running.
    pub fn has_company(&self) -> bool {
        if self.has_guests() || self.background.works() {
            return true;
        }
        self.processes() > 2
    }

    /// Processes in the sandbox, init included; the maximum when unknown.
    pub fn processes(&self) -> usize {
        let procs = self.sandbox.info.cgroup.unified.join("cgroup.procs");
        std::fs::read_to_string(procs).map_or(usize::MAX, |text| text.lines().count())
    }
}

/// An anonymous file in memory, positioned at its beginning.
pub fn in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("line", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
