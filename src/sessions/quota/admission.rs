//! Admission: a few at a time of each holder, in order of arrival. One tenant occupies only a few
//! threads, database connections and launcher requests, so others wait behind these few only.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who is admitted and who waits. Cheap to clone.
#[derive(Debug)]
pub struct Admissions<K> {
    at_once: usize,
    by: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
}

impl<K> Clone for Admissions<K> {
    fn clone(&self) -> Self {
        Self { at_once: self.at_once, by: Arc::clone(&self.by) }
    }
}

/// An admission, until it is dropped.
#[derive(Debug)]
pub struct Admission<K: Eq + Hash> {
    permit: Option<OwnedSemaphorePermit>,
    holder: K,
    of: Admissions<K>,
}

impl<K: Clone + Eq + Hash> Admissions<K> {
    pub fn new(at_once: usize) -> Self {
        Self { at_once, by: Arc::default() }
    }

    /// Waits until fewer than `at_once` of this holder are admitted. Cancelling loses the place in
    /// the queue.
    pub async fn wait(&self, holder: &K) -> Admission<K> {
        let queue = {
            let mut by = by(&self.by);
            Arc::clone(by.entry(holder.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.at_once))))
        };
        // Created before the wait: the entry lives until the last waiting or admitted holder drops
        // it.
        let mut admission = Admission { permit: None, holder: holder.clone(), of: self.clone() };
        // The semaphore is never closed, so this never fails.
        admission.permit = queue.acquire_owned().await.ok();
        admission
    }
}

fn by<K>(all: &Mutex<HashMap<K, Arc<Semaphore>>>) -> MutexGuard<'_, HashMap<K, Arc<Semaphore>>> {
    // Consistent between any two calls.
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash> Drop for Admission<K> {
    fn drop(&mut self) {
        self.permit = None;
        let mut by = by(&self.of.by);
        // Each waiting or admitted holder has a clone.
        if by.get(&self.holder).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            by.remove(&self.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn few_at_a_time_in_their_order_and_others_have_their_own() {
        let all = Admissions::new(2);
        let first = all.wait(&"a").await;
        let second = all.wait(&"a").await;
        assert!(all.wait(&"a").now_or_never().is_none());
        drop(all.wait(&"b").await);
        assert_eq!(by(&all.by).len(), 1, "an idle holder is removed");
        // First come, first admitted.
        let waits = |name| {
            let all = all.clone();
            async move { (name, all.wait(&"a").await) }
        };
        let (mut third, mut fourth) = (Box::pin(waits("third")), Box::pin(waits("fourth")));
        assert!((&mut third).now_or_never().is_none() && (&mut fourth).now_or_never().is_none());
        drop(first);
        assert!((&mut fourth).now_or_never().is_none());
        let third = tokio::time::timeout(Duration::from_secs(9), third).await.unwrap();
        drop(fourth);
        assert_eq!(third.0, "third");
        drop((second, third));
        assert!(by(&all.by).is_empty());
    }
}
