//! Returns memory to the kernel: free heap after a load, and code that only the start needed.
//!
//! The C library keeps free memory between used blocks for later allocations. After a busy hour
//! these are hundreds of megabytes, which an idle daemon does not need.

use std::time::Duration;

use ash_kernel::{code_pages, heap};

/// When the start is over.
const STARTED: Duration = Duration::from_secs(1);
/// First check interval.
const FIRST: Duration = Duration::from_secs(5);
/// Longest check interval, reached after checks that freed little. An idle daemon shrinks within
/// twice this time.
const LONGEST: Duration = Duration::from_secs(20);
/// Bytes above the size at start from which to trim.
const WORTH: u64 = 4 << 20;
/// Bytes freed by a trim above which the interval stays short.
const LITTLE: u64 = 1 << 20;

/// Checks periodically in its own thread: a large trim holds the heap's locks for milliseconds.
///
/// # Errors
/// The thread cannot be started, or `/proc` is missing.
pub(super) fn watch() -> std::io::Result<()> {
    heap::trim();
    code_pages::release()?;
    let start = heap::resident()?;
    let looks = move || {
        // The rest of the start: adoption of sessions, first connections.
        std::thread::sleep(STARTED);
        heap::trim();
        let _ = code_pages::release();
        let mut pause = FIRST;
        loop {
            std::thread::sleep(pause);
            let Ok(before) = heap::resident() else { return };
            let mut gained = 0;
            if before > start + WORTH {
                heap::trim();
                gained = before.saturating_sub(heap::resident().unwrap_or(before));
            }
            pause = next(pause, gained);
        }
    };
    std::thread::Builder::new().name("ashd-heap".to_owned()).stack_size(64 << 10).spawn(looks).map(drop)
}

fn next(pause: Duration, gained: u64) -> Duration {
    if gained > LITTLE { FIRST } else { (pause * 2).min(LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_rare_when_there_is_nothing_to_gain() {
        let mut pause = FIRST;
        for expected in [10, 20, 20] {
            pause = next(pause, 0);
            assert_eq!(pause.as_secs(), expected);
        }
        assert_eq!(next(pause, 5 << 20), FIRST);
    }
}
