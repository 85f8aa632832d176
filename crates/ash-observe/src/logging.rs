//! The log. Three places, chosen by where stderr goes:
//!
//! | stderr is | entries go |
//! |---|---|
//! | the journal (systemd started us) | to the journal, with the fields `ASH_SESSION ASH_TENANT ASH_AGENT ASH_TURN ASH_EVENT`: `journalctl ASH_SESSION=<id>` |
//! | a terminal | to it, as text |
//! | anything else | to it, one JSON object a line |
//!
//! `ASH_LOG` or `[log] level` sets the level, and a reload changes it; the launcher, which keeps no variable of its environment,
//! stays at `info`. Types that hold secrets print nothing of them in their `Debug`.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// The variable that sets the level.
pub const VARIABLE: &str = "ASH_LOG";
const DEFAULT: &str = "info,sqlx=warn,hyper=warn";

/// Changes the filter of the running log.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging; panics are logged from then on too. `level` is that of the configuration; without one `ASH_LOG` decides.
///
/// # Errors
/// When the level cannot be read, or logging was started before.
pub fn start(identifier: &str, level: Option<&str>) -> Result<(), String> {
    let variable = std::env::var(VARIABLE).ok();
    let level = level.or(variable.as_deref());
    let (filter, handle) = reload::Layer::new(filter(level)?);
    tracing_subscriber::registry()
        .with(output(identifier, stderr_is_journal()).with_filter(filter))
        .try_init()
        .map_err(|why| format!("logging cannot be started: {why}"))?;
    // Only the first start gets here.
    let _ = FILTER.set(handle);
    log_panics();
    Ok(())
}

/// How [`start_bare`] began, for [`anew`].
static BARE: OnceLock<(&str, bool)> = OnceLock::new();

/// The same for a program without an environment: `journal` is what [`stderr_is_journal`] said while there was one, and the
/// level is `info`. A second start changes nothing.
pub fn start_bare(identifier: &'static str, journal: bool) {
    if bare(identifier, journal).try_init().is_ok() {
        let _ = BARE.set((identifier, journal));
        log_panics();
    }
}

/// Runs `work` in a fork that has closed the descriptors of the process it came from: the way to the journal was one of them, so
/// it gets its own.
pub fn anew<T>(work: impl FnOnce() -> T) -> T {
    match BARE.get() {
        Some((identifier, true)) => tracing::subscriber::with_default(bare(identifier, true), work),
        _ => work(),
    }
}

fn bare(identifier: &str, journal: bool) -> impl tracing::Subscriber + Send + Sync + use<> {
    tracing_subscriber::registry().with(output(identifier, journal).with_filter(LevelFilter::INFO))
}

/// Where entries go, and in which form.
fn output(identifier: &str, journal: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    match journal.then(tracing_journald::layer).and_then(Result::ok) {
        Some(journal) => journal.with_field_prefix(None).with_syslog_identifier(identifier.to_owned()).boxed(),
        None if std::io::stderr().is_terminal() => {
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).boxed()
        }
        None => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_writer(std::io::stderr)
            .boxed(),
    }
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("(no text)");
        super::events::event!(&super::events::PANICKED, place, message, "panic");
    }));
}

/// From now on this level; `None` is the default one.
///
/// # Errors
/// When it cannot be read; the old one holds then.
pub fn set_level(level: Option<&str>) -> Result<(), String> {
    let new = filter(level)?;
    match FILTER.get() {
        Some(handle) => handle.reload(new).map_err(|why| why.to_string()),
        None => Err("logging was not started".to_owned()),
    }
}

fn filter(level: Option<&str>) -> Result<EnvFilter, String> {
    match level.filter(|text| !text.trim().is_empty()) {
        Some(text) => EnvFilter::try_new(text).map_err(|why| {
            format!("variable {VARIABLE}: {why}; write a level (error warn info debug trace) or module=level, comma-separated")
        }),
        None => Ok(EnvFilter::new(DEFAULT)),
    }
}

/// `JOURNAL_STREAM` holds device and inode of the stream that systemd connected (systemd.exec(5)); a stderr that was
/// redirected since is another file.
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}
