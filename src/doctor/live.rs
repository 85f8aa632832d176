//! A temporary sandbox: created by the real launcher, measured from within, and removed.
//!
//! ```text
//!   launcher answers ----> used as it is (its cgroup is the one systemd delegates)
//!   none runs -----------> a temporary one: root's directories, /bin/true as claude
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Finding, failure, install, ok, warning};
use crate::config::Config;
use crate::sandbox::confinement::{Floor, Report};
use crate::sandbox::{Launcher, LauncherError, Sandbox, measure};
use ash_kernel::beneath::Refused;
use ash_kernel::private::Private;
use ash_kernel::tree::{Owner, Tree, give};
use ash_kernel::trusted;
use ash_model::{TenantId, iso, now_ms};
use ash_protocol::init::Exit;
use ash_protocol::launcher::{ClaudeBinary, Create};

const CHECK: &str = "sandbox";
/// Time limit for a temporary launcher to answer, and to end.
const LAUNCHER_WITHIN: Duration = Duration::from_secs(10);
/// `claude --version` takes a second on a slow disk.
const CLAUDE_WITHIN: Duration = Duration::from_secs(30);

pub async fn examine(config: &Config) -> Vec<Finding> {
    if !nix::unistd::geteuid().is_root() {
        return vec![warning(CHECK, "not checked: only root can create a sandbox", "sudo ashctl doctor")];
    }
    let has_claude = trusted::file(&config.claude.program()).is_ok();
    let running = if has_claude { Launcher::connect(&config.run_dir).await.ok() } else { None };
    if let Some(launcher) = running {
        let binary = match config.claude.binary {
            Some(_) => ClaudeBinary::Configured,
            None => ClaudeBinary::Version(config.claude.version.clone()),
        };
        return throw_away(config, &launcher, &config.data_dir, binary).await;
    }
    match OwnLauncher::start(config).await {
        Ok((own, launcher)) => {
            let findings = throw_away(config, &launcher, &own.dir.path().join("data"), ClaudeBinary::Configured).await;
            drop(own);
            findings
        }
        Err(why) => vec![failure(
            CHECK,
            format!("no launcher is running, and a temporary one failed to start: {why}"),
            "systemctl status ash-launcher",
        )],
    }
}

/// Creates the sandbox, measures it, and removes everything.
async fn throw_away(config: &Config, launcher: &Launcher, data: &Path, claude: ClaudeBinary) -> Vec<Finding> {
    let id = Uuid::new_v4();
    let dir = match SessionDir::make(data, id) {
        Ok(dir) => dir,
        Err(error) => {
            return vec![failure(
                CHECK,
                format!("{}: {error}", data.display()),
                "systemctl start ashd, which creates it",
            )];
        }
    };
    let limits = config.limits.at_most(&config.launcher.ceiling);
    let create = Create { id, tenant: TenantId::default_tenant(), limits, claude };
    let began = Instant::now();
    let findings = match launcher.create(create).await {
        Ok(sandbox) => measured(config, &sandbox, began.elapsed()).await,
        Err(LauncherError::Failed(why)) => {
            let mend = why.hint.clone().unwrap_or_else(|| "see docs/sandbox.md for this step".to_owned());
            vec![failure(CHECK, format!("cannot create a sandbox: {why}"), mend)]
        }
        Err(error) => vec![failure(CHECK, error.to_string(), "systemctl restart ash-launcher")],
    };
    if let Err(error) = launcher.destroy(id).await {
        let mut findings = findings;
        findings.push(failure("sandbox's end", error.to_string(), "systemctl restart ash-launcher"));
        return findings;
    }
    drop(dir);
    findings
}

async fn measured(config: &Config, sandbox: &Sandbox, set_up: Duration) -> Vec<Finding> {
    let mut findings = vec![ok(CHECK, format!("created in {:.1} ms", set_up.as_secs_f64() * 1000.0))];
    let Some(mut events) = sandbox.take_events() else {
        return vec![failure(CHECK, "the events of the sandbox are not available", "run it again")];
    };
    let began = Instant::now();
    let inside = match measure::measure(sandbox, &mut events, 1).await {
        Ok(inside) => inside,
        Err(error) => {
            findings.push(failure("probe", error.to_string(), "apt install --reinstall ashd"));
            return findings;
        }
    };
    let took = began.elapsed();
    let asked = &config.confinement;
    let floor = Floor { layers: asked.floor.clone(), landlock_abi: asked.landlock_abi };
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let report = Report::new(inside, measure::outside(&sandbox.info), &floor, iso(now_ms()), micros);
    let attempts = report.inside.probes.len();
    findings.push(ok("probe", format!("{attempts} attempts in {:.1} ms", took.as_secs_f64() * 1000.0)));
    for verdict in &report.layers {
        findings.push(match (verdict.in_force, verdict.required) {
            (true, _) => ok(verdict.layer.as_str(), verdict.evidence.clone()),
            (false, true) => failure(verdict.layer.as_str(), verdict.evidence.clone(), verdict.layer.way_out()),
            (false, false) => warning(
                verdict.layer.as_str(),
                format!("{}; the floor allows that", verdict.evidence),
                verdict.layer.way_out(),
            ),
        });
    }
    let broken = report.broken();
    findings.push(if broken.is_empty() {
        ok("workloads", "processes, threads, code made at run time, loopback, terminals, files")
    } else {
        failure("workloads", broken.join("; "), "these must work in a sandbox: see docs/sandbox.md, then report a bug")
    });
    findings.push(claude_starts(sandbox, &mut events).await);
    findings
}

/// Runs the sandbox's binary with `--version`. A temporary launcher has /bin/true in its place.
async fn claude_starts(
    sandbox: &Sandbox,
    events: &mut tokio::sync::mpsc::UnboundedReceiver<crate::sandbox::SandboxEvent>,
) -> Finding {
    let argv = ["/opt/claude/claude", "--version"].map(str::to_owned).to_vec();
    let env = vec![("HOME".to_owned(), "/home/agent".to_owned()), ("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    match measure::run(sandbox, events, 2, argv, env, CLAUDE_WITHIN).await {
        Ok((Exit::Code(0), said)) => {
            let said = String::from_utf8_lossy(&said).lines().next().unwrap_or("nothing").to_owned();
            ok("claude starts", said)
        }
        Ok((exit, said)) => {
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            failure("claude starts", format!("{exit:?}: {said}"), "ashctl claude install --force")
        }
        Err(error) => failure("claude starts", error.to_string(), "ashctl claude install --force"),
    }
}

/// `<data>/sessions/<id>` as ashd creates it; removed with the guard.
struct SessionDir {
    data: Tree,
    sessions: Tree,
    name: String,
    /// This check created `<data>/sessions`.
    fresh: bool,
}

impl SessionDir {
    /// Uses only paths relative to descriptors: ashd owns the parents and could exchange them.
    fn make(data: &Path, id: Uuid) -> std::io::Result<Self> {
        let data = Tree::open(data)?;
        // ashd creates it with its first session, as its own.
        let fresh = !data.has(SESSIONS);
        let sessions =
            if fresh { data.make_dir(SESSIONS, 0o700, Some(data.owner())) } else { data.directory(SESSIONS) };
        let sessions = sessions?;
        let owner = Some(sessions.owner());
        let name = id.to_string();
        let made = Self { data, sessions, name, fresh };
        // Given away last, because the new owner can exchange the contents.
        let own = made.sessions.make_dir(&made.name, 0o700, None)?;
        own.make_dir("workspace", 0o700, owner)?;
        own.make_dir("home", 0o700, owner)?;
        give(&own, made.sessions.owner())?;
        Ok(made)
    }
}

impl Drop for SessionDir {
    fn drop(&mut self) {
        self.sessions.remove(&self.name).ok();
        // Fails if a session was created there meanwhile: it is then not empty.
        if self.fresh {
            self.data.remove_dir(SESSIONS).ok();
        }
    }
}

const SESSIONS: &str = "sessions";

/// A launcher that ends with this value.
struct OwnLauncher {
    dir: Private,
    run: Private,
    process: Child,
}

impl OwnLauncher {
    async fn start(config: &Config) -> Result<(Self, Launcher), String> {
        let program = install::find("ash-launcher").ok_or("ash-launcher is not installed")?;
        // Below the sandboxes' range, whose two preceding ids are for ashd and the gateway without
        // users.
        let client = config.launcher.uid_base - 3;
        let owner = Owner { uid: client, gid: client };
        let shown = |error: std::io::Error| format!("cannot create a temporary directory: {error}");
        let dir = trial_directory(&config.data_dir).map_err(shown)?;
        let made = || -> Result<fs::File, Refused> {
            dir.tree().make_dir("data", 0o755, None)?.make_dir(SESSIONS, 0o700, Some(owner))?;
            dir.tree().create_file("log")
        };
        let log = made().map_err(|refused| shown(refused.into()))?;
        let binary = config.claude.program();
        let claude = if trusted::file(&binary).is_ok() { binary } else { PathBuf::from("/bin/true") };
        // A socket's path must be short, and the launcher's clients are found by it.
        let run = Private::new(Some(Path::new("/run")), "ash-doctor", 0o755).map_err(shown)?;
        let process = Command::new(program)
            .arg("--run-dir")
            .arg(run.path())
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .arg("--claude-binary")
            .arg(claude)
            .args(["--client-user", &client.to_string()])
            // The same range as the installed launcher's: each leaves ids alone that the other
            // uses.
            .args(["--uid-base", &config.launcher.uid_base.to_string()])
            .args(["--uid-count", &config.launcher.uid_count.to_string()])
            .args(["--cgroup", &format!("ashd-doctor-{}", std::process::id())])
            // If this process is killed, its end of the pipe closes and the launcher ends too.
            .arg("--while-stdin-is-open")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut own = Self { dir, run, process };
        let began = Instant::now();
        loop {
            if let Ok(launcher) = Launcher::connect(own.run.path()).await {
                return Ok((own, launcher));
            }
            let ended = own.process.try_wait().ok().flatten();
            if ended.is_some() || began.elapsed() > LAUNCHER_WITHIN {
                let log = own.dir.tree().read("log", 1 << 20).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                return Err(log.lines().next_back().unwrap_or("it does not answer").to_owned());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for OwnLauncher {
    fn drop(&mut self) {
        // SIGTERM: it ends its sandboxes, and removes its cgroups and its socket.
        if let Ok(pid) = i32::try_from(self.process.id()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).ok();
        }
        let began = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) {
            if began.elapsed() > LAUNCHER_WITHIN {
                self.process.kill().ok();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A directory of root, beside the data directory if that is on the same file system, so that the
/// same mount options apply. Otherwise (a separate mount, or a parent that others can write):
/// `/run`.
fn trial_directory(data_dir: &Path) -> std::io::Result<Private> {
    let beside = || {
        let data = Tree::open(data_dir).ok()?;
        let above = data.path().parent()?;
        let same = device(&data)? == device(&Tree::open(above).ok()?)?;
        if same { Private::new(Some(above), ".ash-doctor", 0o755).ok() } else { None }
    };
    beside().map_or_else(|| Private::new(Some(Path::new("/run")), "ash-doctor-data", 0o755), Ok)
}

fn device(tree: &Tree) -> Option<u64> {
    rustix::fs::fstat(tree).ok().map(|stat| stat.st_dev)
}
