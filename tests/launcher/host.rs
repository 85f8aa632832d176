//! One launcher for a test.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ash_model::{Limits, TenantId};
use ash_protocol::init::{Exit, SpawnSpec};
use ash_protocol::launcher::{ClaudeBinary, Create};
use ashd::sandbox::{Launcher, Sandbox, SandboxEvent};
use uuid::Uuid;

#[path = "../common/patience.rs"]
pub mod patience;

pub use patience::patient;

/// Owner of the session directories; belongs to no account.
pub const CLIENT: u32 = 61_234;

pub struct Host {
    dir: tempfile::TempDir,
    pub cgroup: String,
    uid_base: u32,
    process: Option<Child>,
    program: PathBuf,
    prelude: Option<String>,
}

impl Host {
    pub fn start(test: &str) -> Self {
        Self::build(test, &ash_testkit::program("ash-launcher"), None)
    }

    #[allow(dead_code)]
    pub fn start_program(test: &str, program: &Path) -> Self {
        Self::build(test, program, None)
    }

    /// Shell code runs first, in the same process and in a mount namespace of its own.
    #[allow(dead_code)]
    pub fn start_after(test: &str, prelude: String) -> Self {
        Self::build(test, &ash_testkit::program("ash-launcher"), Some(prelude))
    }

    /// With the range of uids of another launcher.
    #[allow(dead_code)]
    pub fn start_sharing(test: &str, other: &Host) -> Self {
        Self::build_on(test, &ash_testkit::program("ash-launcher"), None, other.uid_base)
    }

    fn build(test: &str, program: &Path, prelude: Option<String>) -> Self {
        let pid = std::process::id();
        Self::build_on(test, program, prelude, 1_800_000_000 + (pid % 100_000) * 64)
    }

    fn build_on(test: &str, program: &Path, prelude: Option<String>, uid_base: u32) -> Self {
        let program = program.to_owned();
        let dir = tempfile::Builder::new().prefix("ashd-launcher-").tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("sessions")).expect("sessions");
        std::fs::create_dir_all(dir.path().join("claude/test")).expect("claude");
        std::fs::copy("/bin/true", dir.path().join("claude/test/claude")).expect("a binary");
        for made in [&data, &data.join("sessions")] {
            chown(made, Some(CLIENT), Some(CLIENT)).expect("chown");
        }
        std::fs::write(dir.path().join("launcher.toml"), "[ceiling]\npids = 1000\n").expect("configuration");
        let pid = std::process::id();
        let mut host =
            Self { dir, cgroup: format!("ashd-test-{test}-{pid}"), uid_base, process: None, program, prelude };
        host.launch();
        host
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Versions of claude; `test` is one.
    #[allow(dead_code)]
    pub fn claude_dir(&self) -> PathBuf {
        self.dir.path().join("claude")
    }

    #[allow(dead_code)]
    pub fn uids(&self) -> std::ops::Range<u32> {
        self.uid_base..self.uid_base + 64
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("launcher.toml")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(if self.prelude.is_some() { Path::new("unshare") } else { &self.program });
        if let Some(lines) = &self.prelude {
            let script = format!("set -e\n{lines}\nexec \"$0\" \"$@\"");
            command.args(["--mount", "--", "/bin/sh", "-c", &script]).arg(&self.program);
        }
        command.arg("--run-dir").arg(self.run_dir()).arg("--data-dir").arg(self.data_dir());
        command.arg("--claude-dir").arg(self.claude_dir());
        command.arg("--config").arg(self.config()).args(["--client-user", &CLIENT.to_string()]);
        command.args(["--uid-base", &self.uid_base.to_string(), "--uid-count", "64", "--cgroup", &self.cgroup]);
        command.stdin(Stdio::null());
        command
    }

    pub fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).expect("log");
        let socket = self.run_dir().join("launcher.sock");
        std::fs::remove_file(&socket).ok();
        self.process = Some(self.command().stderr(log).spawn().expect("the launcher starts"));
        wait_for("the launcher's socket", || socket.exists());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.as_ref().expect("running").id()).expect("a pid")
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("signalled");
    }

    /// Waits for the launcher's end. Returns whether it was clean.
    pub fn ended(&mut self) -> bool {
        let status = self.process.take().expect("running").wait().expect("reaped");
        status.success()
    }

    pub async fn client(&self) -> Launcher {
        match Launcher::connect(&self.run_dir()).await {
            Ok(launcher) => launcher,
            Err(error) => panic!("{error}\n{}", self.log()),
        }
    }

    /// A session's directories, as ashd creates them.
    pub fn session(&self) -> Uuid {
        let id = Uuid::now_v7();
        let dir = self.data_dir().join("sessions").join(id.to_string());
        for made in [dir.clone(), dir.join("workspace"), dir.join("home")] {
            std::fs::create_dir(&made).expect("session directory");
            std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o700)).expect("mode");
            chown(&made, Some(CLIENT), Some(CLIENT)).expect("chown");
        }
        id
    }

    pub fn session_dir(&self, id: Uuid) -> PathBuf {
        self.data_dir().join("sessions").join(id.to_string())
    }

    pub async fn sandbox(&self, launcher: &Launcher, limits: Limits) -> Sandbox {
        match launcher.create(request(self.session(), limits)).await {
            Ok(sandbox) => sandbox,
            Err(error) => panic!("{error}\n{}", self.log()),
        }
    }

    /// This launcher's group in every hierarchy: below `/sys/fs/cgroup` itself on cgroup v2, below
    /// each of its directories on the hybrid layout.
    pub fn groups(&self) -> Vec<PathBuf> {
        let root = PathBuf::from("/sys/fs/cgroup");
        let below = std::fs::read_dir(&root).expect("cgroups").flatten().map(|entry| entry.path());
        below.chain([root]).map(|mount| mount.join(&self.cgroup)).filter(|group| group.is_dir()).collect()
    }

    pub fn leftovers(&self) -> Vec<PathBuf> {
        let list = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let tenants = self.groups().into_iter().flat_map(|group| list(group.join("tenants"))).filter(|p| p.is_dir());
        tenants.chain(list(self.run_dir().join("sandboxes"))).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.process.is_none() {
            // Another launcher ends what a killed one left.
            self.launch();
        }
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let clean = self.ended();
        if std::thread::panicking() {
            eprintln!("the launcher's log:\n{}", self.log());
            return;
        }
        assert!(clean, "the launcher must end cleanly:\n{}", self.log());
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new(), "{}", self.log());
        assert_eq!(self.groups(), Vec::<PathBuf>::new(), "a cgroup is left");
    }
}

pub fn request(id: Uuid, limits: Limits) -> Create {
    let claude = ClaudeBinary::Version("test".to_owned());
    Create { id, tenant: TenantId::default_tenant(), limits, claude }
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patient(Duration::from_secs(20)), "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn spec(script: &str) -> SpawnSpec {
    SpawnSpec {
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: "/workspace".into(),
        stdin: false,
        within_ms: None,
        leaves_share: false,
    }
}

/// A file for a child's output, and a descriptor to read it.
pub fn output(path: &Path) -> (OwnedFd, OwnedFd) {
    let file = File::options().create(true).append(true).open(path).expect("output");
    (file.try_clone().expect("dup").into(), file.into())
}

pub async fn run(sandbox: &Sandbox, events: &mut Events, child: u32, script: &str) -> (Exit, String) {
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    sandbox.spawn(child, &spec(script), out, err).await.expect("spawned");
    let status = exit_of(events, child).await;
    let mut text = String::new();
    File::open(file.path()).expect("output").read_to_string(&mut text).expect("text");
    (status, text)
}

pub type Events = tokio::sync::mpsc::UnboundedReceiver<SandboxEvent>;

pub async fn exit_of(events: &mut Events, child: u32) -> Exit {
    loop {
        let next =
            tokio::time::timeout(patient(Duration::from_secs(30)), events.recv()).await.expect("an event in time");
        match next.expect("events go on") {
            SandboxEvent::Exited { child: ended, status } if ended == child => return status,
            SandboxEvent::Died => panic!("the sandbox died"),
            _ => {}
        }
    }
}
