//! The command line. The manual is generated from its help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Default URL of ashd.
pub const URL: &str = "http://127.0.0.1:4100";

#[derive(Debug, Parser)]
#[command(
    name = "ashctl",
    version,
    about = "Deploys agents, opens sessions and talks to them, over the API of ashd",
    after_help = "First steps:\n  sudo ashctl claude install\n  ashctl agent deploy ./my-agent\n  ashctl session create my-agent\n  ashctl session send ID \"What files are in the workspace?\"\n\n\
                  Exit codes: 0 done, 1 the request or the turn failed, 2 wrong usage, 3 ashd cannot be reached, 4 not authorised;\n`session exec` has the exit code of its command."
)]
pub struct Cli {
    /// URL of ashd: http://, https://, or unix:/run/ashd/ashd.sock, where root and members of group
    /// ashd need no key. Without a key and a URL, ashctl tries that socket first.
    #[arg(long, env = "ASH_URL", default_value = URL, global = true)]
    pub url: String,
    /// API key. Default: <DATA_DIR>/initial-api-key if it can be read. ashctl sends that key to
    /// ashd on this host only, and not to a port on which another user listens.
    #[arg(long, env = "ASH_API_KEY", hide_env_values = true, global = true)]
    pub key: Option<String>,
    /// ashd's data directory: for the first key, backup and restore.
    #[arg(long, env = "ASH_DATA_DIR", default_value = "/var/lib/ashd", global = true)]
    pub data_dir: PathBuf,
    /// Directory of the Claude Code versions. Only root can change it and its parents.
    #[arg(long, env = "ASH_CLAUDE_DIR", default_value = ash_model::CLAUDE_DIR, global = true)]
    pub claude_dir: PathBuf,
    /// Tables for people, JSON for programs.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows whether ashd serves requests, and what is in use.
    Health,
    /// Checks host and installation, and shows how to fix what is wrong. Exit codes: 0 all well, 1
    /// warnings, 2 failures.
    Doctor {
        /// Same as `-o json`.
        #[arg(long)]
        json: bool,
        /// Configuration file to check instead of /etc/ashd/ashd.toml.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Agents: directories with a CLAUDE.md.
    #[command(after_help = "Example: ashctl agent deploy ./my-agent --env TEAM=blue && ashctl agent info my-agent")]
    Agent {
        #[command(subcommand)]
        command: AgentCommand,
    },
    /// Sessions: one Claude Code process each, in its own sandbox.
    #[command(
        after_help = "Example:\n  id=$(ashctl session create my-agent)\n  ashctl session send $id \"What files are here?\"\n  \
                            ashctl session exec $id git status\n  ashctl session pause $id; ashctl session resume $id\n  ashctl session end $id\n\n\
                            Its timeline: ashctl session events ID; journalctl ASH_SESSION=ID"
    )]
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Limits of sessions: memory, cpu, processes, disk, time of a turn.
    Limits {
        #[command(subcommand)]
        command: LimitsCommand,
    },
    /// API keys.
    #[command(after_help = "Example: ashctl keys create laptop --tenant acme; the key is shown only once")]
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Tenants, whose keys, agents and sessions are separate. The first key of a tenant creates it
    /// (`ashctl keys create --tenant`).
    #[command(after_help = "Example: ashctl keys create laptop --tenant acme; ashctl tenant delete acme --yes")]
    Tenant {
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Shows live usage: state, memory, cpu, pressure, turn, tokens.
    Top(super::top::TopArgs),
    /// Prompts that are processed when capacity is free.
    Queue {
        #[command(subcommand)]
        command: super::queue::QueueCommand,
    },
    /// Evaluates an agent with questions and expected topics.
    #[command(
        after_help = "Example:\n  ashctl eval import my-agent evals.json\n  ashctl eval run my-agent --version 1\n  \
                            ashctl eval runs my-agent\n  ashctl eval compare my-agent RUN_A RUN_B"
    )]
    Eval {
        #[command(subcommand)]
        command: super::evals::EvalCommand,
    },
    /// Model keys of tenants, sealed by ashd.
    Credentials {
        #[command(subcommand)]
        command: super::credentials::CredentialsCommand,
    },
    /// Copies the database and session files into one archive, while ashd runs.
    #[command(
        after_help = "Example: sudo ashctl backup /backup/ashd.tar.gz && sudo ashctl restore --verify /backup/ashd.tar.gz"
    )]
    Backup(super::backup::BackupArgs),
    /// Restores a backup (ashd must be stopped), or only checks it.
    Restore(super::backup::RestoreArgs),
    /// Part of backup that does not run as root.
    #[command(hide = true)]
    CopyDatabase(super::backup::CopyDatabaseArgs),
    /// Versions of Claude Code on this host.
    Claude {
        #[command(subcommand)]
        command: super::claude_install::ClaudeCommand,
    },
    /// Prints shell completions: `ashctl completions bash > /etc/bash_completion.d/ashctl`.
    Completions { shell: clap_complete::Shell },
    /// Prints the manual page ashctl(1).
    #[command(hide = true)]
    Manual,
}

#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Uploads a directory with a CLAUDE.md, without .git, node_modules and caches.
    Deploy {
        dir: PathBuf,
        /// Agent name: 1 to 255 of A-Z a-z 0-9 _ - (default: the directory's name).
        #[arg(long)]
        name: Option<String>,
        /// Environment variable for every session of this agent, as NAME=VALUE (repeatable).
        #[arg(long = "env", value_parser = pair)]
        env: Vec<(String, String)>,
    },
    /// Lists all agents, by name.
    List,
    Info {
        name: String,
    },
    /// Deletes the agent; its sessions continue.
    Delete {
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct Page {
    /// Maximum number of entries.
    #[arg(long)]
    pub limit: Option<u32>,
    /// Only entries with a greater sequence number.
    #[arg(long)]
    pub after: Option<i64>,
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Creates a session; returns when claude is ready.
    Create {
        agent: String,
        #[arg(long)]
        model: Option<String>,
        /// Text to append to the agent's instructions.
        #[arg(long)]
        system_prompt: Option<String>,
        /// Environment variable for this session, as NAME=VALUE (repeatable).
        #[arg(long = "env", value_parser = pair)]
        env: Vec<(String, String)>,
    },
    /// Sends a message and streams the answer; `-` reads the message from standard input.
    Send {
        id: String,
        #[arg(required = true, num_args = 1..)]
        text: Vec<String>,
    },
    /// Conversation in the terminal, one turn per line. Ctrl-D leaves; the session stays.
    Chat {
        id: String,
    },
    /// Lists sessions, newest first.
    List {
        #[arg(long)]
        agent: Option<String>,
        /// starting, active, paused, stopped, ended or error.
        #[arg(long)]
        status: Option<String>,
        #[arg(long)]
        limit: Option<u32>,
    },
    Info {
        id: String,
    },
    /// Runs a command in the session's sandbox, also during a turn; ashctl exits with its exit
    /// code.
    Exec {
        id: String,
        /// Milliseconds (1 to 300000) until the command and everything it started are killed.
        #[arg(long, default_value_t = 30_000)]
        timeout: u32,
        /// Command, run in /workspace. One argument is a line for bash: 'ls | wc -l'. Several
        /// arguments are a program and its arguments, passed unchanged: bash -c 'echo "$1"' x 'two
        /// words'.
        #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Freezes every process of the session.
    Pause {
        id: String,
    },
    Resume {
        id: String,
    },
    /// Ends the running turn cleanly.
    Interrupt {
        id: String,
    },
    /// Ends the processes and keeps everything else; `resume` starts them again.
    Stop {
        id: String,
    },
    /// Ends the session permanently; its files can still be read.
    End {
        id: String,
        /// Also remove its files, messages, timeline and attachments immediately.
        #[arg(long)]
        purge: bool,
    },
    /// Lists the workspace.
    Files {
        id: String,
    },
    /// Writes one file of the workspace to standard output.
    Cat {
        id: String,
        path: String,
    },
    /// Shows what the kernel was measured to enforce, layer by layer.
    Confinement {
        id: String,
    },
    /// Shows the timeline.
    Events {
        id: String,
        /// lifecycle, text, tool_start, tool_result, reasoning, error or turn_complete.
        #[arg(long = "type")]
        kind: Option<String>,
        #[command(flatten)]
        page: Page,
    },
    /// Shows the conversation.
    Messages {
        id: String,
        #[command(flatten)]
        page: Page,
    },
    /// Shows what claude and its tools wrote to standard error.
    Logs {
        id: String,
        /// Only lines after this index.
        #[arg(long)]
        after: Option<i64>,
        /// Continue with new lines until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
    },
    /// Follows the session's stream, including turns of other clients, until Ctrl-C.
    Tail {
        id: String,
        /// Start after this event id (the `id:` of a frame) instead of now.
        #[arg(long)]
        after: Option<String>,
    },
}

/// Whose limits; without an option, those of the key's tenant.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Level {
    /// Limits of one session.
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Limits of each session of an agent.
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,
    /// Limits of each session of another tenant (needs the admin role).
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// Shows the effective limits, and which level sets each.
    Show {
        #[command(flatten)]
        level: Level,
    },
    /// Changes limits immediately, without a restart.
    #[command(after_help = "Example: ashctl limits set --session ID memory=4GiB cpu=1.5 pids=256 disk=2GiB turn=30m\n\
                            The value none removes the level's own value; then the levels above it decide.")]
    Set {
        #[command(flatten)]
        level: Level,
        /// memory, swap, cpu (cores), weight, pids, io-read, io-write, io-read-ops, io-write-ops
        /// (per second), disk, files or turn, and for a tenant storage (all its files and rows
        /// together), as NAME=VALUE.
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = super::limits::parse_named)]
        limits: Vec<(String, Option<u64>)>,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Creates a key and shows it once.
    Create {
        label: String,
        /// Key for another tenant (needs the admin role).
        #[arg(long)]
        tenant: Option<String>,
        /// Key with the admin role (needs the admin role; tenant `default` only).
        #[arg(long, conflicts_with = "tenant")]
        admin: bool,
    },
    /// Lists the tenant's keys; only admins see keys with the admin role.
    List,
    /// Revokes a key immediately. Only admins can revoke keys with the admin role, and never the
    /// last one.
    Revoke { id: String },
}

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Deletes a tenant with all its keys, agents, sessions, files and messages (needs the admin
    /// role).
    ///
    /// Its usage stays on record. The default tenant cannot be deleted.
    Delete {
        name: String,
        /// Confirm: only a backup can bring the data back.
        #[arg(long)]
        yes: bool,
    },
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("\"{text}\" is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn variables_are_name_and_value() {
        assert_eq!(pair("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(pair("A="), Ok(("A".into(), String::new())));
        assert!(pair("=x").is_err());
        assert!(pair("A").is_err());
    }
}
