//! Memory that a load leaves behind in the heap goes back to the kernel.
//!
//! The C library keeps free memory between blocks that are in use, for the next allocation. After a busy hour that is
//! hundreds of megabytes which a quiet daemon does not need.

use std::time::Duration;

use ash_kernel::heap;

/// Between two looks.
const FIRST: Duration = Duration::from_secs(5);
/// The same after looks that found little. A quiet daemon is small again within twice this time.
const LONGEST: Duration = Duration::from_secs(20);
/// Bytes above the size at the start from which it is worth a look.
const WORTH: u64 = 4 << 20;
/// Bytes that make a trim worth the next one.
const LITTLE: u64 = 1 << 20;

/// Looks every few seconds, in a thread of its own: a trim holds the heap's locks, for some milliseconds when it is large.
///
/// # Errors
/// When no thread can be started, or `/proc` is not there.
pub(super) fn watch() -> std::io::Result<()> {
    heap::trim();
    let start = heap::resident()?;
    let looks = move || {
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
