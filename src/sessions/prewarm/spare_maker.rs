//! Keeps sandboxes parked: a task beside the warm keeper, whose starts of claude take half a
//! second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::warm_maker::{LOOK_AGAIN, REFILL_AFTER};
use crate::pool::Spare;
use crate::sessions::context::Shared;
use crate::sessions::launch::Parked;
use ash_model::TenantId;
use ash_observe::tasks;

/// Delay after a failure, doubled with each further one: the cause usually persists, and every
/// starting session reports it.
const REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// Delay after failures.
#[derive(Debug, Default)]
pub struct Rest {
    failures: u32,
    until: Option<Instant>,
}

impl Rest {
    fn failed(&mut self, now: Instant) -> Duration {
        let rest = rest_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + rest);
        rest
    }

    fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

fn rest_after(failures: u32) -> Duration {
    REST.saturating_mul(1 << failures.min(16)).min(LONGEST_REST)
}

impl Shared {
    /// Ends with the daemon.
    pub(super) fn keep_parked(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        tasks::spawn_restarting("parked-sandboxes", move || {
            let shared = Arc::clone(&shared);
            async move {
                match shared.store.newest_tenant().await {
                    Ok(tenant) => shared.warm.started_cold_before(tenant),
                    Err(e) => tracing::warn!("cannot read the tenant of the newest session: {e}"),
                }
                let mut rest = Rest::default();
                loop {
                    while shared.park_step(&mut rest).await {}
                    if tokio::time::timeout(LOOK_AGAIN, shared.warm.parking()).await.is_ok() {
                        // Not concurrently with the start of the session that took one.
                        tokio::time::sleep(REFILL_AFTER).await;
                    }
                }
            }
        });
    }

    /// Creates or destroys one sandbox; `false` when the number is right (or cannot be changed
    /// now).
    async fn park_step(self: &Arc<Self>, rest: &mut Rest) -> bool {
        if self.stopping.is_cancelled() {
            return false;
        }
        let _tending = self.warm.tending.lock().await;
        let wanted = self.config.now().pool.parked as usize;
        let basis = self.basis(self.warm.parked_for());
        for parked in self.warm.parked.sweep(|parked| if parked.basis == basis { wanted } else { 0 }) {
            self.unpark(parked).await;
        }
        let enough = self.warm.parked.count(&basis).0 >= wanted;
        if enough || rest.holds(Instant::now()) || self.short_of_memory().is_some() || self.has_reserve().is_err() {
            return false;
        }
        let id = Uuid::new_v4();
        let Some(slot) = self.pool.admit_spare(&basis.tenant, id, Spare::Parked) else { return false };
        let cancel = self.warm.parked.making(id, basis.clone());
        let made = self.park(id, basis, slot, &cancel).await;
        match made {
            Ok(parked) => {
                *rest = Rest::default();
                self.warm.parked.made(Some(parked));
                true
            }
            Err(e) => {
                self.warm.parked.made(None);
                if !cancel.is_cancelled() {
                    let rest = rest.failed(Instant::now());
                    tracing::warn!(
                        ASH_EVENT = "park-failed",
                        "cannot park a sandbox, retrying in {} s: {e}",
                        rest.as_secs()
                    );
                }
                false
            }
        }
    }

    /// A parked sandbox for a new session of this tenant, if there is one. No other session gets
    /// it.
    pub async fn claim_parked(&self, tenant: &TenantId) -> Option<Parked> {
        self.warm.starts_cold(tenant);
        self.warm.park_again();
        let basis = self.basis(tenant.clone());
        let (found, dead) = self.warm.parked.take(|parked| parked.basis == basis);
        for parked in dead {
            // Awaited: the session that starts cold instead may need its slot.
            self.unpark(parked).await;
        }
        found.inspect(Parked::taken)
    }

    /// A tenant is gone: its parked sandboxes are destroyed.
    pub async fn unpark_all_of(&self, tenant: &TenantId) {
        self.warm.starts_no_more(tenant);
        // After the keeper's step, which may be creating or destroying one of it.
        let _tending = self.warm.tending.lock().await;
        for parked in self.warm.parked.sweep(|one| if one.basis.tenant == *tenant { 0 } else { usize::MAX }) {
            self.unpark(parked).await;
        }
        self.warm.park_again();
    }

    /// Destroys one for a warm sandbox, which takes precedence. `false`: there is none.
    pub(super) async fn give_up_parked(&self) -> bool {
        let (found, dead) = self.warm.parked.take(|_| true);
        let some = found.is_some() || !dead.is_empty();
        for parked in dead.into_iter().chain(found) {
            self.unpark(parked).await;
        }
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_followed_by_a_longer_rest_up_to_an_hour() {
        let seconds: Vec<u64> = (0..8).map(|failures| rest_after(failures).as_secs()).collect();
        assert_eq!(seconds, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(rest_after(u32::MAX), LONGEST_REST);
        let (mut rest, now) = (Rest::default(), Instant::now());
        assert!(!rest.holds(now));
        rest.failed(now);
        assert!(rest.holds(now + Duration::from_secs(59)) && !rest.holds(now + Duration::from_secs(60)));
        rest.failed(now);
        assert!(rest.holds(now + Duration::from_secs(119)));
    }
}
