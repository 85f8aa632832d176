//! Limits of what the sessions of one tenant, and all sessions, hold together: descriptors and
//! bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::Semaphore;

/// Descriptors for other purposes than connections and listeners.
const OWN: u64 = 64;

/// Total resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Concurrent sessions.
    pub sessions: usize,
    /// Connections of all sandboxes. Each has one descriptor here and one to the model.
    pub connections: usize,
    /// Connections of the sessions of one tenant.
    pub tenant_connections: usize,
    /// Bytes of answers that wait to be read.
    pub buffer: usize,
    pub tenant_buffer: usize,
}

impl Bounds {
    /// Half of the descriptors are for connections, half for listeners and connections in the
    /// queue.
    pub fn of_descriptors(descriptors: u64) -> Self {
        let quarter = usize::try_from(descriptors.saturating_sub(OWN) / 4).unwrap_or(usize::MAX);
        let connections = quarter.clamp(16, 16_384);
        Self {
            sessions: quarter.clamp(16, 10_000),
            connections,
            tenant_connections: connections / 4,
            buffer: 1 << 30,
            tenant_buffer: 256 << 20,
        }
    }

    /// From this process's descriptor limit.
    pub fn here() -> Self {
        Self::of_descriptors(getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft))
    }
}

/// A tenant's share.
#[derive(Debug)]
pub struct Share {
    pub connections: Arc<Semaphore>,
    pub buffer: Arc<Semaphore>,
}

impl Share {
    fn new(connections: usize, buffer: usize) -> Self {
        Self { connections: Arc::new(Semaphore::new(connections)), buffer: Arc::new(Semaphore::new(buffer)) }
    }
}

#[derive(Debug)]
pub struct Shares {
    pub bounds: Bounds,
    pub all: Share,
    /// By tenant; removed without sessions.
    tenants: Mutex<HashMap<String, Weak<Share>>>,
}

impl Shares {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, all: Share::new(bounds.connections, bounds.buffer), tenants: Mutex::default() }
    }

    /// The share of a tenant, which its sessions keep.
    pub fn of(&self, tenant: &str) -> Arc<Share> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = tenants.get(tenant).and_then(Weak::upgrade) {
            return share;
        }
        tenants.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share::new(self.bounds.tenant_connections, self.bounds.tenant_buffer));
        tenants.insert(tenant.to_owned(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_enough_for_all_that_is_allowed() {
        for descriptors in [256, 1024, 4096, 65_536, 524_288, 1 << 30] {
            let bounds = Bounds::of_descriptors(descriptors);
            let needed = 2 * bounds.connections + 2 * bounds.sessions;
            assert!(needed as u64 + OWN <= descriptors + 64, "{descriptors}: {bounds:?}");
            assert!(bounds.tenant_connections * 4 <= bounds.connections);
        }
        assert_eq!(Bounds::of_descriptors(524_288).sessions, 10_000);
        assert_eq!(Bounds::of_descriptors(524_288).connections, 16_384);
    }

    #[test]
    fn a_share_is_the_tenants_as_long_as_it_has_a_session() {
        let shares = Shares::new(Bounds::of_descriptors(1024));
        let one = shares.of("a");
        assert!(Arc::ptr_eq(&one, &shares.of("a")) && !Arc::ptr_eq(&one, &shares.of("b")));
        drop(one);
        let _other = shares.of("c");
        assert_eq!(shares.tenants.lock().unwrap().len(), 1);
    }
}
