//! The proof that a session is confined: measured at every start, stored beside the session,
//! measured again on demand.
//!
//! ```text
//!   start:  sandbox -> probe -> judge --below the floor--> no session (error, journal)
//!                                 |
//!                                 +--> <session>/confinement.json --> claude is started,
//!                                                                     or the sandbox is parked
//!   GET:    awake -> probe again;  frozen or gone -> the last report (a read wakes nothing)
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::sandbox::confinement::{Floor, Report};
use crate::sandbox::measure::{self, MeasureError};
use crate::sandbox::{Sandbox, SandboxEvent};
use crate::sessions::api::owned_session::Own;
use crate::sessions::context::Shared;
use crate::sessions::{SessionError, Sessions};
use ash_model::{iso, now_ms};
use ash_observe::events::{self, event};
use ash_protocol::launcher::SandboxInfo;

/// A younger report is returned as it is, to bound the work of the sandbox.
const FRESH: Duration = Duration::from_secs(1);
/// Longest measurement on demand; then the last report is returned.
const AGAIN_WITHIN: Duration = Duration::from_secs(2);
/// Concurrent measurements on demand of all sessions: each holds one of the few connections of an
/// init.
static MEASURING: Semaphore = Semaphore::const_new(4);

/// Child numbers of probes, far from those of claude (1, 2, ...).
const FIRST_CHILD: u32 = 0xC000_0000;

impl Shared {
    /// Measures the sandbox of a starting session, and compares it with the configured floor.
    ///
    /// # Errors
    /// `Failed` with each missing layer, the reason and the remedy; also when the measurement
    /// failed.
    pub async fn prove_confined(
        &self,
        session: Uuid,
        sandbox: &Sandbox,
        events: &mut mpsc::UnboundedReceiver<SandboxEvent>,
    ) -> Result<(), SessionError> {
        let proof = self.proof(session, sandbox, events).await;
        proof.map(drop).map_err(|why| {
            event!(&events::NOT_CONFINED, ASH_SESSION = %session, "{why}");
            SessionError::Failed(format!("session not started, because its confinement is not proven: {why}"))
        })
    }

    /// Measures the sandbox and stores the report; `Err` when it is below the floor.
    pub async fn proof(
        &self,
        id: Uuid,
        sandbox: &Sandbox,
        events: &mut mpsc::UnboundedReceiver<SandboxEvent>,
    ) -> Result<Report, String> {
        let report = self.measure(sandbox, events).await.map_err(|error| {
            format!("the probe failed: {error}. Is ash-probe installed beside ash-launcher? `ashctl doctor` checks it")
        })?;
        self.accept(id, &report).await?;
        Ok(report)
    }

    /// Checks an earlier proof against the current limits.
    pub async fn judge_again(&self, id: Uuid, info: &SandboxInfo, proof: Report) -> Result<(), String> {
        let report =
            Report::new(proof.inside, measure::outside(info), &self.floor(), proof.measured_at, proof.took_micros);
        self.accept(id, &report).await
    }

    async fn accept(&self, id: Uuid, report: &Report) -> Result<(), String> {
        if let Some(missing) = report.missing() {
            return Err(missing);
        }
        for verdict in report.layers.iter().filter(|verdict| !verdict.in_force) {
            tracing::warn!(ASH_SESSION = %id, ASH_EVENT = "layer-missing", layer = %verdict.layer,
                "reduced confinement, permitted by the floor: {}", verdict.evidence);
        }
        for broken in report.broken() {
            tracing::warn!(ASH_SESSION = %id, ASH_EVENT = "probe-failed", "does not work in the sandbox: {broken}");
        }
        if let Err(error) = self.keep(id, report).await {
            tracing::warn!(ASH_SESSION = %id, "cannot store the confinement report: {error}");
        }
        Ok(())
    }

    async fn measure(
        &self,
        sandbox: &Sandbox,
        events: &mut mpsc::UnboundedReceiver<SandboxEvent>,
    ) -> Result<Report, MeasureError> {
        let began = Instant::now();
        let inside = measure::measure(sandbox, events, next_child()).await?;
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(Report::new(inside, measure::outside(&sandbox.info), &self.floor(), iso(now_ms()), took))
    }

    pub(in crate::sessions) fn floor(&self) -> Floor {
        let config = self.config.now();
        let asked = &config.confinement;
        Floor { layers: asked.floor.clone(), landlock_abi: asked.landlock_abi }
    }

    fn report_path(&self, session: Uuid) -> PathBuf {
        self.dir(session).root().join("confinement.json")
    }

    /// By rename, so that a reader sees the old report or the new one.
    async fn keep(&self, session: Uuid, report: &Report) -> io::Result<()> {
        let path = self.report_path(session);
        let text = serde_json::to_vec(report).map_err(io::Error::other)?;
        let partial = path.with_extension(format!("{}.partial", next_child()));
        tokio::fs::write(&partial, text).await?;
        tokio::fs::rename(&partial, path).await
    }

    async fn measured_just_now(&self, session: Uuid) -> bool {
        let modified = tokio::fs::metadata(self.report_path(session)).await.and_then(|meta| meta.modified());
        modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH))
    }

    async fn kept(&self, session: Uuid) -> Option<Report> {
        let text = tokio::fs::read(self.report_path(session)).await.ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Sessions {
    /// Measures the session's sandbox if it is awake and was not measured within the last second.
    /// Otherwise returns the last report, with the current limits while the sandbox lives.
    ///
    /// # Errors
    /// `Invalid` for a session that was never started; `Unavailable` without the launcher.
    pub async fn confinement(&self, own: &Own) -> Result<Report, SessionError> {
        let (id, shared) = (own.id(), &self.shared);
        let sandbox = shared.launcher.attach(id).await.ok();
        if let Some(sandbox) = &sandbox
            && !shared.measured_just_now(id).await
            && let Ok(_turn) = MEASURING.try_acquire()
            && matches!(sandbox.frozen().await, Ok(false))
            && let Some(mut events) = sandbox.take_events()
        {
            match tokio::time::timeout(AGAIN_WITHIN, shared.measure(sandbox, &mut events)).await {
                Ok(Ok(report)) => {
                    shared.keep(id, &report).await.ok();
                    return Ok(report);
                }
                // Just frozen, ended or at its process limit: the last report stands.
                Ok(Err(error)) => tracing::info!(ASH_SESSION = %id, "confinement not measured again: {error}"),
                Err(_) => tracing::info!(ASH_SESSION = %id, "confinement not measured again: frozen meanwhile"),
            }
        }
        let kept = shared.kept(id).await.ok_or_else(|| {
            SessionError::Invalid("the session has no confinement report, because it was never started".to_owned())
        })?;
        Ok(match sandbox {
            Some(sandbox) if sandbox.info.pid != 0 => {
                let outside = measure::outside(&sandbox.info);
                Report::new(kept.inside, outside, &shared.floor(), kept.measured_at, kept.took_micros)
            }
            _ => kept,
        })
    }
}

/// A number that no probe of this daemon used before, and most likely none of an earlier one.
fn next_child() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let seed = u32::try_from(now_ms() & 0x3FFF).unwrap_or(0) << 16;
    FIRST_CHILD + ((seed + NEXT.fetch_add(1, Ordering::Relaxed)) & 0x3FFF_FFFF)
}
