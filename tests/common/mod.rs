//! The harness of tests with a running daemon: the real `ashd`, `ash-launcher` and `ash-gateway`,
//! started as root as a user would, each with its own directories, cgroup and port.
//!
//! ```text
//!   Daemon::start -> ashd serve --config ...   (data dir, run dir, cgroup: unique)
//!      .api()     -> Api: JSON, streams
//!      .kill9() .restart() .stop()
//!   drop          -> ashd stop, then a count of what is left: anything fails the test
//! ```
#![allow(dead_code, unused_imports, clippy::unwrap_used, missing_debug_implementations)]

pub mod api;
pub mod churn;
pub mod disk;
pub mod journal;
pub mod leftovers;
pub mod parked;
pub mod patience;
pub mod procs;
pub mod programs;
pub mod raw;
pub mod skew;
pub mod swap;
pub mod wire;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use api::Api;
use patience::patient;
pub use programs::{fake_claude, real_claude};

/// Longest wait for the daemon to serve, or to end.
const SOON_ENOUGH: Duration = Duration::from_secs(20);

pub const MIB: u64 = 1 << 20;

/// Differences of a test's daemon from the default.
#[derive(Clone, Default)]
pub struct Options {
    /// Runs the real Claude Code instead of the fake one.
    pub real_claude: bool,
    /// Variables of the daemon's environment, in addition to the harness's.
    pub env: Vec<(String, String)>,
    /// Lines of `ashd.toml`, in addition to the harness's.
    pub config: String,
    /// The data directory is a tmpfs of this size, such as `48m`.
    pub disk: Option<&'static str>,
    /// The data directory is a disk of this size that can be made to fail, see
    /// [`Daemon::breakable`].
    pub breakable: Option<&'static str>,
    /// Its wall clock belongs to the test, see [`Daemon::skew`].
    pub skewed: bool,
    /// Maximum open descriptors of each of its processes.
    pub descriptors: Option<u32>,
    /// Number of parked sandboxes, see [`parked`].
    pub parked: Option<u32>,
    /// Shell code that runs before ashd, in the same process and in a mount namespace of its own.
    pub prelude: Option<String>,
}

impl Options {
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    pub fn parked(mut self, count: u32) -> Self {
        self.parked = Some(count);
        self
    }

    pub fn disk(mut self, size: &'static str) -> Self {
        self.disk = Some(size);
        self
    }

    pub fn real_claude(mut self) -> Self {
        self.real_claude = true;
        self
    }
}

pub struct Daemon {
    /// The directory of everything of this daemon.
    pub dir: PathBuf,
    /// The name of its cgroup in every hierarchy.
    pub cgroup: String,
    pub port: u16,
    pub key: String,
    pub breakable: Option<disk::Disk>,
    pub skew: Option<skew::Skew>,
    options: Options,
    claude: PathBuf,
    child: Option<Child>,
    starts: u32,
    stopped: bool,
}

impl Daemon {
    pub fn start(options: Options) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests start sandboxes: run them as root (sudo ./scripts/test)"
        );
        // Before anything is created that would have to be removed.
        let claude = if options.real_claude { real_claude() } else { fake_claude() };
        let name = format!("ashd-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new("/tmp").join(&name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!("{}\n[launcher]\ncgroup = \"{name}\"\n", options.config);
        fs::write(dir.join("ashd.toml"), config).unwrap();
        parked::configure(&dir, options.parked);
        let skew = options.skewed.then(|| skew::Skew::make(&dir));
        let mut daemon = Self {
            dir,
            cgroup: name,
            port: 0,
            key: String::new(),
            breakable: None,
            skew,
            options,
            claude,
            child: None,
            starts: 0,
            stopped: false,
        };
        if let Some(size) = daemon.options.disk {
            fs::create_dir(daemon.data()).unwrap();
            daemon.mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "tmpfs"]);
        }
        if let Some(size) = daemon.options.breakable {
            fs::create_dir(daemon.data()).unwrap();
            daemon.breakable = Some(disk::Disk::make(daemon.dir.join("disk.img"), daemon.data(), size));
        }
        daemon.launch();
        daemon
    }

    /// A daemon with an agent `a`, and its client.
    pub async fn deployed(options: Options) -> (Self, Api) {
        let daemon = Self::start(options);
        let api = daemon.api();
        api.deploy("a").await;
        (daemon, api)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// mount(8) on the data directory.
    pub fn mount(&self, arguments: &[&str]) {
        let out = Command::new("mount").args(arguments).arg(self.data()).output().unwrap();
        assert!(out.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn unmount(&self) {
        if self.options.disk.is_some() || self.breakable.is_some() {
            let _ = nix::mount::umount2(&self.data(), nix::mount::MntFlags::MNT_DETACH);
        }
    }

    /// Starts ashd, which must refuse. Returns its output.
    pub fn refuses_to_start(&mut self) -> String {
        self.spawn();
        let (mut child, start) = (self.child.take().expect("spawned"), Instant::now());
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > patient(SOON_ENOUGH) {
                let _ = child.kill();
                let _ = child.wait();
                panic!("ashd starts, or hangs\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!child.wait().unwrap().success(), "ashd ended as if all were well");
        fs::read_to_string(self.dir.join(format!("ashd-{}.log", self.starts))).unwrap()
    }

    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn api(&self) -> Api {
        Api::new(self.port, Some(&self.key))
    }

    pub fn agent_dir(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.dir.join("agents").join(name);
        for (path, text) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    fn command(&self, verb: &str) -> Command {
        let program = env!("CARGO_BIN_EXE_ashd");
        let shell = self.options.descriptors.is_some() || self.options.prelude.is_some();
        let mut command = Command::new(if shell { "/bin/sh" } else { program });
        if let Some(most) = self.options.descriptors {
            command.arg("-c").arg(format!("ulimit -n {most} && exec \"$0\" \"$@\"")).arg(program);
        } else if let Some(lines) = &self.options.prelude {
            let inside = format!("set -e\n{lines}\nexec \"$0\" \"$@\"");
            command.args(["-c", "exec unshare --mount -- /bin/sh -c \"$0\" \"$@\""]).arg(inside).arg(program);
        }
        if let Some(skew) = &self.skew {
            command = skew.command(program);
        }
        command.arg(verb).arg("--config").arg(self.dir.join("ashd.toml")).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("ASH_DATA_DIR", self.data()).env("ASH_RUN_DIR", self.run());
        command.env("ASH_HOST", "127.0.0.1").env("ASH_PORT", "0").env("ASH_UPSTREAM", "offline");
        command.env("ASH_CLAUDE_BIN", &self.claude);
        command.envs(self.options.env.iter().cloned());
        command
    }

    fn spawn(&mut self) {
        self.starts += 1;
        let log = fs::File::create(self.dir.join(format!("ashd-{}.log", self.starts))).unwrap();
        let _ = fs::remove_file(self.run().join("port"));
        let mut command = self.command("serve");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().expect("ashd can be started"));
    }

    /// Starts ashd and kills it after this time, ready or not.
    pub fn kill_in_start(&mut self, after: Duration) {
        self.spawn();
        std::thread::sleep(after);
        self.kill9();
    }

    fn launch(&mut self) {
        self.spawn();
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("ashd ended at its start: {status}\n{}", self.logs());
            }
            let port = fs::read_to_string(self.run().join("port")).ok().and_then(|text| text.trim().parse().ok());
            if let Some(port) = port
                && std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            {
                self.port = port;
                break;
            }
            assert!(start.elapsed() < patient(SOON_ENOUGH), "ashd does not serve\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
        let own = self.options.env.iter().find(|(name, _)| name == "ASH_API_KEY").map(|(_, key)| key.clone());
        self.key = own.unwrap_or_else(|| {
            let path = self.data().join("initial-api-key");
            fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
        });
    }

    /// SIGKILL to ashd alone; launcher, gateway and sandboxes continue.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM. Returns the time until it ended.
    pub fn terminate(&mut self) -> Duration {
        let mut child = self.child.take().expect("the daemon runs");
        let start = Instant::now();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > patient(SOON_ENOUGH) {
                let _ = child.kill();
                let _ = child.wait();
                panic!("ashd does not end after SIGTERM\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    /// Starts ashd again on the same directories, after `kill9` or `terminate`.
    pub fn restart(&mut self) {
        if self.child.is_some() {
            self.terminate();
        }
        self.launch();
    }

    /// Ends every process with `ashd stop`; `restart` continues from the files.
    pub fn halt(&mut self) {
        let said = self.command("stop").output().expect("ashd can be started");
        if self.child.is_some() {
            self.terminate();
        }
        assert!(said.status.success(), "{}\n{}", String::from_utf8_lossy(&said.stderr), self.logs());
    }

    /// Ends everything and counts what is left.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopped = true;
        let said = self.command("stop").output().expect("ashd can be started");
        if self.child.is_some() {
            self.terminate();
        }
        if !said.status.success() {
            leftovers::kill_all(self);
            panic!("`ashd stop` failed: {}\n{}", String::from_utf8_lossy(&said.stderr), self.logs());
        }
        self.unmount();
        let left = leftovers::find(self, patient(Duration::from_secs(5)));
        if !left.is_empty() {
            leftovers::kill_all(self);
            panic!("left behind after `ashd stop`:\n{}\n{}", left.join("\n"), self.logs());
        }
        fs::remove_dir_all(&self.dir).unwrap();
    }

    pub fn logs(&self) -> String {
        let mut paths: Vec<PathBuf> = [&self.dir, &self.run()]
            .into_iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ext| ext == "log"))
            .collect();
        paths.sort();
        let tail = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(60)..].join("\n"))
        };
        paths.iter().map(tail).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        if std::thread::panicking() {
            // The test has failed already: print the daemon's log, and leave nothing.
            eprintln!("{}", self.logs());
            let _ = self.command("stop").output();
            if let Some(mut child) = self.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            leftovers::kill_all(self);
            self.unmount();
            let _ = fs::remove_dir_all(&self.dir);
        } else {
            self.end();
        }
    }
}
