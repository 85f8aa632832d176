//! Finds launcher and gateway by their sockets, or starts them.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::users::{Account, Accounts};
use super::{BootError, keeper};
use crate::config::{Config, Upstream};
use ash_kernel::seqpacket;
use ash_model::UNLIMITED;
use ash_protocol::{gateway, launcher};

/// Time limit for a started companion to answer.
const START: Duration = Duration::from_secs(10);
/// Timeout of `Hello` to a running one. It answers within microseconds; more is for a host that
/// swaps.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a keeper may have no answering process before a stop ends it. A start takes
/// milliseconds.
const SILENT: Duration = Duration::from_secs(2);
const LAUNCHER: &str = "ash-launcher";
const GATEWAY: &str = "ash-gateway";
/// Lines of a companion's log shown when its start fails.
const TAIL: usize = 15;
/// Environment variables that a companion gets from ashd's first stage.
const KEPT: [&str; 7] = ["PATH", "LANG", "TZ", "RUST_BACKTRACE", "RUST_LOG", "ASH_LOG", "SSL_CERT_FILE"];

/// The state of a companion's socket.
#[derive(Debug)]
enum Answer<R> {
    Reply(R),
    /// No process listens: no file, or the file of an ended process.
    Nobody,
}

/// Starts missing companions. Starts both before it waits for either; if one fails, ends those it
/// started.
pub(super) fn ensure(config: &Config, accounts: &Accounts) -> Result<(), BootError> {
    let mut started = Vec::new();
    let result = start_missing(config, accounts, &mut started);
    if result.is_err() {
        started.iter_mut().for_each(end);
    }
    result
}

fn start_missing(config: &Config, accounts: &Accounts, started: &mut Vec<Child>) -> Result<(), BootError> {
    let companions: [(Companion, Version); 2] = [
        (Companion::launcher(config, accounts)?, launcher_version),
        (Companion::gateway(config, accounts), gateway_version),
    ];
    let mut waiting = Vec::new();
    for (companion, version) in companions {
        if version(&config.run_dir)?.is_none() {
            // It has a keeper: it is restarting after a crash, or an earlier start of ashd was
            // interrupted.
            let kept = companion.keeper(&config.run_dir)?.is_some();
            if !kept {
                started.push(companion.start(config)?);
            }
            waiting.push((companion, version, (!kept).then_some(started.len().saturating_sub(1))));
        }
    }
    for (companion, version, own) in waiting {
        companion.wait(config, started, own, version)?;
    }
    Ok(())
}

/// Asks the companion of a run directory for its version; `None` when none runs.
type Version = fn(&Path) -> Result<Option<String>, BootError>;

struct Companion {
    program: &'static str,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, String)>,
}

impl Companion {
    fn launcher(config: &Config, accounts: &Accounts) -> Result<Self, BootError> {
        let mut arguments = arguments(config, &accounts.ashd);
        arguments.extend(["--data-dir".into(), config.data_dir.clone().into()]);
        arguments.extend(["--claude-dir".into(), config.claude.dir.clone().into()]);
        arguments.extend(["--uid-base".into(), config.launcher.uid_base.to_string().into()]);
        arguments.extend(["--uid-count".into(), config.launcher.uid_count.to_string().into()]);
        arguments.extend(["--cgroup".into(), config.launcher.cgroup.clone().into()]);
        if let Some(binary) = &config.claude.binary {
            arguments.extend(["--claude-binary".into(), binary.clone().into()]);
        }
        if !Path::new(LAUNCHER_FILE).exists() {
            arguments.extend(["--config".into(), write_ceiling(config)?.into()]);
        }
        Ok(Self { program: LAUNCHER, arguments, environment: Vec::new() })
    }

    /// Passes the model key only in the environment: all users could read an argument.
    fn gateway(config: &Config, accounts: &Accounts) -> Self {
        let mut arguments = arguments(config, &accounts.ashd);
        arguments.extend(["--user".into(), accounts.gateway.name.clone().into()]);
        let upstream = match &config.gateway.upstream {
            Upstream::Offline => "offline".to_owned(),
            Upstream::Url(url) => url.clone(),
        };
        arguments.extend(["--upstream".into(), upstream.into()]);
        arguments.extend(["--state-dir".into(), config.gateway_state_dir().into()]);
        if config.gateway.allow_insecure_upstream {
            arguments.push("--allow-insecure-upstream".into());
        }
        let mut environment = Vec::new();
        if let Some(key) = &config.gateway.api_key {
            environment.push(("ANTHROPIC_API_KEY", key.clone()));
        }
        if !config.gateway.custom_headers.is_empty() {
            let lines: Vec<String> =
                config.gateway.custom_headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            environment.push(("ANTHROPIC_CUSTOM_HEADERS", lines.join("\n")));
        }
        Self { program: GATEWAY, arguments, environment }
    }

    fn log(&self, run_dir: &Path) -> PathBuf {
        run_dir.join(format!("{}.log", self.program.trim_start_matches("ash-")))
    }

    /// Starts it below a keeper, with its output in a file of the run directory.
    fn start(&self, config: &Config) -> Result<Child, BootError> {
        let program = find(self.program)?;
        let path = self.log(&config.run_dir);
        let failed = || BootError::io(path.display().to_string());
        let log = OpenOptions::new().append(true).create(true).mode(0o640).open(&path).map_err(failed())?;
        let error = log.try_clone().map_err(failed())?;
        let mut keeper = Command::new(std::env::current_exe().map_err(BootError::io("own program"))?);
        keeper
            .arg(keeper::KEEP)
            .arg(keeper_file(&config.run_dir, self.program))
            .arg("--")
            .arg(&program)
            .args(&self.arguments);
        keeper.stdin(Stdio::null()).stdout(log).stderr(error).current_dir("/").env_clear();
        keeper.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        keeper.envs(self.environment.iter().cloned());
        tracing::info!(program = %program.display(), log = %path.display(), "starting");
        keeper.spawn().map_err(BootError::io(program.display().to_string()))
    }

    /// Waits until it answers. `own` is its keeper among those started here.
    fn wait(
        &self,
        config: &Config,
        started: &mut Vec<Child>,
        own: Option<usize>,
        version: Version,
    ) -> Result<(), BootError> {
        let (start, mut own) = (Instant::now(), own);
        loop {
            if version(&config.run_dir)?.is_some() {
                return Ok(());
            }
            let ended = match own {
                Some(n) => started[n].try_wait().map_err(BootError::io(self.program))?.is_some(),
                None => true,
            };
            let why = if start.elapsed() > START {
                format!("did not answer within {} s", START.as_secs())
            } else if !ended || self.keeper(&config.run_dir)?.is_some() {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            } else if own.is_none() {
                // The existing keeper gave up.
                started.push(self.start(config)?);
                own = Some(started.len() - 1);
                continue;
            } else {
                "failed to start".to_owned()
            };
            let path = self.log(&config.run_dir);
            return Err(BootError::Refused(format!("{} {why}; {}:\n{}", self.program, path.display(), tail(&path))));
        }
    }

    /// The pid of its keeper, if one runs.
    fn keeper(&self, run_dir: &Path) -> Result<Option<String>, BootError> {
        let file = keeper_file(run_dir, self.program);
        keeper::holder(&file).map_err(BootError::io(file.display().to_string()))
    }
}

/// The launcher's configuration file; if it exists, its ceiling replaces `[launcher.ceiling]` of
/// ashd.
const LAUNCHER_FILE: &str = "/etc/ashd/launcher.toml";

/// Writes `<run dir>/launcher.toml` with the ceiling of ashd's configuration.
fn write_ceiling(config: &Config) -> Result<PathBuf, BootError> {
    let path = config.run_dir.join("launcher.toml");
    let ceiling = &config.launcher.ceiling;
    let mut text = format!(
        "# Written by ashd from [launcher.ceiling] at each start.\n[ceiling]\nmemory_bytes = {}\nswap_bytes = {}\n\
         cpu_millis = {}\ncpu_weight = {}\npids = {}\n",
        ceiling.memory_bytes, ceiling.swap_bytes, ceiling.cpu_millis, ceiling.cpu_weight, ceiling.pids
    );
    for (name, value) in [
        ("io_read_bps", ceiling.io_read_bps),
        ("io_write_bps", ceiling.io_write_bps),
        ("io_read_iops", ceiling.io_read_iops),
        ("io_write_iops", ceiling.io_write_iops),
    ] {
        if value != UNLIMITED {
            text.push_str(&format!("{name} = {value}\n"));
        }
    }
    let unfinished = path.with_extension("toml.new");
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, &path))
        .map_err(BootError::io(path.display().to_string()))?;
    Ok(path)
}

/// Ends a keeper and its process: both are in the keeper's session.
fn end(keeper: &mut Child) {
    use nix::sys::signal::{Signal, killpg};
    use nix::unistd::Pid;
    if let Ok(pid) = i32::try_from(keeper.id())
        && matches!(keeper.try_wait(), Ok(None))
    {
        // It may have ended meanwhile.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGTERM);
        drop(keeper.wait());
    }
}

/// The file that the keeper of a program locks.
fn keeper_file(run_dir: &Path, program: &str) -> PathBuf {
    run_dir.join(format!("{}.keeper", program.trim_start_matches("ash-")))
}

fn arguments(config: &Config, client: &Account) -> Vec<OsString> {
    vec!["--run-dir".into(), config.run_dir.clone().into(), "--client-user".into(), client.name.clone().into()]
}

/// Searches beside this program (a build, an unpacked archive), in the package's directory and in
/// PATH.
fn find(program: &str) -> Result<PathBuf, BootError> {
    let own = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = own.into_iter().chain([PathBuf::from("/usr/lib/ashd")]).chain(std::env::split_paths(&path));
    places.map(|dir| dir.join(program)).find(|file| file.is_file()).ok_or_else(|| {
        BootError::Refused(format!("{program} not found beside ashd, in /usr/lib/ashd or in PATH; install it"))
    })
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_else(|why| why.to_string());
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// Sends one request on a new connection and returns the reply.
fn ask<Q: Serialize, R: DeserializeOwned>(
    path: &Path,
    request: &Q,
    patience: Duration,
) -> Result<Answer<R>, BootError> {
    let failed = || BootError::io(format!("{} does not answer", path.display()));
    let socket = match seqpacket::connect(path, false) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            return Ok(Answer::Nobody);
        }
        Err(error) => return Err(failed()(error)),
    };
    let time = TimeVal::new(patience.as_secs().try_into().unwrap_or(i64::MAX), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &time).map_err(BootError::errno("receive time-out"))?;
    setsockopt(&socket, sockopt::SendTimeout, &time).map_err(BootError::errno("send time-out"))?;
    let text = serde_json::to_vec(request).map_err(|why| failed()(why.into()))?;
    let mut buffer = vec![0; launcher::MAX_PACKET];
    let packet = match seqpacket::send(socket.as_fd(), &text, &[])
        .and_then(|()| seqpacket::recv(socket.as_fd(), &mut buffer))
    {
        Ok(packet) if packet.len > 0 => packet,
        // It ended after it accepted the connection.
        Ok(_) => return Ok(Answer::Nobody),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe) => {
            return Ok(Answer::Nobody);
        }
        Err(error) => return Err(failed()(error)),
    };
    serde_json::from_slice(&buffer[..packet.len]).map(Answer::Reply).map_err(|why| failed()(why.into()))
}

pub(super) fn launcher_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("launcher.sock")
}

pub(super) fn gateway_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("gateway.sock")
}

/// The version of the running launcher; `None` when none runs.
fn launcher_version(run_dir: &Path) -> Result<Option<String>, BootError> {
    use launcher::{PROTOCOL, Reply, Request};
    let path = launcher_socket(run_dir);
    match ask(&path, &Request::Hello, ANSWER)? {
        Answer::Nobody => Ok(None),
        Answer::Reply(Reply::Hello { protocol: PROTOCOL, version, .. }) => Ok(Some(version)),
        Answer::Reply(Reply::Hello { protocol, version, .. }) => Err(BootError::Refused(format!(
            "the launcher at {} is version {version} and speaks protocol {protocol}, this ashd speaks {PROTOCOL}; `ashd stop` \
             ends it (and all sandboxes), the next start starts the right one",
            path.display()
        ))),
        Answer::Reply(other) => Err(BootError::Refused(format!("{}: unexpected answer {other:?}", path.display()))),
    }
}

fn gateway_version(run_dir: &Path) -> Result<Option<String>, BootError> {
    use gateway::{Reply, Request};
    let path = gateway_socket(run_dir);
    match ask(&path, &Request::Hello, ANSWER)? {
        Answer::Nobody => Ok(None),
        Answer::Reply(Reply::Hello { version, .. }) => Ok(Some(version)),
        Answer::Reply(other) => Err(BootError::Refused(format!("{}: unexpected answer {other:?}", path.display()))),
    }
}

/// Ends every sandbox and the launcher. `false` when none ran.
pub(super) fn shut_down_launcher(run_dir: &Path, patience: Duration) -> Result<bool, BootError> {
    use launcher::{Reply, Request};
    let socket = launcher_socket(run_dir);
    shut_down(&socket, &keeper_file(run_dir, LAUNCHER), patience, || {
        match ask(&socket, &Request::Shutdown, patience)? {
            Answer::Nobody => Ok(false),
            Answer::Reply(Reply::Error(why)) => Err(BootError::Refused(format!("the launcher: {why}"))),
            Answer::Reply(_) => Ok(true),
        }
    })
}

/// Ends the gateway, which first finishes open answers. `false` when none ran.
pub(super) fn shut_down_gateway(run_dir: &Path, patience: Duration) -> Result<bool, BootError> {
    use gateway::{Reply, Request};
    let socket = gateway_socket(run_dir);
    shut_down(&socket, &keeper_file(run_dir, GATEWAY), patience, || match ask(&socket, &Request::Shutdown, patience)? {
        Answer::Nobody => Ok(false),
        Answer::Reply(Reply::Error { message }) => Err(BootError::Refused(format!("the gateway: {message}"))),
        Answer::Reply(_) => Ok(true),
    })
}

/// Repeats the request until no process answers and no keeper is left: a companion that crashed is
/// restarted, and must be asked too. Ends a keeper that waits longer, for a missing or failing
/// program.
fn shut_down(
    socket: &Path,
    keeper: &Path,
    patience: Duration,
    request: impl Fn() -> Result<bool, BootError>,
) -> Result<bool, BootError> {
    let start = Instant::now();
    let mut ended = false;
    let mut silent = Instant::now();
    loop {
        match request() {
            Ok(true) => (ended, silent) = (true, Instant::now()),
            Ok(false) => {}
            // It may be closing.
            Err(_) if start.elapsed() < patience => {}
            Err(error) => return Err(error),
        }
        let kept = keeper::holder(keeper).map_err(BootError::io(keeper.display().to_string()))?;
        if kept.is_none() && seqpacket::connect(socket, true).is_err() {
            return Ok(ended);
        }
        if silent.elapsed() > SILENT
            && let Some(pid) = kept.and_then(|pid| pid.parse().ok())
        {
            // The process group contains the keeper and its process; it may have ended meanwhile.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        if start.elapsed() > patience {
            return Err(BootError::Refused(format!(
                "the process at {} did not end within {} s; see its log in the same directory",
                socket.display(),
                patience.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
