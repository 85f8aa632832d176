//! `ashctl agent`.

use serde_json::{Map, Value, json};

use super::cli::AgentCommand;
use super::client::{Client, encode};
use super::output::{Output, cell};
use super::{CtlError, folder};

pub async fn run(client: &Client, out: &Output, command: AgentCommand) -> Result<(), CtlError> {
    match command {
        AgentCommand::Deploy { dir, name, env } => {
            let name = match name {
                Some(name) => name,
                None => folder::name_of(&dir)?,
            };
            let files = folder::read(&dir)?;
            let bytes: u64 = files.iter().map(|file| file.size).sum();
            let plural = if files.len() == 1 { "" } else { "s" };
            eprintln!("uploading {} file{plural}, {bytes} bytes, as agent \"{name}\"", files.len());
            let files: Vec<Value> = files.into_iter().map(|f| json!({ "path": f.path, "content": f.base64 })).collect();
            let mut body = json!({ "name": name, "files": files });
            if !env.is_empty() {
                body["env"] = Value::Object(env.into_iter().map(|(k, v)| (k, json!(v))).collect::<Map<_, _>>());
            }
            let answer = client.post("/api/agents", &body).await?;
            if out.json() {
                return out.value(&answer);
            }
            out.line(&format!("deployed {name}, version {}", cell(&answer["agent"]["version"])))
        }
        AgentCommand::List => {
            let agents = client.get("/api/agents").await?;
            let columns = [("name", "name"), ("version", "version"), ("updated", "updatedAt"), ("path", "path")];
            out.rows(&agents, "agents", &columns)
        }
        AgentCommand::Info { name } => {
            let answer = client.get(&path(&name)).await?;
            if out.json() {
                return out.value(&answer);
            }
            let agent = answer["agent"].as_object().cloned().unwrap_or_default();
            let fields: Vec<(&str, String)> = agent.iter().map(|(k, v)| (k.as_str(), cell(v))).collect();
            out.fields(&fields)
        }
        AgentCommand::Delete { name } => {
            let answer = client.delete(&path(&name)).await?;
            if out.json() { out.value(&answer) } else { out.line(&format!("deleted {name}; its sessions continue")) }
        }
    }
}

fn path(name: &str) -> String {
    format!("/api/agents/{}", encode(name, false))
}
