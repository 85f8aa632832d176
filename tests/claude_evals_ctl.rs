//! `ashctl eval` with the example agent and its eval set, the real claude and the offline model.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Daemon, Options};
use serde_json::Value;

/// Expects success. Returns the output.
fn ashctl(daemon: &Daemon, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashctl"));
    command.args(args).env_clear().env("ASH_URL", format!("http://127.0.0.1:{}", daemon.port));
    command.env("ASH_DATA_DIR", daemon.data());
    let out = command.output().unwrap();
    let (said, err) = (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{args:?}: {said}{err}");
    said
}

#[test]
fn the_example_agent_is_measured_and_two_runs_are_compared() {
    let daemon = Daemon::start(Options::default().real_claude());
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let (agent, set) =
        (examples.join("agent").display().to_string(), examples.join("evals.json").display().to_string());
    ashctl(&daemon, &["agent", "deploy", &agent, "--name", "example"]);
    assert_eq!(ashctl(&daemon, &["eval", "import", "example", &set]), "imported 4 cases for example\n");
    let list = ashctl(&daemon, &["eval", "list", "example", "--category", "workspace"]);
    assert!(list.contains("What files are in the workspace?") && list.lines().count() == 3, "{list}");
    let table = ashctl(&daemon, &["eval", "run", "example", "--wait"]);
    let row = |question: &str| table.lines().find(|line| line.contains(question)).unwrap_or_else(|| panic!("{table}"));
    for (question, topics) in [
        ("What files are in the workspace?", "100 %"),
        ("show me CLAUDE.md", "100 %"),
        ("Create a file hello.txt", "100 %"),
        // The offline model does not understand the question; a real one does.
        ("What is my project called?", "0 %"),
    ] {
        let row = row(question);
        assert!(
            row.contains("completed") && row.split("completed").nth(1).unwrap().trim().starts_with(topics),
            "{table}"
        );
    }
    assert!(
        table.trim_start().starts_with("QUESTION")
            && table.contains("cases    4 of 4")
            && table.contains("passed   75 %"),
        "{table}"
    );
    let second = ashctl(&daemon, &["eval", "run", "example", "--tag", "smoke", "--detach"]).trim().to_owned();
    assert_eq!(second.len(), 36, "{second}");
    let json: Value = serde_json::from_str(&ashctl(&daemon, &["-o", "json", "eval", "runs", "example"])).unwrap();
    let first = json["runs"][1]["id"].as_str().unwrap().to_owned();
    assert!(json["runs"][0]["id"] == second.as_str() && table.contains(&first), "{json}");
    let third = ashctl(&daemon, &["-o", "json", "eval", "run", "example", "--category", "files"]);
    let third: Value = serde_json::from_str(&third).unwrap();
    let third = third["run"]["id"].as_str().unwrap();
    let compared = ashctl(&daemon, &["eval", "compare", "example", &first, third]);
    let same =
        compared.lines().find(|line| line.contains("Create a file hello.txt")).unwrap_or_else(|| panic!("{compared}"));
    assert!(same.trim_end().ends_with("same") && compared.contains("75 % -> 100 %"), "{compared}");
    assert!(ashctl(&daemon, &["eval", "show", "example", third]).contains("Create a file hello.txt"));
    let export: Value = serde_json::from_str(&ashctl(&daemon, &["eval", "export", "example"])).unwrap();
    assert_eq!(export["cases"].as_array().unwrap().len(), 4);
}
