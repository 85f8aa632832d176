//! Created and ended sessions leave nothing behind. `scripts/perf churn` is the long form with 500
//! sessions.
#![allow(clippy::unwrap_used)]

mod common;

use common::churn::{Growth, churn};
use common::{Daemon, Options};

#[tokio::test]
async fn fifty_sessions_leave_nothing_and_nothing_grows() {
    let daemon = Daemon::start(Options::default());
    daemon.api().deploy("a").await;
    let grown = churn(&daemon, 25, 50).await;
    println!("{grown:?}");
    assert_eq!((Growth::descriptors(grown.ashd), Growth::descriptors(grown.launcher)), (0, 0), "{grown:?}");
    // The bound suits unoptimised builds, whose allocators keep more. A leak of 100 kB per session
    // would be 5 MB.
    assert!(Growth::bytes(grown.ashd) < 3_000_000 && Growth::bytes(grown.launcher) < 1_000_000, "{grown:?}");
    daemon.stop();
}
