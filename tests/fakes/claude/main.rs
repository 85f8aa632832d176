//! A fake Claude Code with the same stream-json protocol. It starts in a millisecond, needs no
//! model, and can misbehave on request. The message's text is a script of its turn (see
//! `script.rs`).
//!
//! ```text
//!   stdin -> reader thread -> channel -> main loop -> turn -> stdout
//!                                           interrupts are seen between the steps of a turn
//! ```
//!
//! Its conversation is at the path of the real one, `$HOME/.claude/projects/<cwd>/<session>.jsonl`,
//! so `--resume` works, and fails, in the same way.

mod history;
mod script;
mod speak;
mod turn;

use std::io::BufRead;
use std::sync::mpsc;

use serde_json::{Value, json};

use history::History;
use speak::Voice;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|a| a == "--version") {
        println!("2.1.330 (Claude Code)");
        return;
    }
    // Both `--flag value` and `--flag=value`, as the real one.
    let value = |flag: &str| {
        let joined = args.iter().find_map(|a| a.strip_prefix(flag)?.strip_prefix('=').map(str::to_owned));
        joined.or_else(|| args.iter().position(|a| a == flag).and_then(|at| args.get(at + 1)).cloned())
    };
    let resumed = value("--resume");
    let session = value("--session-id").or_else(|| resumed.clone());
    let session = session.unwrap_or_else(|| "00000000-0000-4000-8000-000000000000".into());
    // A script may require that SIGTERM has no effect. It is blocked before any thread starts, so
    // that all inherit it.
    if std::env::var_os("FAKE_IGNORE_SIGTERM").is_some() {
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(nix::sys::signal::Signal::SIGTERM);
        set.thread_block().expect("a signal mask can be set");
    }
    if std::env::var_os("FAKE_FAIL_START").is_some() {
        eprintln!("fake claude: told to fail at its start");
        std::process::exit(3);
    }
    if let Some(ms) = std::env::var("FAKE_SLOW_START").ok().and_then(|ms| ms.parse().ok()) {
        std::thread::sleep(std::time::Duration::from_millis(ms));
    }
    let mut voice = Voice::new(&session, &value("--model").unwrap_or_else(|| "claude-fake-1".into()));
    let mut history = match resumed.map(|id| (History::open(&id, &session), id)) {
        Some((None, id)) => {
            eprintln!("No conversation found with session ID: {id}");
            voice.result("error_during_execution", true, "", 0);
            std::process::exit(1);
        }
        Some((Some(history), _)) => history,
        None if History::exists(&session) => {
            eprintln!("Error: Session ID {session} is already in use.");
            std::process::exit(1);
        }
        None => History::new(&session),
    };
    let lines = read_stdin();
    while let Ok(line) = lines.recv() {
        let Ok(input) = serde_json::from_str::<Value>(&line) else {
            eprintln!("fake claude: a line on stdin is not JSON: {line:.80}");
            std::process::exit(1);
        };
        match input["type"].as_str() {
            Some("control_request") => control(&mut voice, &input),
            Some("user") => turn::run(&mut voice, &mut history, &lines, &input),
            _ => {}
        }
    }
}

/// Answers a control request as the real one does while idle.
fn control(voice: &mut Voice, input: &Value) {
    let id = &input["request_id"];
    let request = &input["request"];
    let answer = match request["subtype"].as_str() {
        Some("initialize") => {
            json!({"commands": [], "output_style": "default", "models": [], "account": {}, "pid": std::process::id()})
        }
        Some("set_model") => {
            voice.model = request["model"].as_str().unwrap_or("claude-fake-1").to_owned();
            json!({})
        }
        Some("interrupt" | "set_permission_mode" | "set_max_thinking_tokens" | "apply_flag_settings") => json!({}),
        other => {
            let text = format!("Unsupported control request subtype: {}", other.unwrap_or("none"));
            voice.line(
                &json!({"type": "control_response", "response": {"subtype": "error", "request_id": id, "error": text}}),
            );
            return;
        }
    };
    voice.line(
        &json!({"type": "control_response", "response": {"subtype": "success", "request_id": id, "response": answer}}),
    );
}

fn read_stdin() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            match line {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    if send.send(line).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    receive
}
