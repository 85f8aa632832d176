//! One turn: the steps of the script in order, each with the output of the real one.

use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::history::History;
use crate::script::{Step, parse};
use crate::speak::{HUGE, Voice};

struct Turn<'a> {
    voice: &'a mut Voice,
    lines: &'a Receiver<String>,
    delay: Duration,
    block: usize,
    /// A message is open on the stream.
    open: bool,
    messages: u64,
    tools: u64,
    said: String,
    interrupted: bool,
}

/// Runs the turn of one user message to its result.
pub fn run(voice: &mut Voice, history: &mut History, lines: &Receiver<String>, input: &Value) {
    let text = text_of(&input["message"]["content"]);
    history.add("user", &text);
    if text.starts_with("@ignored") {
        // As for an unreadable message: completed, without output.
        return voice.report(&input["uuid"], "completed");
    }
    if let Some(words) = text.lines().find_map(|line| line.strip_prefix("@foreign ")) {
        voice.report(&input["uuid"], "queued");
        voice.answers = Value::Null;
        voice.init();
        voice.message_start();
        voice.assistant(0, json!({"type": "text", "text": words}));
        voice.message_stop("end_turn");
        voice.result("success", false, words, 1);
        voice.report(&input["uuid"], "started");
    }
    if text.starts_with("@reports") {
        voice.report(&input["uuid"], "queued");
        voice.report(&input["uuid"], "started");
    }
    voice.answers = input["uuid"].clone();
    voice.init();
    let mut turn = Turn {
        voice,
        lines,
        delay: Duration::ZERO,
        block: 0,
        open: false,
        messages: 0,
        tools: 0,
        said: String::new(),
        interrupted: false,
    };
    for step in parse(&text) {
        if let Step::Fail(why) = &step {
            turn.close("end_turn");
            turn.voice.result("success", true, why, turn.messages);
            return;
        }
        turn.step(step, history);
        if turn.interrupted {
            turn.voice.say(json!({"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": "[Request interrupted by user]"}]}, "parent_tool_use_id": null}));
            turn.voice.result("error_during_execution", true, "", turn.messages);
            return;
        }
    }
    turn.close("end_turn");
    history.add("assistant", &turn.said);
    let (said, messages) = (turn.said, turn.messages);
    voice.result("success", false, &said, messages);
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|b| b["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

impl Turn<'_> {
    fn step(&mut self, step: Step, history: &History) {
        match step {
            Step::Text(text) => self.text(text.split_inclusive(' ').map(str::to_owned)),
            Step::Repeat(n, word) => self.text((0..n).map(|_| format!("{word} "))),
            Step::Delay(time) => self.delay = time,
            Step::Think(text) => self.think(&text),
            Step::Bash(command) => self.bash(&command),
            Step::Write(path, content) => self.write(&path, &content),
            Step::Recall => {
                let first = history.texts.first().cloned().unwrap_or_default();
                self.text(std::iter::once(first));
            }
            Step::Env => {
                let all: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
                self.text(std::iter::once(all.join("\n")));
            }
            Step::Wait(time) => self.wait(time),
            Step::Busy(time) => {
                let start = Instant::now();
                while start.elapsed() < time {
                    std::hint::spin_loop();
                }
            }
            Step::Alloc(bytes) => {
                // Written, not only reserved; leaked, so that it stays.
                let memory: &mut [u8] = vec![1_u8; bytes].leak();
                eprintln!("fake claude: holds {} bytes", memory.len());
            }
            Step::Fork(n) => {
                let started = (0..n).map_while(|_| Command::new("/bin/sleep").arg("600").spawn().ok()).count();
                self.text(std::iter::once(format!("started {started} of {n}")));
            }
            Step::Exit(code) => std::process::exit(code),
            Step::Kill => {
                let me = nix::unistd::Pid::this();
                nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL).expect("one may kill oneself");
            }
            Step::Raw(line) => self.voice.bytes(format!("{line}\n").as_bytes()),
            Step::Half => {
                self.voice.bytes(br#"{"type":"assistant","message":{"role":"assi"#);
                std::process::exit(0);
            }
            Step::Huge(bytes) => {
                self.voice.huge = "x".repeat(bytes);
                self.text(std::iter::once(HUGE.to_owned()));
            }
            Step::Fill(bytes, parts) => {
                let mut parts = parts.split('~');
                let mut part = || parts.next().unwrap_or_default();
                let (head, unit, tail) = (part(), part(), part());
                let count = bytes.saturating_sub(head.len() + tail.len()) / unit.len().max(1);
                self.voice.bytes(format!("{head}{}{tail}\n", unit.repeat(count)).as_bytes());
            }
            Step::Flood(times, lines) => {
                // In parts, so that a reader sees progress.
                let part = format!("{lines}\n").repeat(times.min(1000));
                for _ in 0..times / 1000 {
                    self.voice.bytes(part.as_bytes());
                }
            }
            Step::Truncate => {
                if let Err(e) = nix::unistd::ftruncate(std::io::stdout(), 0) {
                    eprintln!("fake claude: truncate: {e}");
                }
            }
            Step::Fail(_) => {}
        }
    }

    fn start_block(&mut self, block: Value) {
        if !self.open {
            self.open = true;
            self.block = 0;
            self.messages += 1;
            self.voice.message_start();
        }
        let index = self.block;
        self.voice.event(json!({"type": "content_block_start", "index": index, "content_block": block}));
    }

    fn close(&mut self, reason: &str) {
        if std::mem::take(&mut self.open) {
            self.voice.message_stop(reason);
        }
    }

    fn text(&mut self, pieces: impl Iterator<Item = String>) {
        self.start_block(json!({"type": "text", "text": ""}));
        let mut whole = String::new();
        for piece in pieces {
            self.wait(self.delay);
            if self.interrupted {
                return;
            }
            let index = self.block;
            self.voice.output_tokens += 1;
            self.voice.event(
                json!({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": piece}}),
            );
            whole.push_str(&piece);
        }
        self.voice.assistant(self.block, json!({"type": "text", "text": whole}));
        self.block += 1;
        self.said = whole;
    }

    fn think(&mut self, text: &str) {
        self.start_block(json!({"type": "thinking", "thinking": "", "signature": ""}));
        let index = self.block;
        self.voice.event(json!({"type": "content_block_delta", "index": index, "delta": {"type": "thinking_delta", "thinking": text}}));
        self.voice.assistant(index, json!({"type": "thinking", "thinking": text, "signature": "fake"}));
        self.block += 1;
    }

    fn tool(&mut self, name: &str, input: Value) -> String {
        self.tools += 1;
        let id = format!("toolu_fake_{}_{}", std::process::id(), self.tools);
        self.start_block(json!({"type": "tool_use", "id": id, "name": name, "input": {}}));
        self.voice.assistant(self.block, json!({"type": "tool_use", "id": id, "name": name, "input": input}));
        self.close("tool_use");
        id
    }

    fn tool_result(&mut self, id: &str, text: &str, is_error: bool, details: Value) {
        self.voice.say(json!({
            "type": "user", "parent_tool_use_id": null, "tool_use_result": details,
            "message": {"role": "user", "content": [{"tool_use_id": id, "type": "tool_result", "content": text, "is_error": is_error}]},
        }));
    }

    fn bash(&mut self, command: &str) {
        let id = self.tool("Bash", json!({"command": command}));
        match Command::new("/bin/bash").args(["-c", command]).output() {
            Ok(out) => {
                let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
                let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
                let text = format!("{stdout}{stderr}");
                self.tool_result(
                    &id,
                    text.trim_end(),
                    !out.status.success(),
                    json!({"stdout": stdout, "stderr": stderr, "interrupted": false}),
                );
            }
            Err(e) => {
                self.tool_result(&id, &format!("/bin/bash: {e}"), true, json!({"stdout": "", "stderr": e.to_string()}))
            }
        }
    }

    fn write(&mut self, path: &str, content: &str) {
        let id = self.tool("Write", json!({"file_path": path, "content": content}));
        match std::fs::write(path, content) {
            Ok(()) => self.tool_result(
                &id,
                &format!("File created successfully at: {path}"),
                false,
                json!({"type": "create", "filePath": path}),
            ),
            Err(e) => self.tool_result(&id, &format!("{path}: {e}"), true, json!({})),
        }
    }

    /// Waits, and reads stdin for an interrupt meanwhile.
    fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(end.saturating_duration_since(Instant::now()));
                    return;
                }
                Ok(line) => {
                    let input: Value = serde_json::from_str(&line).unwrap_or_default();
                    if input["type"] == "control_request" {
                        crate::control(self.voice, &input);
                        if input["request"]["subtype"] == "interrupt" {
                            self.interrupted = true;
                            return;
                        }
                    }
                }
            }
        }
    }
}
