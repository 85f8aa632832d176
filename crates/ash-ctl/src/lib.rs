//! ashctl: the command-line client of ashd's REST API.
//!
//! ```text
//!   cli (clap)  ->  agents, sessions, top, keys ...  ->  client (hyper)  ->  ashd
//!                            |                     |
//!                         output (tables, JSON)   sse -> render (a turn in a terminal)
//!   claude_install: uses npm, needs no daemon; backup: uses the data directory
//! ```
//!
//! Exit codes: 0 done; 1 the request or the turn failed; 2 wrong usage; 3 the daemon cannot be
//! reached; 4 not authorised.

mod agents;
pub mod backup;
mod claude_archive;
mod claude_fetch;
pub mod claude_install;
mod claude_migrate;
pub mod cli;
pub mod client;
mod credentials;
mod error;
mod evals;
mod first_key;
mod folder;
mod keys;
mod limits;
mod manual;
mod output;
mod queue;
pub mod render;
mod sessions;
pub mod sse;
mod tenants;
mod top;
mod turn;
pub mod unix;

pub use error::CtlError;

use cli::{Cli, Command};
use client::Client;
use output::Output;

/// Runs one command.
///
/// # Errors
/// What failed, with its exit code and hint.
pub async fn run(cli: Cli) -> Result<(), CtlError> {
    let out = Output::new(cli.output);
    if let Command::Claude { command } = &cli.command {
        let places = claude_install::Places { claude_dir: &cli.claude_dir, data_dir: &cli.data_dir };
        return claude_install::run(command, places, &out);
    }
    if let Command::Completions { shell } = &cli.command {
        return completions(*shell, &out);
    }
    if let Command::Manual = &cli.command {
        return out.raw(manual::page(<Cli as clap::CommandFactory>::command()).as_bytes());
    }
    let cli = match cli.command {
        Command::Backup(args) => return backup::backup(args, &cli.data_dir, &out).await,
        Command::CopyDatabase(args) => return backup::copy_database(args).await,
        Command::Restore(args) => return backup::restore(args, &cli.data_dir, &out).await,
        command => Cli { command, ..cli },
    };
    let (url, key) = first_key::choose(&cli)?;
    let client = Client::new(&url, key)?;
    match cli.command {
        Command::Health => health(&client, &out).await,
        Command::Agent { command } => agents::run(&client, &out, command).await,
        Command::Session { command } => sessions::run(&client, &out, command).await,
        Command::Limits { command } => limits::run(&client, &out, command).await,
        Command::Top(args) => top::run(&client, &out, &args).await,
        Command::Queue { command } => queue::run(&client, &out, command).await,
        Command::Eval { command } => evals::run(&client, &out, command).await,
        Command::Credentials { command } => credentials::run(&client, &out, command).await,
        Command::Keys { command } => keys::run(&client, &out, command).await,
        Command::Tenant { command } => tenants::run(&client, &out, command).await,
        // Handled above: they need no daemon.
        Command::Claude { .. }
        | Command::Doctor { .. }
        | Command::Completions { .. }
        | Command::Manual
        | Command::Backup(_)
        | Command::CopyDatabase(_)
        | Command::Restore(_) => Ok(()),
    }
}

fn completions(shell: clap_complete::Shell, out: &Output) -> Result<(), CtlError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut <Cli as clap::CommandFactory>::command(), "ashctl", &mut text);
    out.raw(&text)
}

async fn health(client: &Client, out: &Output) -> Result<(), CtlError> {
    let health = client.get("/health").await?;
    if out.json() {
        return out.value(&health);
    }
    let pool = &health["pool"];
    out.fields(&[
        ("status", output::cell(&health["status"])),
        ("version", output::cell(&health["version"])),
        ("uptime", format!("{} s", output::cell(&health["uptime"]))),
        ("active sessions", output::cell(&health["activeSessions"])),
        (
            "live sandboxes",
            format!("{} of {}", output::cell(&health["activeSandboxes"]), output::cell(&pool["maxCapacity"])),
        ),
        (
            "pool",
            ["running", "waiting", "warm", "warming", "cold"]
                .map(|state| format!("{} {state}", output::cell(&pool[state])))
                .join(", "),
        ),
    ])
}
