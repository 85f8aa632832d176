//! The unprivileged stage: from an open database to the last answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::listeners::Listeners;
use super::{BootError, first_key, idle_memory, reload, watchdog};
use crate::config::{Config, Live, Source};
use crate::gateway::client::{Gateway, GatewayError};
use crate::http::{AppState, server};
use crate::sandbox::{Launcher, LauncherError};
use crate::sessions::Sessions;
use crate::store::Store;
use ash_observe::systemd;
use ash_observe::tasks;

/// How long open answers may continue after SIGTERM. Streams do not end by themselves; their
/// clients reconnect.
const GRACE: Duration = Duration::from_millis(500);
/// Time limit for closing the database.
const CLOSE: Duration = Duration::from_millis(300);
/// How long to wait for launcher and gateway at the start: systemd may be restarting them.
const COMPANIONS: Duration = Duration::from_secs(10);
/// Update interval of the status in `systemctl status`.
const STATUS: Duration = Duration::from_secs(5);

pub(super) fn run(config: Config, source: Source, listeners: Listeners) -> Result<(), BootError> {
    // The name in `ps`; executed by descriptor, the kernel would use a number.
    nix::sys::prctl::set_name(c"ashd").map_err(BootError::errno("process name"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    // A stream needs a connection and a file: the soft limit of 1024 is for programs that use
    // select(2).
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(BootError::errno("descriptor limit"))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(BootError::errno("descriptor limit"))?;

    super::confine::confine(&config.data_dir)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let workers = (cores / 2).max(2);
    ash_kernel::heap::configure(workers);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("ashd-worker")
        .enable_all()
        .build()
        .map_err(BootError::io("threads"))?;
    let result = runtime.block_on(serve(Arc::new(config), source, listeners));
    // Sandboxes, their files and the database are always consistent: nothing must be awaited.
    runtime.shutdown_background();
    result
}

async fn serve(config: Arc<Config>, source: Source, listeners: Listeners) -> Result<(), BootError> {
    let start = Instant::now();
    let mut signals = Signals::new().map_err(BootError::io("signals"))?;
    let store = Store::open(&config.data_dir).await?;
    if config.auth.api_key.is_none() {
        first_key::ensure(&store, &config.data_dir).await?;
    }
    crate::http::sweep_agents(&config, &store).await?;
    let launcher = connect_launcher(&config).await?;
    let gateway = connect_gateway(&config).await?;
    let live = Live::from(Arc::clone(&config));
    let sessions = Sessions::start(live.clone(), store.clone(), launcher, gateway)
        .await
        .map_err(|why| BootError::Refused(format!("sessions: {why}")))?;
    let server = server(AppState::new(live.clone(), store.clone(), sessions.clone()));

    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    for listener in listeners.listen().map_err(BootError::io("listening"))? {
        servers.spawn(tasks::essential("listener", server.clone().serve(listener, stop.clone())));
    }
    systemd::ready(&sessions.status_line());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), after_ms = start.elapsed().as_millis(), "serving");
    if let Err(why) = idle_memory::watch() {
        tracing::warn!(%why, "free memory will not be returned to the system");
    }

    let tick = systemd::watchdog_interval().unwrap_or(STATUS).min(STATUS);
    let mut beats = watchdog::beats(store.clone(), sessions.clone(), tick);
    let mut ticks = tokio::time::interval(tick);
    loop {
        tokio::select! {
            reason = signals.next() => match reason {
                Wish::Stop(name) => {
                    tracing::info!(signal = name, "stopping; sandboxes continue to run");
                    break;
                }
                Wish::Reload => {
                    systemd::reloading();
                    reload::reload(&source, &live, &sessions).await;
                    systemd::ready(&sessions.status_line());
                }
                Wish::Reap => reap(),
            },
            Some(()) = beats.recv() => systemd::alive(),
            _ = ticks.tick() => systemd::status(&sessions.status_line()),
        }
    }
    systemd::stopping();
    sessions.stop_accepting();
    stop.cancel();
    let drained = async { while servers.join_next().await.is_some() {} };
    drop(tokio::time::timeout(GRACE, drained).await);
    servers.abort_all();
    drop(tokio::time::timeout(CLOSE, store.close()).await);
    Ok(())
}

async fn connect_launcher(config: &Config) -> Result<Launcher, BootError> {
    let start = Instant::now();
    loop {
        match Launcher::connect(&config.run_dir).await {
            Err(LauncherError::Unreachable { .. }) if start.elapsed() < COMPANIONS => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return Ok(result?),
        }
    }
}

async fn connect_gateway(config: &Config) -> Result<Gateway, BootError> {
    let start = Instant::now();
    loop {
        match Gateway::connect(&config.run_dir).await {
            Err(GatewayError::Unreachable { .. }) if start.elapsed() < COMPANIONS => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Reaps ended children: the keepers of launcher and gateway, and what a container's PID 1
/// inherits. ashd starts no other processes.
fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
        tracing::debug!(?status, "a child ended");
    }
}

enum Wish {
    Stop(&'static str),
    Reload,
    Reap,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    child: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            child: signal(SignalKind::child())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Wish::Stop("SIGINT"),
            _ = self.hangup.recv() => Wish::Reload,
            _ = self.child.recv() => Wish::Reap,
        }
    }
}
