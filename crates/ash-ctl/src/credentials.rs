//! `ashctl credentials`: model keys of tenants, sealed by ashd.

use std::io::Read;

use clap::Subcommand;
use serde_json::json;

use super::CtlError;
use super::client::{Client, encode};
use super::output::{Output, cell};

#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// Stores a key, read from standard input and never shown again: `ashctl credentials add
    /// anthropic < key`.
    Add {
        /// anthropic or custom.
        #[arg(value_name = "TYPE")]
        kind: String,
        #[arg(long)]
        label: Option<String>,
    },
    List,
    /// Deletes a credential. Sessions that use it continue; new sessions cannot use it.
    Delete {
        id: String,
    },
}

pub async fn run(client: &Client, out: &Output, command: CredentialsCommand) -> Result<(), CtlError> {
    match command {
        CredentialsCommand::Add { kind, label } => {
            let mut key = String::new();
            let read = std::io::stdin().read_to_string(&mut key);
            read.map_err(|source| CtlError::File { path: "standard input".to_owned(), source })?;
            let mut body = json!({ "type": kind, "key": key.trim() });
            if let Some(label) = label {
                body["label"] = json!(label);
            }
            let answer = client.post("/api/credentials", &body).await?;
            if out.json() { out.value(&answer) } else { out.line(&cell(&answer["credential"]["id"])) }
        }
        CredentialsCommand::List => {
            let list = client.get("/api/credentials").await?;
            let columns = [
                ("id", "id"),
                ("type", "type"),
                ("label", "label"),
                ("active", "active"),
                ("created", "createdAt"),
                ("last used", "lastUsedAt"),
            ];
            out.rows(&list, "credentials", &columns)
        }
        CredentialsCommand::Delete { id } => {
            client.delete(&format!("/api/credentials/{}", encode(&id, false))).await?;
            if out.json() { out.value(&json!({ "deleted": id })) } else { out.line(&format!("deleted {id}")) }
        }
    }
}
