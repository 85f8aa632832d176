//! Time limits of tests. `ASH_TEST_PATIENCE=12` multiplies them by twelve, for an emulated CPU or a
//! busy machine. Limits of the product itself (a quota, a time-out) do not change.

use std::time::Duration;

/// `limit` on a plain machine, scaled to this one.
///
/// # Panics
/// The variable is not a whole number of 1 or more.
pub fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("ASH_TEST_PATIENCE").map_or(1, |text| {
        let factor = text.parse::<u32>().ok().filter(|factor| *factor > 0);
        factor.unwrap_or_else(|| panic!("ASH_TEST_PATIENCE={text} is no whole number from 1 on"))
    });
    limit * factor
}
