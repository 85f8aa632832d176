//! Background tasks that run as long as the daemon. A panic ends the current pass; then the task
//! restarts.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinHandle;

/// The delay between a panic and the next pass. It prevents a task that always panics from using a
/// core.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Runs the future from `make` until it returns, and a new one after each panic. `name` is for the
/// journal.
pub fn spawn_restarting<F, M>(name: &'static str, make: M) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
    M: FnMut() -> F + Send + 'static,
{
    tokio::spawn(restart(name, make))
}

/// The same, without spawning.
pub async fn restart<F: Future<Output = ()>>(name: &'static str, make: impl FnMut() -> F) {
    restarting(name, RESTART_AFTER, make).await;
}

async fn restarting<F: Future<Output = ()>>(name: &'static str, rest: Duration, mut make: impl FnMut() -> F) {
    while AssertUnwindSafe(make()).catch_unwind().await.is_err() {
        // The panic itself, with its location, is already in the journal.
        tracing::error!(task = name, "a background task panicked; it restarts after {rest:?}");
        tokio::time::sleep(rest).await;
    }
}

/// Runs a task that the process cannot work without. A panic in it ends the process at once. The
/// service manager or the keeper restarts it. Sandboxes and their output files are not affected.
pub fn spawn_essential<F>(name: &'static str, task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    tokio::spawn(essential(name, task))
}

/// The same, without spawning.
pub async fn essential<F: Future>(name: &'static str, task: F) -> F::Output {
    AssertUnwindSafe(task).catch_unwind().await.unwrap_or_else(|_| give_up(name))
}

/// The same for a thread.
///
/// # Errors
/// No more threads are available.
pub fn spawn_essential_thread(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let work = AssertUnwindSafe(work);
    let thread = move || std::panic::catch_unwind(work).unwrap_or_else(|_| give_up(name));
    std::thread::Builder::new().name(name.to_owned()).spawn(thread).map(drop)
}

fn give_up(name: &'static str) -> ! {
    tracing::error!(task = name, "an essential task panicked; the process exits and is restarted");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_starts_again_until_it_returns() {
        let mut passes = 0;
        restarting("test", Duration::from_millis(1), || {
            passes += 1;
            let pass = passes;
            async move { assert!(pass > 2, "panics twice") }
        })
        .await;
        assert_eq!(passes, 3);
    }

    /// Each case runs in its own process, which must end.
    #[test]
    fn a_panic_in_an_essential_task_ends_the_process() {
        const VARIABLE: &str = "ASH_TEST_ESSENTIAL";
        let wait = Duration::from_secs(60);
        match std::env::var(VARIABLE).as_deref() {
            Ok("task") => {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
                runtime.spawn(essential("test", async { panic!("as the test wants it") }));
                std::thread::sleep(wait);
            }
            Ok(_) => {
                spawn_essential_thread("test", || panic!("as the test wants it")).unwrap();
                std::thread::sleep(wait);
            }
            Err(_) => {
                for kind in ["task", "thread"] {
                    let mut own = std::process::Command::new(std::env::current_exe().unwrap());
                    own.args(["tasks::tests::a_panic_in_an_essential_task_ends_the_process", "--exact"]);
                    let output = own.env(VARIABLE, kind).output().unwrap();
                    use std::os::unix::process::ExitStatusExt;
                    assert_eq!(output.status.signal(), Some(6), "{kind}: {:?}", output.status);
                }
            }
        }
    }
}
