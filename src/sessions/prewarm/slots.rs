//! Ready sandboxes of one kind, the one being created, and how they are claimed or evicted.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Kept ready for future sessions.
pub trait Keepable {
    /// Identifies interchangeable ones.
    type Key: PartialEq + std::fmt::Debug;

    fn id(&self) -> Uuid;
    fn key(&self) -> &Self::Key;
    /// Whether it can still be claimed.
    fn lives(&mut self) -> bool;
}

/// The one that is being started.
#[derive(Debug)]
struct Making<K> {
    id: Uuid,
    key: K,
    cancel: CancellationToken,
    /// Cancelled when the start is over: its slot is free, or it is on the shelf.
    over: CancellationToken,
}

#[derive(Debug)]
struct Inner<T: Keepable> {
    ready: Vec<T>,
    making: Option<Making<T::Key>>,
}

#[derive(Debug)]
pub struct Shelf<T: Keepable>(Mutex<Inner<T>>);

impl<T: Keepable> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::new(Inner { ready: Vec::new(), making: None }))
    }
}

impl<T: Keepable> Shelf<T> {
    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        // Consistent between any two statements, so a panic elsewhere cannot break it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready ones of this key, and whether another one is being created.
    pub fn count(&self, key: &T::Key) -> (usize, bool) {
        let inner = self.inner();
        let ready = inner.ready.iter().filter(|one| one.key() == key).count();
        (ready, inner.making.as_ref().is_some_and(|making| making.key == *key))
    }

    /// Takes the oldest that serves and lives. Also returns dead ones found meanwhile, which the
    /// caller destroys.
    pub fn take(&self, serves: impl Fn(&T) -> bool) -> (Option<T>, Vec<T>) {
        let mut inner = self.inner();
        let mut dead = Vec::new();
        while let Some(at) = inner.ready.iter().position(&serves) {
            let mut one = inner.ready.remove(at);
            if one.lives() {
                return (Some(one), dead);
            }
            dead.push(one);
        }
        (None, dead)
    }

    /// Takes out all that are no longer wanted: `wanted` returns the number to keep of its key.
    pub(super) fn sweep(&self, wanted: impl Fn(&T) -> usize) -> Vec<T> {
        let mut inner = self.inner();
        let mut kept: Vec<T> = Vec::with_capacity(inner.ready.len());
        let mut gone = Vec::new();
        for mut one in std::mem::take(&mut inner.ready) {
            let same = kept.iter().filter(|other| other.key() == one.key()).count();
            if same < wanted(&one) && one.lives() { kept.push(one) } else { gone.push(one) }
        }
        inner.ready = kept;
        gone
    }

    /// Takes all, to be put back one by one.
    pub(super) fn take_all(&self) -> Vec<T> {
        std::mem::take(&mut self.inner().ready)
    }

    pub(super) fn put(&self, one: T) {
        self.inner().ready.push(one);
    }

    /// Announces a start. The token stops it; [`Shelf::made`] ends it.
    pub(super) fn making(&self, id: Uuid, key: T::Key) -> CancellationToken {
        let cancel = CancellationToken::new();
        self.inner().making = Some(Making { id, key, cancel: cancel.clone(), over: CancellationToken::new() });
        cancel
    }

    /// The announced start is over.
    pub(super) fn made(&self, one: Option<T>) {
        let mut inner = self.inner();
        inner.ready.extend(one);
        if let Some(making) = inner.making.take() {
            making.over.cancel();
        }
    }

    /// Takes this one out permanently. One being created is stopped, and awaited.
    pub(super) async fn remove(&self, id: Uuid) -> Option<T> {
        if let Some(over) = self.stop_making(id) {
            over.cancelled().await;
        }
        let mut inner = self.inner();
        let at = inner.ready.iter().position(|one| one.id() == id)?;
        Some(inner.ready.remove(at))
    }

    fn stop_making(&self, id: Uuid) -> Option<CancellationToken> {
        let inner = self.inner();
        let making = inner.making.as_ref().filter(|making| making.id == id)?;
        making.cancel.cancel();
        Some(making.over.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct One {
        id: Uuid,
        key: &'static str,
        lives: bool,
    }

    impl Keepable for One {
        type Key = &'static str;
        fn id(&self) -> Uuid {
            self.id
        }
        fn key(&self) -> &&'static str {
            &self.key
        }
        fn lives(&mut self) -> bool {
            self.lives
        }
    }

    fn shelf(of: &[(&'static str, bool)]) -> (Shelf<One>, Vec<Uuid>) {
        let shelf = Shelf::default();
        let ids = of.iter().map(|(key, lives)| {
            let id = Uuid::new_v4();
            shelf.put(One { id, key, lives: *lives });
            id
        });
        let ids = ids.collect();
        (shelf, ids)
    }

    #[test]
    fn each_is_handed_out_once_the_oldest_that_serves_and_lives() {
        let (shelf, ids) = shelf(&[("other", true), ("mine", false), ("mine", true), ("mine", true)]);
        assert_eq!(shelf.count(&"mine"), (3, false));
        let (found, dead) = shelf.take(|one| one.key == "mine");
        assert_eq!(found.map(|one| one.id), Some(ids[2]));
        assert_eq!(dead.iter().map(|one| one.id).collect::<Vec<_>>(), [ids[1]]);
        assert_eq!(shelf.take(|one| one.key == "mine").0.map(|one| one.id), Some(ids[3]));
        assert_eq!(shelf.take(|one| one.key == "mine"), (None, vec![]));
        assert_eq!(shelf.count(&"other").0, 1, "other keys are unchanged");
    }

    #[test]
    fn what_is_too_many_dead_or_of_another_key_goes() {
        let (shelf, ids) = shelf(&[("a", true), ("a", false), ("a", true), ("a", true), ("b", true)]);
        let gone: Vec<_> =
            shelf.sweep(|one| if one.key == "a" { 2 } else { 0 }).into_iter().map(|one| one.id).collect();
        assert_eq!(gone, [ids[1], ids[3], ids[4]]);
        assert_eq!((shelf.count(&"a").0, shelf.count(&"b").0), (2, 0));
    }

    #[tokio::test]
    async fn one_that_is_being_made_is_stopped_and_waited_for() {
        let (shelf, ids) = shelf(&[("a", true)]);
        let id = Uuid::new_v4();
        let cancel = shelf.making(id, "a");
        assert_eq!(shelf.count(&"a"), (1, true));
        let maker = async {
            cancel.cancelled().await;
            shelf.made(None);
        };
        let (removed, ()) = tokio::join!(shelf.remove(id), maker);
        assert_eq!(removed, None);
        assert_eq!(shelf.count(&"a"), (1, false));
        assert_eq!(shelf.remove(ids[0]).await.map(|one| one.id), Some(ids[0]));
        assert_eq!(shelf.remove(ids[0]).await, None);
    }
}
