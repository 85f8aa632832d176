//! `ashctl tenant`.

use super::CtlError;
use super::cli::TenantCommand;
use super::client::{Client, encode};
use super::output::{Output, cell};

pub async fn run(client: &Client, out: &Output, command: TenantCommand) -> Result<(), CtlError> {
    let TenantCommand::Delete { name, yes } = command;
    if !yes {
        return Err(CtlError::Usage(format!(
            "this permanently deletes every key, agent, session, file and message of tenant {name}. To confirm: \
             ashctl tenant delete {name} --yes"
        )));
    }
    let answer = client.delete(&format!("/api/tenants/{}", encode(&name, false))).await?;
    if out.json() {
        return out.value(&answer);
    }
    let [keys, agents, sessions] = ["keys", "agents", "sessions"].map(|what| cell(&answer["deleted"][what]));
    out.line(&format!("deleted {name}: {keys} keys, {agents} agents, {sessions} sessions"))
}
