//! Hundreds of created and ended sessions: nothing is left, and no process of ashd grows.

use crate::common::churn::{Growth, churn};
use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form};

/// Sessions before the first measurement. Until then caches and the C library's arenas fill: 1.5 MB
/// between the 25th and the 275th session, 0.2 MB in the next 250, 0.1 MB in the 500 after these.
const FIRST: usize = 250;
/// Megabytes of private memory that 500 ended sessions may leave in each process: retained by
/// allocators, and not growing with more sessions.
const GROWTH_MB: f64 = 1.0;

pub async fn measure(form: Form) -> Vec<Figure> {
    let daemon = Daemon::start(Options::default());
    daemon.api().deploy("a").await;
    let sessions = form.rounds(100, 500);
    let grown = churn(&daemon, FIRST, sessions).await;
    daemon.stop();
    let mb = |bytes: i64| bytes as f64 / 1e6;
    vec![
        Figure::single("churn: growth of ashd", "MB", mb(Growth::bytes(grown.ashd))).of(sessions).at_most(GROWTH_MB),
        Figure::single("churn: growth of the launcher", "MB", mb(Growth::bytes(grown.launcher)))
            .of(sessions)
            .at_most(GROWTH_MB),
        Figure::single("churn: descriptors more in ashd", "", Growth::descriptors(grown.ashd) as f64).at_most(0.0),
        Figure::single("churn: descriptors more in the launcher", "", Growth::descriptors(grown.launcher) as f64)
            .at_most(0.0),
    ]
}
