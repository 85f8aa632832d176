//! One inotify instance for all files that the daemon follows.
//!
//! The kernel allows a user 128 instances but many thousand watches. One task reads the shared
//! instance and wakes the followers of a changed file.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use ash_observe::tasks;

type Followers = Arc<Mutex<HashMap<WatchDescriptor, Vec<Arc<Notify>>>>>;

/// Cheap to clone. The instance and its task end with the last clone and the last [`Watch`].
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    watches: Mutex<Watches>,
    followers: Followers,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hub {
    /// Must be called within a tokio runtime.
    pub fn start() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let mut events = inotify.into_event_stream([0; 16 * 1024])?;
        let followers = Followers::default();
        let to_wake = Arc::clone(&followers);
        // Without it ashd sees no more output of any session.
        let task = tasks::spawn_essential("output-watch", async move {
            while let Some(event) = events.next().await {
                let followers = to_wake.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(event) if !event.mask.contains(EventMask::Q_OVERFLOW) => {
                        followers.get(&event.wd).into_iter().flatten().for_each(|f| f.notify_one());
                    }
                    // The kernel dropped events, or the read failed: any file may have grown.
                    _ => followers.values().flatten().for_each(|f| f.notify_one()),
                }
            }
        });
        Ok(Self { shared: Arc::new(Shared { watches: Mutex::new(watches), followers, task }) })
    }

    /// Watches a file until the [`Watch`] is dropped. The kernel's limit is
    /// `fs.inotify.max_user_watches`.
    pub fn watch(&self, path: &Path) -> io::Result<Watch> {
        let notify = Arc::new(Notify::new());
        let mut watches = self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner);
        // IN_MODIFY covers writes and truncation. A file has one descriptor for all its watches.
        let descriptor = watches.add(path, WatchMask::MODIFY)?;
        let mut followers = self.shared.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.entry(descriptor.clone()).or_default().push(Arc::clone(&notify));
        Ok(Watch { hub: self.clone(), descriptor, notify })
    }
}

/// Wakes when the file changed. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    hub: Hub,
    descriptor: WatchDescriptor,
    notify: Arc<Notify>,
}

impl Watch {
    /// Returns when the file changed since the last call returned (or since the watch began).
    pub async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.hub.shared.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut followers = self.hub.shared.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = followers.get_mut(&self.descriptor) else { return };
        list.retain(|notify| !Arc::ptr_eq(notify, &self.notify));
        if list.is_empty() {
            followers.remove(&self.descriptor);
            // Fails when the file, and its watch with it, is gone.
            let _ = watches.remove(self.descriptor.clone());
        }
    }
}
