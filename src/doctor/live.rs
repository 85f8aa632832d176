//! A throw-away sandbox: set up by the real launcher, measured from within, and gone again.
//!
//! ```text
//!   launcher answers ----> used as it is (its cgroup is the one systemd delegates)
//!   none runs -----------> one of our own: temporary directories, /bin/true for claude, ended afterwards
//! ```

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Finding, failure, install, ok, warning};
use crate::config::Config;
use crate::launcher::init_protocol::Exit;
use crate::launcher::protocol::{ClaudeBinary, Create};
use crate::model::{TenantId, iso, now_ms};
use crate::sandbox::confinement::{Floor, Report};
use crate::sandbox::{Launcher, LauncherError, Sandbox, measure};

const CHECK: &str = "sandbox";
/// How long a launcher of our own may take until it answers, and to end.
const LAUNCHER_WITHIN: Duration = Duration::from_secs(10);
/// `claude --version` takes a second on a slow disk.
const CLAUDE_WITHIN: Duration = Duration::from_secs(30);

pub async fn examine(config: &Config) -> Vec<Finding> {
    if !nix::unistd::geteuid().is_root() {
        return vec![warning(CHECK, "not tried: a sandbox is set up by root", "sudo ashctl doctor")];
    }
    let has_claude = install::claude_binary(config).is_file();
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
            let findings = throw_away(config, &launcher, &own.dir.join("data"), ClaudeBinary::Configured).await;
            drop(own);
            findings
        }
        Err(why) => vec![failure(
            CHECK,
            format!("no launcher runs, and none can be started: {why}"),
            "systemctl status ash-launcher",
        )],
    }
}

/// Makes the sandbox, measures it, and leaves nothing.
async fn throw_away(config: &Config, launcher: &Launcher, data: &Path, claude: ClaudeBinary) -> Vec<Finding> {
    let id = Uuid::new_v4();
    let dir = match SessionDir::make(data, id) {
        Ok(dir) => dir,
        Err(error) => {
            return vec![failure(
                CHECK,
                format!("{}: {error}", data.display()),
                "systemctl start ashd, which makes it",
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
            vec![failure(CHECK, format!("cannot be set up: {why}"), mend)]
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
    let mut findings = vec![ok(CHECK, format!("set up in {:.1} ms", set_up.as_secs_f64() * 1000.0))];
    let Some(mut events) = sandbox.take_events() else {
        return vec![failure(CHECK, "its events were taken", "run it again")];
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
        failure("workloads", broken.join("; "), "these should work in a sandbox: see docs/sandbox.md, then report it")
    });
    findings.push(claude_starts(sandbox, &mut events).await);
    findings
}

/// The binary of the sandbox says its version. A launcher of our own has /bin/true in its place, which says another one.
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

/// `<data>/sessions/<id>` as ashd would make it; removed with the guard.
struct SessionDir {
    own: PathBuf,
    /// `<data>/sessions`, where it was made for this.
    parent: Option<PathBuf>,
}

impl SessionDir {
    fn make(data: &Path, id: Uuid) -> std::io::Result<Self> {
        let sessions = data.join("sessions");
        // ashd makes it with its first session, as its own like everything there.
        let fresh = !sessions.is_dir();
        let owner = fs::metadata(if fresh { data } else { &sessions })?;
        let dir = Self { own: sessions.join(id.to_string()), parent: fresh.then(|| sessions.clone()) };
        let paths = [dir.own.clone(), dir.own.join("workspace"), dir.own.join("home")];
        for path in dir.parent.iter().chain(&paths) {
            fs::create_dir(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            chown(path, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(dir)
    }
}

impl Drop for SessionDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.own).ok();
        // Not when a session was made there meanwhile: then it is not empty.
        if let Some(parent) = &self.parent {
            fs::remove_dir(parent).ok();
        }
    }
}

/// A launcher that lives as long as this.
struct OwnLauncher {
    dir: PathBuf,
    process: Child,
}

impl OwnLauncher {
    async fn start(config: &Config) -> Result<(Self, Launcher), String> {
        let program = install::find("ash-launcher").ok_or("ash-launcher is not installed")?;
        // On the data directory's own file system, where there is one: that is the one whose mounts matter.
        let base = if config.data_dir.is_dir() { config.data_dir.clone() } else { std::env::temp_dir() };
        let dir = base.join(format!(".doctor-{}", std::process::id()));
        let made = || -> std::io::Result<()> {
            fs::create_dir(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
            fs::create_dir_all(dir.join("data/sessions"))?;
            chown(dir.join("data/sessions"), Some(config.launcher.uid_base), Some(config.launcher.uid_base))
        };
        let log = made().and_then(|()| fs::File::create(dir.join("log"))).map_err(|e| {
            fs::remove_dir_all(&dir).ok();
            format!("{}: {e}", dir.display())
        })?;
        let binary = install::claude_binary(config);
        let claude = if binary.is_file() { binary } else { PathBuf::from("/bin/true") };
        // The socket's path must be short, and the launcher's clients are found by it.
        let run = Path::new("/run").join(format!("ash-doctor-{}", std::process::id()));
        let process = Command::new(program)
            .arg("--run-dir")
            .arg(&run)
            .arg("--data-dir")
            .arg(dir.join("data"))
            .arg("--claude-binary")
            .arg(claude)
            .args(["--client-user", &config.launcher.uid_base.to_string()])
            .args(["--uid-base", &(config.launcher.uid_base + 2).to_string(), "--uid-count", "16"])
            .args(["--cgroup", &format!("ashd-doctor-{}", std::process::id())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let process = process.map_err(|error| {
            fs::remove_dir_all(&dir).ok();
            error.to_string()
        })?;
        let mut own = Self { dir, process };
        let began = Instant::now();
        loop {
            if let Ok(launcher) = Launcher::connect(&run).await {
                return Ok((own, launcher));
            }
            let ended = own.process.try_wait().ok().flatten();
            if ended.is_some() || began.elapsed() > LAUNCHER_WITHIN {
                let log = fs::read_to_string(own.dir.join("log")).unwrap_or_default();
                return Err(log.lines().next_back().unwrap_or("it does not answer").to_owned());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for OwnLauncher {
    fn drop(&mut self) {
        // SIGTERM: it ends its sandboxes, removes its cgroups and its run directory's socket.
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
        fs::remove_dir_all(&self.dir).ok();
        fs::remove_dir_all(Path::new("/run").join(format!("ash-doctor-{}", std::process::id()))).ok();
    }
}
