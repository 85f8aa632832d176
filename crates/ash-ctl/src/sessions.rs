//! `ashctl session`.

use std::io::Read;

use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::cli::{Page, SessionCommand};
use super::client::{Client, encode};
use super::output::{Output, cell};
use super::{CtlError, turn};

pub async fn run(client: &Client, out: &Output, command: SessionCommand) -> Result<(), CtlError> {
    match command {
        SessionCommand::Create { agent, model, system_prompt, env } => {
            let mut body = json!({ "agent": agent });
            let env: Map<String, Value> = env.into_iter().map(|(k, v)| (k, json!(v))).collect();
            for (field, value) in [("model", model), ("systemPrompt", system_prompt)] {
                if let Some(value) = value {
                    body[field] = json!(value);
                }
            }
            if !env.is_empty() {
                body["extraEnv"] = Value::Object(env);
            }
            let answer = client.post("/api/sessions", &body).await?;
            // The bare id, so that `id=$(ashctl session create my-agent)` works.
            if out.json() { out.value(&answer) } else { out.line(&cell(&answer["session"]["id"])) }
        }
        SessionCommand::Send { id, text } => turn::send(client, out, &path(&id), &message(&text)?).await,
        SessionCommand::Chat { id } => turn::chat(client, out, &path(&id)).await,
        SessionCommand::Tail { id, after } => turn::tail(client, out, &path(&id), after.as_deref()).await,
        SessionCommand::List { agent, status, limit } => {
            let query = query(&[("agent", agent), ("status", status), ("limit", limit.map(|n| n.to_string()))]);
            let list = client.get(&format!("/api/sessions{query}")).await?;
            let columns = [
                ("id", "id"),
                ("agent", "agentName"),
                ("status", "status"),
                ("created", "createdAt"),
                ("last active", "lastActiveAt"),
            ];
            out.rows(&list, "sessions", &columns)
        }
        SessionCommand::Info { id } => session(out, &client.get(&path(&id)).await?),
        SessionCommand::Exec { id, timeout, command } => exec(client, out, &id, timeout, &line(&command)).await,
        SessionCommand::Pause { id } => act(client, out, &id, "pause").await,
        SessionCommand::Resume { id } => act(client, out, &id, "resume").await,
        SessionCommand::Interrupt { id } => act(client, out, &id, "interrupt").await,
        SessionCommand::Stop { id } => act(client, out, &id, "stop").await,
        SessionCommand::End { id, purge } => {
            let purge = if purge { "?purge=true" } else { "" };
            session(out, &client.delete(&format!("{}{purge}", path(&id))).await?)
        }
        SessionCommand::Files { id } => {
            let files = client.get(&format!("{}/files", path(&id))).await?;
            out.rows(&files, "files", &[("size", "size"), ("modified", "modifiedAt"), ("path", "path")])
        }
        SessionCommand::Cat { id, path: file } => {
            let answer =
                client.open(Method::GET, &format!("{}/files/{}", path(&id), encode(&file, true)), None).await?;
            let mut body = answer.into_body();
            while let Some(piece) = body.frame().await {
                let piece =
                    piece.map_err(|e| CtlError::Answer(format!("the connection was lost during the file: {e}")))?;
                if let Ok(bytes) = piece.into_data() {
                    out.raw(&bytes)?;
                }
            }
            Ok(())
        }
        SessionCommand::Confinement { id } => {
            let answer = client.get(&format!("{}/confinement", path(&id))).await?;
            if out.json() {
                return out.value(&answer);
            }
            let report = &answer["confinement"];
            out.rows(report, "layers", &[("layer", "layer"), ("in force", "inForce"), ("evidence", "evidence")])?;
            out.line(&format!(
                "confined: {}, measured in {} us",
                cell(&report["confined"]),
                cell(&report["tookMicros"])
            ))
        }
        SessionCommand::Events { id, kind, page } => {
            let query = page_query(page, kind);
            let events = client.get(&format!("{}/events{query}", path(&id))).await?;
            out.rows(
                &events,
                "events",
                &[("seq", "sequence"), ("time", "createdAt"), ("type", "type"), ("data", "data")],
            )
        }
        SessionCommand::Logs { id, after, follow } => logs(client, out, &path(&id), after, follow).await,
        SessionCommand::Messages { id, page } => {
            let query = page_query(page, None);
            let messages = client.get(&format!("{}/messages{query}", path(&id))).await?;
            if out.json() { out.value(&messages) } else { conversation(out, &messages) }
        }
    }
}

/// Poll interval of `logs --follow`.
const FOLLOW: std::time::Duration = std::time::Duration::from_millis(500);

async fn logs(client: &Client, out: &Output, session: &str, after: Option<i64>, follow: bool) -> Result<(), CtlError> {
    let mut after = after;
    loop {
        let query = query(&[("after", after.map(|n| n.to_string()))]);
        let answer = client.get(&format!("{session}/logs{query}")).await?;
        let lines = answer["logs"].as_array().map(Vec::as_slice).unwrap_or_default();
        for line in lines {
            if out.json() {
                out.line(&line.to_string())?;
            } else {
                out.line(&cell(&line["text"]))?;
            }
            after = line["index"].as_i64().or(after);
        }
        // A long log comes in pages.
        if lines.is_empty() && !follow {
            return Ok(());
        }
        if lines.is_empty() {
            tokio::time::sleep(FOLLOW).await;
        }
    }
}

async fn act(client: &Client, out: &Output, id: &str, verb: &str) -> Result<(), CtlError> {
    session(out, &client.json(Method::POST, &format!("{}/{verb}", path(id)), None).await?)
}

/// One argument is a line for the shell. Several are a program and its arguments, quoted so that
/// the shell passes them unchanged, as `docker exec` does.
fn line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

/// Always quotes: a program may have the name of a keyword, such as `time`.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

async fn exec(client: &Client, out: &Output, id: &str, timeout: u32, command: &str) -> Result<(), CtlError> {
    let body = json!({ "command": command, "timeout": timeout });
    let ended = client.post(&format!("{}/exec", path(id)), &body).await?;
    if out.json() {
        out.value(&ended)?;
    } else {
        // Unchanged: the reader may be a program.
        out.raw(ended["stdout"].as_str().unwrap_or_default().as_bytes())?;
        out.aside(ended["stderr"].as_str().unwrap_or_default().as_bytes());
    }
    match ended["exitCode"].as_i64().and_then(|code| u8::try_from(code).ok()) {
        Some(0) => Ok(()),
        Some(code) => Err(CtlError::Command(code)),
        None => Err(CtlError::Answer(format!("exitCode is {}", ended["exitCode"]))),
    }
}

fn session(out: &Output, answer: &Value) -> Result<(), CtlError> {
    if out.json() {
        return out.value(answer);
    }
    let s = &answer["session"];
    out.fields(&[
        ("id", cell(&s["id"])),
        ("agent", cell(&s["agentName"])),
        ("status", cell(&s["status"])),
        ("model", cell(&s["model"])),
        ("parent", cell(&s["parentSessionId"])),
        ("created", cell(&s["createdAt"])),
        ("last active", cell(&s["lastActiveAt"])),
    ])
}

/// The conversation as text: the role, then the text. Tools appear only with `-o json`.
fn conversation(out: &Output, messages: &Value) -> Result<(), CtlError> {
    for message in messages["messages"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let content: Value = serde_json::from_str(message["content"].as_str().unwrap_or("null")).unwrap_or(Value::Null);
        let body = if content["message"].is_object() { &content["message"]["content"] } else { &content["content"] };
        let text = match body {
            Value::String(text) => text.clone(),
            Value::Array(blocks) => blocks.iter().filter_map(|b| b["text"].as_str()).collect::<Vec<_>>().join("\n"),
            _ => continue,
        };
        if !text.is_empty() {
            let text = super::render::printable(&text);
            out.line(&format!("{} {}> {text}", cell(&message["sequence"]), cell(&message["role"])))?;
        }
    }
    Ok(())
}

fn message(words: &[String]) -> Result<String, CtlError> {
    if words != ["-"] {
        return Ok(words.join(" "));
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| CtlError::File { path: "standard input".to_owned(), source: e })?;
    Ok(text)
}

fn path(id: &str) -> String {
    format!("/api/sessions/{}", encode(id, false))
}

fn page_query(page: Page, kind: Option<String>) -> String {
    query(&[("limit", page.limit.map(|n| n.to_string())), ("after", page.after.map(|n| n.to_string())), ("type", kind)])
}

pub(super) fn query(fields: &[(&str, Option<String>)]) -> String {
    let given: Vec<String> = fields
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", encode(value, false))))
        .collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let words = |words: &[&str]| line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["ls | wc -l"]), "ls | wc -l");
        assert_eq!(words(&["bash", "-c", "echo $1"]), "'bash' '-c' 'echo $1'");
        assert_eq!(words(&["it's", ""]), r"'it'\''s' ''");
        let given = ["printf", "<%s>", "a  b", "$HOME", "*", "\"q\"", "it's", "", "new\nline", ";", "-n", "\\"];
        let ran = std::process::Command::new("/bin/sh").args(["-c", &words(&given)]).output().unwrap();
        let wanted: String = given[2..].iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), wanted);
    }

    #[test]
    fn queries_hold_what_was_given() {
        assert_eq!(query(&[("a", None)]), "");
        assert_eq!(query(&[("a", Some("x y".into())), ("b", None), ("c", Some("1".into()))]), "?a=x%20y&c=1");
    }
}
