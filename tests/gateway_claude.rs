//! The real Claude Code against the real `ash-gateway` process and its offline model. Needs root
//! (gateway and claude run as other users) and the pinned Claude Code (`scripts/setup`).
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "common/programs.rs"]
mod programs;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ashd::gateway::client::Gateway;
use serde_json::{Value, json};

const NOBODY: u32 = 65534;
const TOKEN: &str = "placeholder-of-the-test";

/// The gateway's process, offline, and directories for claude; removed when dropped.
struct Offline {
    gateway: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl Offline {
    fn start() -> Self {
        assert_eq!(nix::unistd::geteuid().as_raw(), 0, "this test needs root: the gateway must drop to another user");
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["home", "work", "run"] {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // The target directory may be closed to other users; the program starts before the gateway
        // drops its user.
        let mut gateway = Command::new(ash_testkit::program("ash-gateway"))
            .args(["--upstream", "offline", "--client-user", "nobody", "--user", "nobody"])
            .args(["--listen", "127.0.0.1:0", "--token", TOKEN, "--run-dir"])
            .arg(directory.path().join("run"))
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .env("ANTHROPIC_API_KEY", "sk-ant-planted-key")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(gateway.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the gateway says where it listens").to_owned();
        Self { gateway, address, directory }
    }

    fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// Runs turns in one claude process. Returns its lines.
    fn run(&self, args: &[&str], turns: &[&str]) -> Vec<Value> {
        let mut child = Command::new("timeout")
            .arg("90")
            .arg(programs::real_claude())
            .args(["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"])
            .args(["--include-partial-messages", "--permission-mode", "bypassPermissions"])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.directory.path().join("home"))
            .env("ANTHROPIC_BASE_URL", format!("http://{}", self.address))
            .env("ANTHROPIC_API_KEY", TOKEN)
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .current_dir(self.work())
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut all = Vec::new();
        for turn in turns {
            writeln!(stdin, "{}", json!({"type": "user", "message": {"role": "user", "content": turn}})).unwrap();
            loop {
                let line = lines.next().expect("a result before the end").unwrap();
                let value: Value = serde_json::from_str(&line).unwrap();
                let over = value["type"] == "result";
                all.push(value);
                if over {
                    break;
                }
            }
        }
        drop(stdin);
        child.wait().unwrap();
        all
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        let _ = self.gateway.kill();
        let _ = self.gateway.wait();
    }
}

fn results(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["type"] == "result").collect()
}

#[test]
fn claude_writes_a_file_with_a_tool_and_remembers() {
    let offline = Offline::start();
    let lines = offline.run(
        &[],
        &[
            "Create a file hello.txt with \"Hi there\" in it",
            "@think first a look\n@text I look.\n@tool Bash {\"command\":\"cat hello.txt; echo; id -u\"}\n@result",
            "@write notes/b.txt one\\ntwo\n@tool Read {\"file_path\":\"/nonexistent\"}\n@result",
            "@recall",
        ],
    );
    let results = results(&lines);
    assert_eq!(results.len(), 4);
    for result in &results {
        assert_eq!((&result["subtype"], &result["is_error"]), (&json!("success"), &json!(false)), "{result}");
    }
    let file = offline.work().join("hello.txt");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "Hi there");
    assert_eq!(std::fs::metadata(&file).unwrap().uid(), NOBODY);
    assert_eq!(std::fs::read_to_string(offline.work().join("notes/b.txt")).unwrap(), "one\ntwo");
    assert_eq!(results[1]["result"], "Hi there\n65534");
    assert!(results[2]["result"].as_str().unwrap().contains("does not exist"), "{}", results[2]["result"]);
    assert_eq!(results[3]["result"], "Create a file hello.txt with \"Hi there\" in it");
    let thought = lines.iter().any(|line| line["event"]["delta"]["thinking"] == "first ");
    assert!(thought, "thinking is streamed word by word");
    // A new process of the same conversation remembers.
    let id = results[3]["session_id"].as_str().unwrap().to_owned();
    let lines = offline.run(&["--resume", &id], &["@recall"]);
    let last = lines.last().unwrap();
    assert_eq!(last["result"], "Create a file hello.txt with \"Hi there\" in it", "{last}");
}

#[test]
fn claude_gets_over_errors_and_a_cut_and_reports_one_that_stays() {
    let offline = Offline::start();
    let lines = offline.run(
        &[],
        &[
            "@error 500 x1\n@repeat 30 word",
            "@text half\n@cut x1\n@text whole",
            "@error 400 scripted refusal",
            "What files are in the workspace?",
        ],
    );
    let results = results(&lines);
    assert_eq!(results[0]["result"].as_str().unwrap().matches("word").count(), 30);
    assert!(lines.iter().any(|line| line["subtype"] == "api_retry"), "the retry is visible");
    assert!(results[1]["result"].as_str().unwrap().contains("whole"), "{}", results[1]);
    assert_eq!(results[2]["is_error"], true);
    assert!(results[2]["result"].as_str().unwrap().contains("scripted refusal"), "{}", results[2]);
    assert!(results[3]["result"].as_str().unwrap().starts_with("Done. The tool said:"), "{}", results[3]);
}

#[test]
fn claude_gives_a_structured_answer() {
    let offline = Offline::start();
    let schema = r#"{"type":"object","properties":{"title":{"type":"string"}},"required":["title"]}"#;
    let lines = offline.run(&["--json-schema", schema], &["name it"]);
    assert_eq!(lines.last().unwrap()["structured_output"], json!({"title": "name it"}), "{}", lines.last().unwrap());
}

#[tokio::test]
async fn the_process_has_no_privilege_and_ends_when_told() {
    let mut offline = Offline::start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", offline.gateway.id())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534");
    assert_eq!((field("NoNewPrivs:"), field("Groups:")), ("1".to_owned(), String::new()));
    let environ = format!("/proc/{}/environ", offline.gateway.id());
    assert_eq!(std::fs::metadata(&environ).unwrap().uid(), 0, "not dumpable: its /proc files are root's");

    let client = Gateway::connect(&offline.directory.path().join("run")).await.unwrap();
    let hello = client.hello().await.unwrap();
    assert_eq!((hello.pid, hello.upstream.as_str()), (offline.gateway.id(), "offline"));
    assert_eq!(client.usage().await.unwrap().len(), 1);
    client.shutdown().await.unwrap();
    let ended = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        offline.gateway.try_wait().unwrap().is_some()
    });
    assert!(ended, "the process is still there 5 s after Shutdown");
    assert!(!Path::new(&offline.directory.path().join("run/gateway.sock")).exists(), "its socket is removed");
}
