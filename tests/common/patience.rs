//! How long a test waits for what must come. `ASH_TEST_PATIENCE=12` makes it twelve times as long: for an emulated processor, or a
//! machine with other work. What a limit of the product itself bounds (a quota, a time-out) is not stretched by it.

use std::time::Duration;

/// `limit` on a plain machine, in this one's time.
///
/// # Panics
/// When the variable is no whole number from 1 on.
pub fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("ASH_TEST_PATIENCE").map_or(1, |text| {
        let factor = text.parse::<u32>().ok().filter(|factor| *factor > 0);
        factor.unwrap_or_else(|| panic!("ASH_TEST_PATIENCE={text} is no whole number from 1 on"))
    });
    limit * factor
}
