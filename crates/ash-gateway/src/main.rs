//! `ash-gateway`: holds the model key, serves the listeners of the sandboxes, connects to the
//! model.

use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use ash_gateway::confine as gateway_confine;
use ash_gateway::control::{self, ControlSocket, Peers};
use ash_gateway::ledger::Ledger;
use ash_gateway::privileges;
use ash_gateway::registry::{Limits, Registry};
use ash_gateway::settings::{self, Upstream};
use ash_gateway::successor;
use ash_gateway::upstream::Model;
use ash_kernel::confine;
use ash_kernel::single::require_single_thread;
use ash_kernel::{sanitize, seqpacket};
use ash_observe::events::INSECURE_UPSTREAM;
use ash_observe::tasks;
use ash_protocol::gateway::{Register, Request, SOCKET};
use clap::Parser;
use nix::unistd::Uid;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long open answers may continue after a shutdown request; the API ends an answer after 10
/// minutes.
const GRACE: Duration = Duration::from_secs(600);

/// The model gateway of ashd: the only process that holds the model key.
///
/// It listens on <RUN_DIR>/gateway.sock for ashd, which registers each session's listening socket
/// and token. A sandbox connects to it on 127.0.0.1 with its own token; the gateway replaces the
/// token by the real key and forwards the request.
#[derive(Parser, Debug)]
#[command(version, after_long_help = HELP)]
struct Flags {
    /// Directory of gateway.sock.
    #[arg(long, env = "ASH_RUN_DIR", default_value = "/run/ashd")]
    run_dir: PathBuf,
    /// Directory of the usage records that ashd has not collected. Created if missing.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/ash-gateway")]
    state_dir: PathBuf,
    /// `offline` (a scripted model, no network) or a base URL. Default: ANTHROPIC_BASE_URL; else
    /// https://api.anthropic.com if there is a key; else `offline`.
    #[arg(long, value_name = "offline|URL")]
    upstream: Option<String>,
    /// Allow an http:// upstream on another host, which sends the model key over the network in
    /// clear.
    #[arg(long, env = "ASH_ALLOW_INSECURE_UPSTREAM", value_parser = clap::builder::FalseyValueParser::new(),
        action = clap::ArgAction::SetTrue)]
    allow_insecure_upstream: bool,
    /// User that may use gateway.sock, besides root and the gateway's own user.
    #[arg(long, value_name = "USER", default_value = "ashd")]
    client_user: String,
    /// User to run as. Required when started as root, refused otherwise.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Take over from a gateway that serves the same run directory; it finishes its open answers,
    /// then exits.
    #[arg(long)]
    take_over: bool,
    /// The control socket is on standard input, passed by the gateway that this one replaces.
    #[arg(long, hide = true)]
    handed_over: bool,
    /// For tests: also serve one session on this TCP address; the address is printed on stdout.
    #[arg(long, hide = true, requires = "token")]
    listen: Option<std::net::SocketAddr>,
    /// For tests: the token of that session.
    #[arg(long, hide = true)]
    token: Option<String>,
}

const HELP: &str = "\
The model key comes from $CREDENTIALS_DIRECTORY/anthropic_api_key (systemd: LoadCredential=), else from the variable
ANTHROPIC_API_KEY. It is never taken from the command line and never logged. A key that begins with sk-ant-oat is sent
as an OAuth token. ANTHROPIC_CUSTOM_HEADERS adds headers to every request, one `Name: value` a line.

Examples:
  ash-gateway --run-dir /tmp/ash --upstream offline --client-user \"$USER\"
  ANTHROPIC_API_KEY=... ash-gateway --run-dir /run/ashd --user ash-gateway

Signals: SIGTERM and SIGINT finish open answers (10 minutes at most), a second one ends at once. SIGHUP, under systemd:
the program is started again, the new one serves, this one finishes its open answers and ends.
Logs: the journal under systemd, else JSON on stderr; ASH_LOG sets the level. Documentation: docs/gateway.md, docs/offline-model.md.";

fn main() -> anyhow::Result<()> {
    let one = require_single_thread().context("start")?;
    let flags = Flags::parse();
    sanitize::close_inherited(sanitize::passed_here()).context("close inherited descriptors")?;
    let variable = |name| std::env::var(name).ok();
    ash_observe::logging::start("ash-gateway", None).map_err(|why| anyhow!(why))?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let key = settings::find_key(credentials.as_deref(), variable("ANTHROPIC_API_KEY").as_deref())
        .map_err(|why| anyhow!(why))?;
    let base_url = variable("ANTHROPIC_BASE_URL");
    let upstream =
        Upstream::choose(flags.upstream.as_deref(), base_url.as_deref(), key.is_some()).map_err(|why| anyhow!(why))?;
    if let Err(why) = upstream.check_secure() {
        if !flags.allow_insecure_upstream {
            bail!(why);
        }
        let event = &INSECURE_UPSTREAM;
        tracing::warn!(MESSAGE_ID = event.id, ASH_EVENT = event.name, %upstream, "the model key is sent over the network in clear");
    }
    let custom = settings::custom_headers(&variable("ANTHROPIC_CUSTOM_HEADERS").unwrap_or_default())
        .map_err(|why| anyhow!(why))?;
    let client = privileges::lookup(&flags.client_user).context("--client-user")?.uid;
    if key.is_none() && upstream != Upstream::Offline {
        tracing::warn!(%upstream, "no model key: requests go upstream without one");
    }
    let inherited = inherited(&flags)?;
    let old = if inherited.is_some() { None } else { predecessor(&flags)? };
    // Root can write where the gateway's user cannot; and threads must not exist before the drop.
    let socket = |flags: &Flags| ControlSocket::bind(&flags.run_dir).context("control socket");
    let bound = match inherited {
        Some(inherited) => Some(inherited),
        None if Uid::effective().is_root() && flags.user.is_some() => Some(socket(&flags)?),
        None => None,
    };
    privileges::own_directory(&flags.state_dir, flags.user.as_deref()).context("--state-dir")?;
    privileges::drop_all(&one, flags.user.as_deref())?;
    let bound = bound.map_or_else(|| socket(&flags), Ok)?;
    let model = Model::new(&upstream, key, custom).map_err(|why| anyhow!(why))?;
    // Before the confinement forbids binding a port.
    let listen =
        flags.listen.map(|address| std::net::TcpListener::bind(address).with_context(|| format!("--listen {address}")));
    let listen = listen.transpose()?;
    confine::apply(&one, &gateway_confine::plan(&flags.run_dir, &upstream, std::slice::from_ref(&flags.state_dir)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(flags, client, bound, model, old, listen))
}

/// The control socket of `ash-gateway.socket`, from systemd or from the replaced gateway.
fn inherited(flags: &Flags) -> anyhow::Result<Option<ControlSocket>> {
    if flags.handed_over {
        let fd = successor::handed_over().context("use the socket on standard input")?;
        return ControlSocket::inherited(fd).map(Some).context("use the socket on standard input");
    }
    let Some(given) = ash_observe::systemd::listen_fds().into_iter().find(|given| given.name == "gateway") else {
        return Ok(None);
    };
    let fd = ash_kernel::inherited::claim(given.number).context("use the socket from systemd")?;
    ControlSocket::inherited(fd).map(Some).context("use the socket from systemd")
}

/// A connection to the gateway that serves the run directory, if it is to be taken over. Two
/// gateways on one run directory would serve half of the sessions each.
fn predecessor(flags: &Flags) -> anyhow::Result<Option<OwnedFd>> {
    let path = flags.run_dir.join(SOCKET);
    let old = match seqpacket::connect(&path, true) {
        Ok(old) => Some(old),
        // No socket, or one of a killed gateway.
        Err(why) if matches!(why.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => None,
        Err(why) => return Err(why).with_context(|| format!("connect to {}", path.display())),
    };
    if old.is_some() && !flags.take_over {
        bail!("a gateway is already running at {}; stop it, or start with --take-over", path.display());
    }
    Ok(old)
}

async fn run(
    flags: Flags,
    client: Uid,
    socket: ControlSocket,
    model: Model,
    old: Option<OwnedFd>,
    listen: Option<std::net::TcpListener>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let lasting = socket.lasting().context("control socket")?;
    let ledger = Ledger::open(&flags.state_dir)?;
    let registry = Registry::new(model, Limits::default(), Some(ledger));
    let stop = CancellationToken::new();
    if let (Some(listener), Some(token)) = (listen, flags.token) {
        println!("listening on {}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let register = Register::new(uuid::Uuid::nil(), token);
        registry.register(register, listener.into()).map_err(|why| anyhow!(why))?;
    }
    tracing::info!(upstream = %registry.model, run_dir = %flags.run_dir.display(), pid = std::process::id(), "serving");
    let serve = control::serve(socket, Peers { client }, Arc::clone(&registry), stop.clone());
    let control = tasks::spawn_essential("control-socket", serve);
    if let Some(old) = old {
        // It closes its connections to ashd, so ashd connects here and registers every session
        // again.
        let shutdown = serde_json::to_vec(&Request::Shutdown)?;
        seqpacket::send(old.as_fd(), &shutdown, &[]).context("shut down the old gateway")?;
        tracing::info!("took over from the previous gateway");
    }
    if flags.handed_over {
        successor::ready().context("the replaced gateway did not wait")?;
    }
    // Repeated for a successor: systemd accepts it once this is the main process.
    ash_observe::systemd::ready(&format!("upstream {}", registry.model));
    let mut signalled = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let successor = loop {
        tokio::select! {
            () = signalled() => break None,
            () = stop.cancelled() => break None,
            _ = hangup.recv() => match replace(lasting.as_ref()).await {
                Ok(new) => break Some(new),
                Err(why) => tracing::error!(%why, "not replaced; this gateway continues to serve"),
            }
        }
    };
    if successor.is_none() {
        ash_observe::systemd::stopping();
    }
    stop.cancel();
    control.await?.context("control socket")?;
    registry.drain();
    tracing::info!(open = registry.tasks.len(), "finishing open answers");
    // A replaced gateway's first signal is the unit's stop, which finishes open answers as well.
    let cut = async {
        if successor.is_some() {
            signalled().await;
        }
        signalled().await;
    };
    tokio::select! {
        () = registry.tasks.wait() => {}
        () = tokio::time::sleep(GRACE) => tracing::warn!(open = registry.tasks.len(), "closed the remaining answers after 10 minutes"),
        () = cut => tracing::warn!(open = registry.tasks.len(), "closed the remaining answers because of another signal"),
    }
    Ok(())
}

/// Starts the program again and passes it the control socket.
async fn replace(lasting: Option<&OwnedFd>) -> anyhow::Result<tokio::process::Child> {
    let control = lasting
        .context("the control socket does not come from systemd; start a new gateway with --take-over instead")?
        .try_clone()?;
    let new = successor::start(control).await?;
    let pid = new.id().context("the new gateway ended after it was ready")?;
    tracing::info!(pid, "replaced by a new gateway");
    ash_observe::systemd::main_pid(pid);
    Ok(new)
}
