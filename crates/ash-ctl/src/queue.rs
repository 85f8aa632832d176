//! `ashctl queue`: prompts that are processed when capacity is free.

use clap::Subcommand;
use serde_json::{Value, json};

use super::CtlError;
use super::client::{Client, encode};
use super::output::{Output, cell};

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Queues a prompt for an agent; prints the item's id.
    Add {
        agent: String,
        #[arg(required = true, num_args = 1..)]
        prompt: Vec<String>,
        /// Use this session instead of a new one.
        #[arg(long)]
        session: Option<String>,
        /// Priority; higher values first (default 0).
        #[arg(long)]
        priority: Option<i64>,
    },
    /// Lists items, newest first.
    List {
        /// pending, processing, completed, failed or cancelled.
        #[arg(long)]
        status: Option<String>,
        #[arg(long)]
        limit: Option<u32>,
    },
    /// Shows one item with its result.
    Info { id: String },
    /// Cancels a pending item.
    Cancel { id: String },
    /// Shows the number of items in each state.
    Stats,
}

pub async fn run(client: &Client, out: &Output, command: QueueCommand) -> Result<(), CtlError> {
    match command {
        QueueCommand::Add { agent, prompt, session, priority } => {
            let mut body = json!({ "agentName": agent, "prompt": prompt.join(" ") });
            let given = [("sessionId", session.map(Value::from)), ("priority", priority.map(Value::from))];
            for (name, value) in given {
                if let Some(value) = value {
                    body[name] = value;
                }
            }
            let answer = client.post("/api/queue", &body).await?;
            if out.json() { out.value(&answer) } else { out.line(&cell(&answer["item"]["id"])) }
        }
        QueueCommand::List { status, limit } => {
            let query = super::sessions::query(&[("status", status), ("limit", limit.map(|n| n.to_string()))]);
            let list = client.get(&format!("/api/queue{query}")).await?;
            let columns = [
                ("id", "id"),
                ("agent", "agentName"),
                ("status", "status"),
                ("priority", "priority"),
                ("session", "sessionId"),
                ("created", "createdAt"),
            ];
            out.rows(&list, "items", &columns)
        }
        QueueCommand::Info { id } => {
            let answer = client.get(&path(&id)).await?;
            if out.json() {
                return out.value(&answer);
            }
            let item = answer["item"].as_object().cloned().unwrap_or_default();
            let fields: Vec<(&str, String)> = item.iter().map(|(name, value)| (name.as_str(), cell(value))).collect();
            out.fields(&fields)
        }
        QueueCommand::Cancel { id } => {
            let answer = client.delete(&path(&id)).await?;
            if out.json() { out.value(&answer) } else { out.line(&format!("cancelled {id}")) }
        }
        QueueCommand::Stats => {
            let answer = client.get("/api/queue/stats").await?;
            if out.json() {
                return out.value(&answer);
            }
            let states = ["pending", "processing", "completed", "failed", "cancelled"];
            out.fields(&states.map(|state| (state, cell(&answer["stats"][state]))))
        }
    }
}

fn path(id: &str) -> String {
    format!("/api/queue/{}", encode(id, false))
}
