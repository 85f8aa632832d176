//! The baseline: the same claude with the same flags and the same model, over plain pipes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child as StdChild, Command as StdCommand, Stdio};
use std::time::{Duration, Instant};

use ash_model::RawJson;
use ashd::sessions::claude::message;
use ashd::sessions::claude::{Conversation, LaunchOptions, ProcessFlags, Whose, argv, environment, initialize_line};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use uuid::Uuid;

use crate::common::real_claude;
use crate::turn::Times;

/// Belongs to no account: as root, claude refuses to work without asking.
const USER: u32 = 61_235;
const TOKEN: &str = "token-of-the-comparison";
const PATIENCE: Duration = Duration::from_secs(60);

/// An offline model on its own TCP port: the same program as for ashd's sessions, without a
/// sandbox.
struct Model {
    process: StdChild,
    address: String,
}

impl Model {
    fn start(run_dir: &Path) -> Self {
        let program = ash_testkit::program("ash-gateway");
        let mut process = StdCommand::new(program)
            .args(["--upstream", "offline", "--client-user", "root", "--user", "nobody"])
            .args(["--listen", "127.0.0.1:0", "--token", TOKEN])
            .arg("--run-dir")
            .arg(run_dir)
            .env_clear()
            .env("ASH_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ash-gateway starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening on ").expect("its address").to_owned();
        Self { process, address }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub struct Pipe {
    process: Child,
    stdin: ChildStdin,
    stdout: tokio::io::BufReader<ChildStdout>,
    _model: Model,
    _dir: tempfile::TempDir,
}

impl Pipe {
    pub async fn start(claude_md: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ashd-perf-").tempdir().unwrap();
        open_to_all(dir.path());
        let own = |name: &str| -> PathBuf {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            chown(&path, Some(USER), Some(USER)).unwrap();
            path
        };
        let (workspace, home) = (own("workspace"), own("home"));
        fs::write(workspace.join("CLAUDE.md"), claude_md).unwrap();
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        open_to_all(&run_dir);
        let model = Model::start(&run_dir);

        let options = LaunchOptions::default();
        let binary = real_claude();
        let argv =
            argv(binary.to_str().unwrap(), &options, Conversation::New(Uuid::new_v4()), &ProcessFlags::default());
        let whose = Whose { session: Uuid::new_v4(), agent: "comparison" };
        let mut vars = environment(&options.env, &whose, TOKEN).vars;
        for (name, value) in &mut vars {
            match name.as_str() {
                "ANTHROPIC_BASE_URL" => *value = format!("http://{}", model.address),
                "HOME" => *value = home.display().to_string(),
                // ashd's own shell for tools exists only in a sandbox.
                "CLAUDE_CODE_SHELL" => "/bin/bash".clone_into(value),
                _ => {}
            }
        }
        let mut process = Command::new(&argv[0])
            .args(&argv[1..])
            .env_clear()
            .envs(vars)
            .current_dir(&workspace)
            .uid(USER)
            .gid(USER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("claude starts");
        let stdin = process.stdin.take().unwrap();
        let stdout = tokio::io::BufReader::with_capacity(1 << 16, process.stdout.take().unwrap());
        let mut pipe = Self { process, stdin, stdout, _model: model, _dir: dir };
        pipe.stdin.write_all(&initialize_line("perf", &options)).await.unwrap();
        while !pipe.line().await.starts_with(r#"{"type":"control_response""#) {}
        pipe
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.stdout.read_line(&mut line)).await.expect("a line in time");
        assert!(read.unwrap() > 0, "claude ended");
        line
    }

    pub async fn turn(&mut self, text: &str) -> Times {
        let mut line = Vec::new();
        let stored = message::stored(&RawJson::of(&text));
        message::UserLine::of(stored, Uuid::new_v4()).write(&mut line).unwrap();
        let start = Instant::now();
        self.stdin.write_all(&line).await.unwrap();
        let mut first = None;
        loop {
            let line = self.line().await;
            if first.is_none() && line.contains(r#""text_delta""#) {
                first = Some(start.elapsed());
            }
            // Unlike in other lines, the type is not the first field.
            if line.contains(r#""type":"result""#) {
                assert!(line.contains(r#""is_error":false"#), "{line}");
                return Times { first: first.expect("a text delta"), whole: start.elapsed() };
            }
        }
    }

    pub async fn end(mut self) {
        self.process.kill().await.unwrap();
    }
}

fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
