//! `ashctl keys`.

use serde_json::json;

use super::CtlError;
use super::cli::KeysCommand;
use super::client::{Client, encode};
use super::output::{Output, cell};

pub async fn run(client: &Client, out: &Output, command: KeysCommand) -> Result<(), CtlError> {
    match command {
        KeysCommand::Create { label, tenant, admin } => {
            let mut body = json!({ "label": label });
            if let Some(tenant) = tenant {
                body["tenantId"] = json!(tenant);
            }
            if admin {
                body["admin"] = json!(true);
            }
            let made = client.post("/api/api-keys", &body).await?;
            if out.json() {
                return out.value(&made);
            }
            out.fields(&[("id", cell(&made["id"])), ("key", cell(&made["key"]))])?;
            eprintln!("Save the key now: only its hash is stored, it cannot be shown again.");
            Ok(())
        }
        KeysCommand::List => {
            let keys = client.get("/api/api-keys").await?;
            let columns =
                [("id", "id"), ("label", "label"), ("key", "keyPrefix"), ("admin", "admin"), ("created", "createdAt")];
            out.rows(&keys, "keys", &columns)
        }
        KeysCommand::Revoke { id } => {
            client.delete(&format!("/api/api-keys/{}", encode(&id, false))).await?;
            if out.json() { out.value(&json!({ "revoked": id })) } else { out.line(&format!("revoked {id}")) }
        }
    }
}
