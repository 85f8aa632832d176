//! One sandbox for a test: directories, cgroups, set-up, and a simple client of its init. Dropping
//! it removes all.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ash_kernel::cgroup::{Leaf, Tree};
use ash_kernel::idmap::Mappings;
use ash_kernel::{pidfd, seqpacket};
use ash_launcher::policy::{Floor, Policies};
use ash_launcher::setup::{self, SetupSpec, Started};
use ash_model::{Limits, TenantId};
use ash_protocol::init::{Exit, FromInit, InitEvent, InitReply, InitRequest, Numbered, SpawnSpec};
use ash_protocol::launcher::{Failure, MAX_PACKET};
use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

use crate::patience::patient;

/// Owner of the files on disk, in place of ashd's user.
pub const DISK_UID: u32 = 64_123;
const WITHIN: Duration = Duration::from_secs(20);

static USED: AtomicU32 = AtomicU32::new(0);

/// The parts of a sandbox before its start.
pub struct Ground {
    pub dir: tempfile::TempDir,
    pub tree: Tree,
    pub leaf: Option<Leaf>,
    pub id: Uuid,
    pub uid: u32,
    pub claude: PathBuf,
    pub floor: Floor,
}

impl Ground {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ashd-kernel-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["workspace", "home"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::os::unix::fs::chown(dir.path().join(name), Some(DISK_UID), Some(DISK_UID)).unwrap();
        }
        let number = USED.fetch_add(1, Ordering::Relaxed);
        let tree = Tree::prepare(&format!("ashd-test-kernel-{}-{number}", std::process::id())).unwrap();
        let id = Uuid::new_v4();
        let leaf = tree.create(&TenantId::default_tenant(), id, &Limits::default()).unwrap();
        let uid = 3_000_000 + (std::process::id() % 100_000) * 20 + number * 2;
        Self { dir, tree, leaf: Some(leaf), id, uid, claude: "/bin/true".into(), floor: Floor::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&self, policies: &Policies) -> Result<(Started, PathBuf), Failure> {
        self.start_with(policies, self.uid)
    }

    pub fn start_with(&self, policies: &Policies, uid: u32) -> Result<(Started, PathBuf), Failure> {
        let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let socket = self.path("init.sock");
        let listener = seqpacket::listen(&socket).unwrap();
        let (workspace, home, claude) = (open(&self.path("workspace")), open(&self.path("home")), open(&self.claude));
        let spec = SetupSpec {
            id: self.id,
            uid,
            init_uid: self.uid + 1,
            disk_uid: DISK_UID,
            disk_gid: DISK_UID,
            workspace: workspace.as_fd(),
            home: home.as_fd(),
            claude: claude.as_fd(),
            init_socket: listener.as_fd(),
            leaf: self.leaf.as_ref().unwrap(),
            floor: &self.floor,
        };
        setup::start(&spec, policies, &mut Mappings::default()).map(|started| (started, socket))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(leaf) = self.leaf.take() {
            leaf.kill().ok();
            leaf.remove().expect("the cgroup is empty and goes");
        }
        self.tree.forget_tenant(&TenantId::default_tenant());
        self.tree.remove();
    }
}

/// A running sandbox, and a connection to its init.
pub struct Sandbox {
    pub started: Started,
    pub connection: OwnedFd,
    pub events: Vec<InitEvent>,
    next: u32,
    pub ground: Ground,
}

#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    pub out: String,
    pub err: String,
}

impl Sandbox {
    pub fn new() -> Self {
        Self::on(Ground::new())
    }

    pub fn on(ground: Ground) -> Self {
        let policies = Policies::compile().unwrap();
        let (started, socket) = match ground.start(&policies) {
            Ok(started) => started,
            Err(failure) => panic!("no sandbox: {failure} ({:?})", failure.hint),
        };
        Self::of(ground, started, &socket)
    }

    pub fn of(ground: Ground, started: Started, socket: &Path) -> Self {
        let connection = seqpacket::connect(socket, false).unwrap();
        Self { started, connection, events: Vec::new(), next: 0, ground }
    }

    pub fn send(&mut self, request: InitRequest, fds: &[&OwnedFd]) -> u32 {
        self.next += 1;
        let text = serde_json::to_vec(&Numbered { n: self.next, request }).unwrap();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        seqpacket::send(self.connection.as_fd(), &text, &fds).unwrap();
        self.next
    }

    /// The next packet, an event or a reply.
    pub fn hear(&mut self) -> (FromInit, Vec<OwnedFd>) {
        pidfd::wait_readable(self.connection.as_fd(), patient(WITHIN)).expect("init says something");
        let mut buffer = vec![0; MAX_PACKET];
        let packet = seqpacket::recv(self.connection.as_fd(), &mut buffer).unwrap();
        assert!(packet.len > 0, "init closed the connection");
        (serde_json::from_slice(&buffer[..packet.len]).unwrap(), packet.fds)
    }

    pub fn ask_with(&mut self, request: InitRequest, fds: &[&OwnedFd]) -> (InitReply, Vec<OwnedFd>) {
        let asked = self.send(request, fds);
        loop {
            match self.hear() {
                (FromInit::Reply { n, reply }, fds) if n == asked => return (reply, fds),
                (FromInit::Event { event }, _) => self.events.push(event),
                (other, _) => panic!("unexpected {other:?}"),
            }
        }
    }

    pub fn ask(&mut self, request: InitRequest, fds: &[&OwnedFd]) -> InitReply {
        self.ask_with(request, fds).0
    }

    pub fn spawn_with(&mut self, child: u32, spec: &SpawnSpec, out: &OwnedFd, err: &OwnedFd) -> InitReply {
        let memfd = seqpacket::sealed_memfd("spec", &serde_json::to_vec(spec).unwrap()).unwrap();
        self.ask(InitRequest::Spawn { child }, &[&memfd, out, err])
    }

    pub fn await_event(&mut self, wanted: impl Fn(&InitEvent) -> bool) -> InitEvent {
        let deadline = Instant::now() + patient(WITHIN);
        loop {
            if let Some(index) = self.events.iter().position(&wanted) {
                return self.events.remove(index);
            }
            assert!(Instant::now() < deadline, "the event never came; came: {:?}", self.events);
            match self.hear() {
                (FromInit::Event { event }, _) => self.events.push(event),
                (other, _) => panic!("unexpected {other:?}"),
            }
        }
    }

    pub fn await_exit(&mut self, number: u32) -> Exit {
        match self.await_event(|event| matches!(event, InitEvent::Exited { child, .. } if *child == number)) {
            InitEvent::Exited { status, .. } => status,
            other => panic!("{other:?}"),
        }
    }

    /// `None` when it does not end in time.
    pub fn await_exit_within(&mut self, number: u32, within: Duration) -> Option<Exit> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            pidfd::wait_readable(self.connection.as_fd(), left).ok()?;
            match self.hear() {
                (FromInit::Event { event: InitEvent::Exited { child, status } }, _) if child == number => {
                    return Some(status);
                }
                _ => {}
            }
        }
    }

    /// Runs a command to its end. Its output goes to files, as claude's does.
    pub fn run(&mut self, child: u32, argv: &[&str]) -> Ended {
        let (out, err) = (self.file("out"), self.file("err"));
        match self.spawn_with(child, &spec(argv), &out, &err) {
            InitReply::Spawned { .. } => {}
            other => panic!("{argv:?}: {other:?}"),
        }
        let exit = self.await_exit(child);
        Ended { exit, out: text(&out), err: text(&err) }
    }

    pub fn sh(&mut self, child: u32, script: &str) -> Ended {
        self.run(child, &["/bin/bash", "-c", script])
    }

    pub fn file(&self, name: &str) -> OwnedFd {
        let path = self.ground.path(name);
        let options = File::options().create(true).truncate(true).read(true).append(false).write(true).open(path);
        options.unwrap().into()
    }

    /// A file with these contents, for `Deliver`.
    pub fn message(&self, contents: &[u8]) -> OwnedFd {
        seqpacket::sealed_memfd("message", contents).unwrap()
    }

    pub fn kill(&mut self) {
        pidfd::kill_and_reap(self.started.pidfd.as_fd());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command without stdin, with a plain environment.
pub fn spec(argv: &[&str]) -> SpawnSpec {
    let env =
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/home/agent"), ("LANG", "C.UTF-8"), ("USER", "agent")];
    SpawnSpec {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        cwd: "/workspace".into(),
        stdin: false,
        within_ms: None,
        leaves_share: false,
    }
}

/// The whole contents, from the beginning.
pub fn text(file: &OwnedFd) -> String {
    String::from_utf8_lossy(&seqpacket::read_all(file.as_fd(), 64 << 20).unwrap()).into_owned()
}
