//! The log. Its destination depends on stderr:
//!
//! | stderr is | destination |
//! |---|---|
//! | the journal (started by systemd) | the journal, with the fields listed below |
//! | a terminal | the terminal, as text |
//! | anything else | stderr, one JSON object per line |
//!
//! The fields are `ASH_SESSION ASH_TENANT ASH_AGENT ASH_TURN ASH_EVENT`:
//! `journalctl ASH_SESSION=<id>`.
//!
//! `ASH_LOG` or `[log] level` sets the level, and a reload changes it. The launcher clears its
//! environment and always logs at `info`. `Debug` output never contains secrets.
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

pub const VARIABLE: &str = "ASH_LOG";
const DEFAULT: &str = "info,sqlx=warn,hyper=warn";

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging, including panics. `level` comes from the configuration. Without it, `ASH_LOG`
/// decides.
///
/// # Errors
/// The level is invalid, or logging was started before.
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

/// The arguments of [`start_bare`], for [`anew`].
static BARE: OnceLock<(&str, bool)> = OnceLock::new();

/// The same for a program without an environment, at level `info`. `journal` is the result of
/// [`stderr_is_journal`] from before the environment was cleared. A second start changes nothing.
pub fn start_bare(identifier: &'static str, journal: bool) {
    if bare(identifier, journal).try_init().is_ok() {
        let _ = BARE.set((identifier, journal));
        log_panics();
    }
}

/// Runs `work` in a fork that has closed all inherited descriptors. The journal connection is one
/// of them, so a new one is opened.
pub fn anew<T>(work: impl FnOnce() -> T) -> T {
    match BARE.get() {
        Some((identifier, true)) => tracing::subscriber::with_default(bare(identifier, true), work),
        _ => work(),
    }
}

fn bare(identifier: &str, journal: bool) -> impl tracing::Subscriber + Send + Sync + use<> {
    tracing_subscriber::registry().with(output(identifier, journal).with_filter(LevelFilter::INFO))
}

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

/// Changes the level from now on. `None`: the default level.
///
/// # Errors
/// The level is invalid. The previous level stays.
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
            format!("variable {VARIABLE}: {why}; use a level (error, warn, info, debug, trace) or a comma-separated list of module=level")
        }),
        None => Ok(EnvFilter::new(DEFAULT)),
    }
}

/// `JOURNAL_STREAM` holds the device and inode of the stream that systemd connected
/// (systemd.exec(5)). If stderr was redirected since, they differ.
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}
