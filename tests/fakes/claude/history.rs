//! The conversation on disk: one JSON object per line.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

pub struct History {
    path: PathBuf,
    session: String,
    /// The user's texts, oldest first.
    pub texts: Vec<String>,
}

impl History {
    fn path(session: &str) -> PathBuf {
        let home = std::env::var("HOME").unwrap_or_else(|_| "/home/agent".into());
        let cwd = std::env::current_dir().map(|p| p.display().to_string()).unwrap_or_else(|_| "/workspace".into());
        PathBuf::from(home).join(".claude/projects").join(cwd.replace('/', "-")).join(format!("{session}.jsonl"))
    }

    pub fn new(session: &str) -> Self {
        Self { path: Self::path(session), session: session.to_owned(), texts: Vec::new() }
    }

    pub fn exists(session: &str) -> bool {
        Self::path(session).exists()
    }

    /// Reads the conversation of `from`, if it exists, and continues it as `session`, which differs
    /// in a fork.
    pub fn open(from: &str, session: &str) -> Option<Self> {
        let text = fs::read_to_string(Self::path(from)).ok()?;
        let mut history = Self::new(session);
        let mut old = Vec::new();
        for line in text.lines() {
            // A power failure leaves a partial line.
            let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
            let role = entry["type"].as_str()?.to_owned();
            old.push((role, entry["message"]["content"].as_str().unwrap_or_default().to_owned()));
        }
        for (role, text) in old {
            if from == session {
                history.texts.extend((role == "user").then_some(text));
            } else {
                history.add(&role, &text);
            }
        }
        Some(history)
    }

    pub fn add(&mut self, role: &str, text: &str) {
        if role == "user" {
            self.texts.push(text.to_owned());
        }
        let entry = json!({"type": role, "sessionId": self.session, "message": {"role": role, "content": text}});
        let written = self.path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            file.write_all(format!("{entry}\n").as_bytes())
        });
        if let Err(e) = written {
            eprintln!("fake claude: {}: {e}", self.path.display());
        }
    }
}
