//! The real Claude Code with ashd's command line and protocol, as far as that needs no model.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "common/programs.rs"]
mod programs;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ashd::sessions::claude::classify::{Kind, classify};
use ashd::sessions::claude::{
    Conversation, LaunchOptions, PermissionMode, ProcessFlags, Whose, argv, environment, initialize_line,
    interrupt_line,
};
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

/// A claude process; killed and reaped when dropped.
struct Claude {
    child: Child,
    lines: Receiver<String>,
    _home: TempDir,
}

impl Claude {
    fn start(options: &LaunchOptions, conversation: Conversation, flags: &ProcessFlags) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let binary = programs::real_claude();
        let argv = argv(binary.to_str().expect("UTF-8"), options, conversation, flags);
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .env_clear()
            .envs(environment(&options.env, &Whose { session: Uuid::nil(), agent: "a" }, "token").vars)
            // Outside a sandbox: the test's home, no gateway at the fixed port, possibly root.
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .env("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
            .env("IS_SANDBOX", "1")
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("claude starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, _home: home }
    }

    fn write(&mut self, line: &[u8]) {
        self.child.stdin.as_mut().expect("piped").write_all(line).expect("claude reads its stdin");
    }

    /// The next line that matters to the driver.
    fn next(&mut self) -> Result<Kind, String> {
        match self.lines.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => Ok(classify(line.as_bytes()).kind),
            Err(_) => {
                let _ = self.child.kill();
                let mut said = String::new();
                let _ = self.child.stderr.take().expect("piped").read_to_string(&mut said);
                Err(said)
            }
        }
    }
}

impl Drop for Claude {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn accepted(options: &LaunchOptions, flags: &ProcessFlags) {
    options.check().expect("options that are fine");
    let mut claude = Claude::start(options, Conversation::New(Uuid::new_v4()), flags);
    claude.write(&initialize_line("init", options));
    match claude.next() {
        Ok(Kind::ControlResponse { request_id, ok: true, .. }) => assert_eq!(request_id, "init"),
        other => panic!("instead of the answer to initialize: {other:?}"),
    }
    claude.write(&interrupt_line("stop"));
    let answer = claude.next();
    assert!(
        matches!(&answer, Ok(Kind::ControlResponse { request_id, ok: true, .. }) if request_id == "stop"),
        "{answer:?}"
    );
}

#[test]
fn a_plain_session_is_ready_after_initialize() {
    accepted(&LaunchOptions::default(), &ProcessFlags::default());
}

#[test]
fn every_option_we_have_is_known_to_claude() {
    let options = LaunchOptions {
        model: Some("claude-x".into()),
        system_prompt: Some("Be brief.\n".repeat(20_000)),
        env: ash_model::Variables::stored([("A".to_owned(), "b".to_owned())].into()),
        // Nothing listens there; claude continues without the server.
        mcp_servers: [("s".to_owned(), json!({ "url": "http://127.0.0.1:9/mcp" }).into())].into(),
        permission_mode: PermissionMode::Default,
        allowed_tools: vec!["Read".into(), "Bash(git *)".into()],
        disallowed_tools: vec!["WebFetch".into()],
        betas: vec!["context-1m-2025-08-07".into()],
        subagents: Some(json!({ "critic": { "description": "criticises", "prompt": "Criticise." } }).into()),
        initial_agent: Some("critic".into()),
        credential: None,
    };
    let flags = ProcessFlags {
        max_turns: Some(3),
        max_budget_usd: Some(0.5),
        json_schema: Some(json!({ "type": "object", "properties": { "a": { "type": "string" } } }).into()),
    };
    accepted(&options, &flags);
    accepted(&LaunchOptions { permission_mode: PermissionMode::PermissionsByAgent, ..options }, &flags);
}

#[test]
fn a_missing_conversation_fails_the_start_in_words() {
    let options = LaunchOptions::default();
    let id = Uuid::new_v4();
    let mut claude = Claude::start(&options, Conversation::Resumed(id), &ProcessFlags::default());
    claude.write(&initialize_line("init", &options));
    match claude.next() {
        Ok(Kind::Result(result)) => {
            let why = result.failure().expect("a failure");
            assert!(why.contains(&id.to_string()) || result.subtype == "error_during_execution", "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(claude.child.wait().expect("exited").code(), Some(1));
}

#[test]
fn an_unknown_flag_is_named_on_stderr() {
    let options = LaunchOptions { initial_agent: Some("nobody".into()), ..LaunchOptions::default() };
    let mut argv = argv("x", &options, Conversation::New(Uuid::new_v4()), &ProcessFlags::default());
    argv.push("--no-such-flag".into());
    let binary = programs::real_claude();
    let home = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(binary)
        .args(&argv[1..])
        .env("HOME", home.path())
        .env("IS_SANDBOX", "1")
        .stdin(Stdio::null())
        .output()
        .expect("claude starts");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--no-such-flag"));
    assert!(output.stdout.is_empty());
}
