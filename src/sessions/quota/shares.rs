//! Shares of a resource of all tenants: memory for requests and answers, streams, concurrent
//! requests.
//!
//! Each resource has two bounds: for one holder, and for all together. Near the second, a holder
//! may have no more than what is free, so that each holder finds about half of what those before it
//! left.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use ash_model::TenantId;

/// The holder of a share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    Tenant(TenantId),
    /// An administrator on the unix socket, without a key: does not queue behind tenant "default".
    Local,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tenant(tenant) => write!(f, "tenant {tenant}"),
            Self::Local => f.write_str("the unix socket"),
        }
    }
}

/// The two bounds, in the resource's unit.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub each: u64,
    pub all: u64,
}

/// The bound that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The holder's own.
    Own,
    /// That of all holders: others have the rest.
    All,
}

/// What each holder has. Cheap to clone.
#[derive(Debug)]
pub struct Shares<K>(Arc<Mutex<Ledger<K>>>, Arc<Notify>);

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::clone(&self.1))
    }
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Ledger { used: 0, by: HashMap::new() })), Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// Takes an amount until the [`Share`] is dropped.
    ///
    /// # Errors
    /// The bound that would be exceeded. Nothing is taken then.
    pub fn take(&self, holder: &K, amount: u64, bounds: Bounds) -> Result<Share<K>, Over> {
        self.with(|ledger| ledger.add(holder, amount, bounds))?;
        Ok(Share { of: self.clone(), holder: holder.clone(), amount })
    }

    /// [`Shares::take`], waiting until the holder's other shares are given back.
    ///
    /// # Errors
    /// As [`Shares::take`], after `limit`.
    pub async fn take_within(
        &self,
        holder: &K,
        amount: u64,
        bounds: Bounds,
        limit: Duration,
    ) -> Result<Share<K>, Over> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let mut given_back = std::pin::pin!(self.1.notified());
            // Before the attempt, so that no release in between is missed.
            given_back.as_mut().enable();
            match self.take(holder, amount, bounds) {
                Err(over) if tokio::time::timeout_at(end, given_back).await.is_err() => return Err(over),
                Err(_) => {}
                taken => return taken,
            }
        }
    }

    /// Takes an amount that exists already, regardless of the bounds.
    pub fn take_anyway(&self, holder: &K, amount: u64) -> Share<K> {
        self.with(|ledger| ledger.put(holder, amount));
        Share { of: self.clone(), holder: holder.clone(), amount }
    }

    /// The holder's total.
    pub fn of(&self, holder: &K) -> u64 {
        self.with(|ledger| ledger.by.get(holder).copied().unwrap_or(0))
    }

    fn with<R>(&self, change: impl FnOnce(&mut Ledger<K>) -> R) -> R {
        // Consistent between any two calls.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An amount, given back on drop.
#[derive(Debug)]
pub struct Share<K: Clone + Eq + Hash> {
    of: Shares<K>,
    holder: K,
    amount: u64,
}

impl<K: Clone + Eq + Hash> Share<K> {
    /// Grows the share.
    ///
    /// # Errors
    /// As [`Shares::take`].
    pub fn grow(&mut self, more: u64, bounds: Bounds) -> Result<(), Over> {
        self.of.with(|ledger| ledger.add(&self.holder, more, bounds))?;
        self.amount += more;
        Ok(())
    }

    /// Gives back all but `amount`; a smaller share stays as it is.
    pub fn shrink(&mut self, amount: u64) {
        let less = self.amount.saturating_sub(amount);
        self.amount -= less;
        self.give_back(less);
    }

    /// Sets the amount of something that exists already, regardless of the bounds.
    pub fn set(&mut self, amount: u64) {
        if amount > self.amount {
            let more = amount - self.amount;
            self.of.with(|ledger| ledger.put(&self.holder, more));
            self.amount = amount;
        } else {
            self.shrink(amount);
        }
    }

    pub fn holder(&self) -> &K {
        &self.holder
    }

    fn give_back(&self, amount: u64) {
        self.of.with(|ledger| ledger.give_back(&self.holder, amount));
        self.of.1.notify_waiters();
    }
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        self.give_back(self.amount);
    }
}

#[derive(Debug)]
struct Ledger<K> {
    used: u64,
    by: HashMap<K, u64>,
}

impl<K: Clone + Eq + Hash> Ledger<K> {
    fn add(&mut self, holder: &K, amount: u64, bounds: Bounds) -> Result<(), Over> {
        let own = self.by.get(holder).copied().unwrap_or(0);
        if own.saturating_add(amount) > bounds.each {
            return Err(Over::Own);
        }
        let free = bounds.all.saturating_sub(self.used);
        if amount > free || own > free {
            return Err(Over::All);
        }
        self.put(holder, amount);
        Ok(())
    }

    fn put(&mut self, holder: &K, amount: u64) {
        self.used += amount;
        if amount > 0 {
            *self.by.entry(holder.clone()).or_default() += amount;
        }
    }

    fn give_back(&mut self, holder: &K, amount: u64) {
        self.used -= amount;
        if let Some(own) = self.by.get_mut(holder) {
            *own -= amount;
            if *own == 0 {
                self.by.remove(holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { each: 40, all: 100 };

    #[test]
    fn each_has_its_bound_and_gives_back_what_it_had() {
        let shares = Shares::default();
        let mut first = shares.take(&"a", 30, BOUNDS).unwrap();
        assert_eq!(shares.take(&"a", 11, BOUNDS).unwrap_err(), Over::Own);
        first.grow(10, BOUNDS).unwrap();
        assert_eq!(first.grow(1, BOUNDS).unwrap_err(), Over::Own);
        let _other = shares.take(&"b", 40, BOUNDS).unwrap();
        drop(first);
        assert!(shares.take(&"a", 40, BOUNDS).is_ok());
        let mut there = shares.take_anyway(&"a", 50);
        assert_eq!((shares.of(&"a"), shares.take(&"a", 1, BOUNDS).unwrap_err()), (50, Over::Own));
        there.set(60);
        assert_eq!(shares.of(&"a"), 60);
        there.set(20);
        assert!(shares.take(&"a", 20, BOUNDS).is_ok());
        drop(there);
        assert_eq!(shares.with(|ledger| (ledger.used, ledger.by.len())), (40, 1));
    }

    #[tokio::test]
    async fn one_may_wait_for_the_others_of_its_holder() {
        let shares = Shares::default();
        let mut first = shares.take(&"a", 40, BOUNDS).unwrap();
        let (limit, soon) = (Duration::from_secs(60), Duration::from_millis(20));
        assert_eq!(shares.take_within(&"a", 10, BOUNDS, soon).await.unwrap_err(), Over::Own);
        let (waited, ()) = tokio::join!(shares.take_within(&"a", 10, BOUNDS, limit), async {
            tokio::task::yield_now().await;
            first.shrink(30);
        });
        assert_eq!((waited.unwrap().amount, first.amount), (10, 30));
        first.shrink(35);
        assert_eq!(shares.with(|ledger| ledger.used), 30);
    }

    #[test]
    fn however_greedy_they_are_the_next_one_finds_half_of_what_is_left() {
        let shares = Shares::default();
        let mut held = Vec::new();
        let mut taken = Vec::new();
        for holder in 0..6 {
            let before = held.len();
            while let Ok(share) = shares.take(&holder, 1, BOUNDS) {
                held.push(share);
            }
            taken.push(held.len() - before);
        }
        assert_eq!(taken, [40, 31, 15, 8, 4, 2]);
        assert_eq!(shares.take(&0, 1, BOUNDS).unwrap_err(), Over::Own);
        assert_eq!(shares.take(&1, 1, BOUNDS).unwrap_err(), Over::All);
    }
}
