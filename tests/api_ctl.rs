//! `ashctl` as users and programs call it, against a daemon: exit codes, text and JSON.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{Daemon, Options};
use serde_json::Value;

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn ashctl(daemon: &Daemon, args: &[&str]) -> Said {
    run(
        args,
        &[
            ("ASH_URL", &format!("http://127.0.0.1:{}", daemon.port)),
            ("ASH_DATA_DIR", &daemon.data().display().to_string()),
        ],
    )
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashctl"));
    command.args(args).env_clear().envs(env.iter().copied());
    let out = command.output().unwrap();
    Said {
        code: out.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&out.stdout).into_owned(),
        err: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// Expects success. Returns the output.
fn works(daemon: &Daemon, args: &[&str]) -> String {
    let said = ashctl(daemon, args);
    assert_eq!(said.code, 0, "{args:?}: {}{}", said.out, said.err);
    said.out
}

#[test]
fn a_session_from_its_agent_to_its_end() {
    let daemon = Daemon::start(Options::default());
    let dir =
        daemon.agent_dir("my-agent", &[("CLAUDE.md", "You are a test.\n"), ("data/x.txt", "x"), (".git/config", "no")]);
    let dir = dir.display().to_string();
    assert!(works(&daemon, &["health"]).contains("status           ok"), "{}", works(&daemon, &["health"]));
    assert_eq!(works(&daemon, &["agent", "deploy", &dir]), "deployed my-agent, version 1\n");
    assert_eq!(works(&daemon, &["agent", "deploy", &dir]), "deployed my-agent, version 2\n");
    assert!(works(&daemon, &["agent", "list"]).contains("my-agent"));
    let id = works(&daemon, &["session", "create", "my-agent", "--env", "PLANTED=here"]).trim().to_owned();
    assert_eq!(id.len(), 36, "{id}");
    let said = works(
        &daemon,
        &["session", "send", &id, "@text Looking.\n@tool Bash {\"command\":\"echo $PLANTED; ls\"}\n@text Done."],
    );
    assert_eq!(said, "Looking.\n> Bash echo $PLANTED; ls\n< here CLAUDE.md data\nDone.\n");
    let lines = works(&daemon, &["-o", "json", "session", "send", &id, "@text x"]);
    let events: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(events.last().map(String::as_str), Some("done"));
    assert!(works(&daemon, &["session", "files", &id]).contains("data/x.txt"));
    assert!(!works(&daemon, &["session", "files", &id]).contains(".git"));
    assert_eq!(works(&daemon, &["session", "cat", &id, "data/x.txt"]), "x");
    let confined = works(&daemon, &["session", "confinement", &id]);
    assert!(confined.contains("seccomp") && confined.contains("confined: true"), "{confined}");
    assert!(works(&daemon, &["session", "pause", &id]).contains("status       paused"));
    assert!(works(&daemon, &["session", "list", "--status", "paused"]).contains(&id));
    let refused = ashctl(&daemon, &["session", "send", &id, "x"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("Session is paused") && refused.err.contains("ashctl session resume"),
        "{}",
        refused.err
    );
    works(&daemon, &["session", "resume", &id]);
    let died = ashctl(&daemon, &["session", "send", &id, "@text oh\n@exit 3"]);
    assert_eq!((died.code, died.out.as_str()), (1, "oh\n"), "{}", died.err);
    assert!(died.err.contains("the turn failed"), "{}", died.err);
    assert!(works(&daemon, &["session", "messages", &id]).contains("user> @text x"));
    assert!(works(&daemon, &["session", "events", &id, "--type", "lifecycle"]).contains("created"));
    assert!(works(&daemon, &["session", "end", &id]).contains("status       ended"));
    let gone = ashctl(&daemon, &["session", "resume", &id]);
    assert!(gone.code == 1 && gone.err.contains("HTTP 410"), "{}", gone.err);
    works(&daemon, &["agent", "delete", "my-agent"]);
    assert_eq!(works(&daemon, &["agent", "list"]), "no agents\n");
}

#[test]
fn keys_are_made_listed_and_revoked() {
    let daemon = Daemon::start(Options::default());
    let made: Value = serde_json::from_str(&works(&daemon, &["-o", "json", "keys", "create", "laptop"])).unwrap();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert!(works(&daemon, &["keys", "list"]).contains("laptop"));
    assert!(!works(&daemon, &["keys", "list"]).contains(key), "a whole key is listed");
    works(&daemon, &["--key", key, "agent", "list"]);
    works(&daemon, &["keys", "revoke", id]);
    let refused = ashctl(&daemon, &["--key", key, "agent", "list"]);
    assert!(refused.code == 4 && refused.err.contains("not authorised"), "{} {}", refused.code, refused.err);
}

#[test]
fn each_kind_of_failure_has_its_exit_code_and_a_next_step() {
    type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);
    let table: [Row<'_>; 6] = [
        (&["--url", "http://127.0.0.1:1", "health"], &[], 3, "is it running?"),
        (&["--url", "nonsense", "health"], &[], 2, "must begin with http://"),
        (&["session", "send"], &[], 2, "required"),
        (&["agent", "deploy", "/nonexistent"], &[], 1, "/nonexistent"),
        (&["agent", "deploy", "/usr"], &[], 2, "CLAUDE.md"),
        (&["claude", "install", "../../x"], &[], 2, "not a version"),
    ];
    for (args, env, code, text) in table {
        let said = run(args, env);
        assert_eq!(said.code, code, "{args:?}: {}", said.err);
        assert!(said.err.contains(text), "{args:?}: {}", said.err);
    }
    // Without npm: the text names it and how to install it, and nothing is left behind.
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let claude = dir.path().join("claude").display().to_string();
    let said = run(&["--data-dir", &data, "--claude-dir", &claude, "claude", "install"], &[("PATH", "/nonexistent")]);
    assert!(said.code == 1 && said.err.contains("apt install npm"), "{} {}", said.code, said.err);
    assert_eq!(std::fs::read_dir(dir.path().join("claude")).unwrap().count(), 0);
}

#[test]
fn top_queue_credentials_and_logs() {
    let daemon = Daemon::start(Options::default());
    let dir = daemon.agent_dir("a", &[("CLAUDE.md", "You are a test.\n")]).display().to_string();
    works(&daemon, &["agent", "deploy", &dir]);
    let id = works(&daemon, &["session", "create", "a"]).trim().to_owned();
    let paused = works(&daemon, &["session", "create", "a"]).trim().to_owned();
    works(&daemon, &["session", "pause", &paused]);
    let (url, data) = (format!("http://127.0.0.1:{}", daemon.port), daemon.data().display().to_string());
    let mut turn = Command::new(env!("CARGO_BIN_EXE_ashctl"));
    let turn = turn.args(["session", "send", &id, "@busy 2s\n@text x"]).env("ASH_URL", &url).env("ASH_DATA_DIR", &data);
    let mut turn = turn.stdout(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let table = works(&daemon, &["top", "--once"]);
    let json: Value = serde_json::from_str(&works(&daemon, &["-o", "json", "top"])).unwrap();
    assert!(turn.wait().unwrap().success());
    let line = |id: &str| table.lines().find(|line| line.contains(id)).unwrap_or_else(|| panic!("no {id} in\n{table}"));
    assert!(line(&id).contains("active") && line(&id).contains("1 (") && line(&id).contains("/2.0G"), "{table}");
    assert!(line(&paused).contains("paused"), "{table}");
    assert!(table.lines().position(|l| l.contains(&id)) < table.lines().position(|l| l.contains(&paused)), "{table}");
    let row = json["sessions"].as_array().unwrap().iter().find(|row| row["id"] == id.as_str()).unwrap();
    // An idle session has less than 1; a busy one shares the cores with other tests.
    assert!(row["cpuPercent"].as_f64().unwrap() > 5.0 && row["turn"]["number"] == 1, "{row}");
    works(&daemon, &["session", "exec", &id, "true"]);
    assert_eq!(works(&daemon, &["session", "logs", &id]), "");

    let item = works(&daemon, &["queue", "add", "a", "@text", "queued"]).trim().to_owned();
    assert!(works(&daemon, &["queue", "list"]).contains(&item));
    assert!(works(&daemon, &["queue", "info", &item]).contains("@text queued"));
    assert!(works(&daemon, &["queue", "stats"]).contains("failed"));
    let add = |key: &str| {
        let mut add = Command::new(env!("CARGO_BIN_EXE_ashctl"));
        let add = add
            .args(["credentials", "add", "anthropic", "--label", "team"])
            .env("ASH_URL", &url)
            .env("ASH_DATA_DIR", &data);
        let mut add = add.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut add.stdin.take().unwrap(), key.as_bytes()).unwrap();
        String::from_utf8(add.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let credential = add("sk-ant-planted\n");
    let listed = works(&daemon, &["credentials", "list"]);
    assert!(listed.contains(&credential) && listed.contains("team") && !listed.contains("planted"), "{listed}");
    works(&daemon, &["credentials", "delete", &credential]);
    assert_eq!(works(&daemon, &["credentials", "list"]), "no credentials\n");
}

#[test]
fn a_backup_is_made_while_ashd_runs_and_comes_back() {
    let mut daemon = Daemon::start(Options::default());
    let dir = daemon.agent_dir("a", &[("CLAUDE.md", "You are a test.\n")]).display().to_string();
    works(&daemon, &["agent", "deploy", &dir]);
    let id = works(&daemon, &["session", "create", "a"]).trim().to_owned();
    works(&daemon, &["session", "send", &id, "@write notes.txt kept\n@text remembered"]);
    let file = daemon.dir.join("b.tar.gz").display().to_string();
    let said = works(&daemon, &["backup", &file]);
    assert!(said.contains("b.tar.gz: "), "{said}");
    assert!(works(&daemon, &["restore", "--verify", &file]).contains("is intact: 1 sessions"));
    let refused = ashctl(&daemon, &["restore", &file]);
    assert!(refused.code == 2 && refused.err.contains("systemctl stop"), "{} {}", refused.code, refused.err);
    works(&daemon, &["session", "send", &id, "@write notes.txt lost\n@text forgotten"]);
    daemon.terminate();
    let refused = ashctl(&daemon, &["restore", &file]);
    assert!(
        refused.code == 2
            && refused.err.contains("processes of 1 sessions still run")
            && refused.err.contains("ash-launcher"),
        "under a sandbox that outlives ashd: {} {}",
        refused.code,
        refused.err
    );
    daemon.restart();
    works(&daemon, &["session", "stop", &id]);
    daemon.terminate();
    works(&daemon, &["restore", &file]);
    daemon.restart();
    // As after a restart that lost its processes.
    works(&daemon, &["session", "resume", &id]);
    assert_eq!(works(&daemon, &["session", "cat", &id, "notes.txt"]), "kept");
    let messages = works(&daemon, &["session", "messages", &id]);
    assert!(messages.contains("remembered") && !messages.contains("forgotten"), "{messages}");
    works(&daemon, &["session", "send", &id, "@text goes on"]);
    let old = std::fs::read_dir(daemon.data())
        .unwrap()
        .flatten()
        .find(|e| e.file_name().to_string_lossy().starts_with("before-restore-"));
    assert!(old.unwrap().path().join("ashd.db").exists());
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let said = run(&["completions", shell], &[]);
        assert_eq!(said.code, 0, "{}", said.err);
        for word in ["confinement", "session", "deploy"] {
            assert!(said.out.contains(word), "{shell}: no {word}");
        }
    }
    assert_eq!(run(&["completions", "cmd.exe"], &[]).code, 2);
}

#[test]
fn exec_is_the_command_itself_to_whoever_calls_it() {
    let daemon = Daemon::start(Options::default());
    let dir = daemon.agent_dir("a", &[("CLAUDE.md", "You are a test.\n")]).display().to_string();
    works(&daemon, &["agent", "deploy", &dir]);
    let id = works(&daemon, &["session", "create", "a"]).trim().to_owned();
    let said = ashctl(&daemon, &["session", "exec", &id, "echo out; echo err >&2; exit 5"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (5, "out\n", "err\n"));
    assert!(works(&daemon, &["session", "exec", &id, "--", "ls", "-a"]).contains("CLAUDE.md"));
    // As `docker exec`, `kubectl exec` and `incus exec`: arguments are not joined.
    let echo = ["session", "exec", &id, "--", "bash", "-c", "echo \"$# $1\"; exit 3", "x", "a  b", "$HOME"];
    let said = ashctl(&daemon, &echo);
    assert_eq!((said.code, said.out.as_str()), (3, "2 a  b\n"), "{}", said.err);
    let said = ashctl(&daemon, &["session", "exec", "--timeout", "300", &id, "sleep 60"]);
    assert_eq!(said.code, 124);
    assert!(said.err.contains("timeout"), "{}", said.err);
    let json: Value = serde_json::from_str(&works(&daemon, &["-o", "json", "session", "exec", &id, "echo x"])).unwrap();
    assert_eq!(json["stdout"], "x\n");
}

#[test]
fn root_needs_no_key_on_the_unix_socket() {
    let daemon = Daemon::start(Options::default());
    let url = format!("unix:{}", daemon.run().join("ashd.sock").display());
    let nowhere = daemon.dir.join("nowhere").display().to_string();
    let by_socket = |args: &[&str], url: &str| run(args, &[("ASH_URL", url), ("ASH_DATA_DIR", &nowhere)]);
    let said = by_socket(&["-o", "json", "keys", "create", "ci", "--tenant", "acme"], &url);
    assert_eq!(said.code, 0, "{}", said.err);
    let minted: Value = serde_json::from_str(&said.out).unwrap();
    let key = minted["key"].as_str().unwrap();
    assert_eq!(works(&daemon, &["--key", key, "agent", "list"]), "no agents\n");
    assert_eq!(by_socket(&["--key", "nonsense", "agent", "list"], &url).code, 4);
    let away = by_socket(&["health"], "unix:/nowhere/ashd.sock");
    assert_eq!(away.code, 3);
    assert!(away.err.contains("unix:/nowhere/ashd.sock"), "{}", away.err);
    assert_eq!(by_socket(&["health"], "unix:relative").code, 2);
}
