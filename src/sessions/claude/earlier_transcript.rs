//! Writes an earlier conversation as claude's own record, so that a session continues from it.
//! claude sends its messages to the model in their order, before the new one.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::transcript::project;
use crate::sessions::workspace::layout::make_dir;
use ash_model::{Millis, iso, now_ms};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    User,
    Assistant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    pub role: Speaker,
    pub content: String,
}

/// Writes the record before the session's sandbox exists, so that its first process resumes it.
/// Blocks.
///
/// # Errors
/// I/O errors; `AlreadyExists` when there is a record.
pub fn write(home: &Path, id: Uuid, earlier: &[Said]) -> io::Result<()> {
    make_dir(&home.join(".claude/projects/-workspace"))?;
    let dir = project(home)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir.as_fd(), format!("{id}.jsonl"), flags, Mode::RUSR | Mode::WUSR)?;
    let mut to = BufWriter::new(File::from(file));
    let (mut parent, now) = (None, now_ms());
    for said in earlier {
        let own = Uuid::new_v4();
        serde_json::to_writer(&mut to, &line(said, id, parent, own, now))?;
        to.write_all(b"\n")?;
        parent = Some(own);
    }
    to.flush()
}

fn line(said: &Said, session: Uuid, parent: Option<Uuid>, own: Uuid, now: Millis) -> Value {
    let message = match said.role {
        Speaker::User => json!({ "role": "user", "content": said.content }),
        Speaker::Assistant => json!({
            "id": format!("msg_{}", own.simple()),
            "type": "message",
            "role": "assistant",
            "model": "earlier",
            "content": [{ "type": "text", "text": said.content }],
            "stop_reason": "end_turn",
            "stop_sequence": null,
            "usage": {
                "input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            },
        }),
    };
    json!({
        "parentUuid": parent,
        "isSidechain": false,
        "userType": "external",
        "cwd": "/workspace",
        "sessionId": session,
        "version": crate::config::CLAUDE_VERSION,
        "type": said.role,
        "message": message,
        "uuid": own,
        "timestamp": iso(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::claude::transcript;

    #[test]
    fn a_record_is_one_line_for_each_message_and_each_names_the_one_before() {
        let home = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        let said = |role, content: &str| Said { role, content: content.to_owned() };
        let earlier = [said(Speaker::User, "one\ntwo \"three\""), said(Speaker::Assistant, "four\u{2028}")];
        write(home.path(), id, &earlier).unwrap();
        assert!(transcript::exists(home.path(), id));
        let text =
            std::fs::read_to_string(home.path().join(format!(".claude/projects/-workspace/{id}.jsonl"))).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["message"]["content"], "one\ntwo \"three\"");
        assert_eq!(lines[1]["message"]["content"][0]["text"], "four\u{2028}");
        assert!(lines[0]["parentUuid"].is_null() && lines[1]["parentUuid"] == lines[0]["uuid"]);
        assert!(lines.iter().all(|line| line["sessionId"] == id.to_string() && line["cwd"] == "/workspace"));
        let again = write(home.path(), id, &earlier).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists, "a conversation is never overwritten");
    }
}
