//! The command line. Its help texts are the manual's.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where ashd listens unless it is told otherwise.
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
    /// Where ashd listens: http://, https://, or unix:/run/ashd/ashd.sock, where root and group ashd need no key. Without
    /// a key and a URL that socket is tried first.
    #[arg(long, env = "ASH_URL", default_value = URL, global = true)]
    pub url: String,
    /// API key; without it, <DATA_DIR>/initial-api-key where that can be read: it is sent to this host's ashd alone, and not
    /// to a port on which another user listens.
    #[arg(long, env = "ASH_API_KEY", hide_env_values = true, global = true)]
    pub key: Option<String>,
    /// ashd's data directory: for the first key, backup and restore.
    #[arg(long, env = "ASH_DATA_DIR", default_value = "/var/lib/ashd", global = true)]
    pub data_dir: PathBuf,
    /// Where versions of Claude Code are installed; root's alone, like all that leads there.
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
    /// Whether ashd serves, and what is in use.
    Health,
    /// What this host lacks, and the command that mends it. Exit codes: 0 all well, 1 warnings, 2 failures.
    Doctor {
        /// The same as `-o json`.
        #[arg(long)]
        json: bool,
        /// Another configuration than /etc/ashd/ashd.toml.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Agents: folders with a CLAUDE.md.
    #[command(after_help = "Example: ashctl agent deploy ./my-agent --env TEAM=blue && ashctl agent info my-agent")]
    Agent {
        #[command(subcommand)]
        command: AgentCommand,
    },
    /// Sessions: one Claude Code process each, in a sandbox of its own.
    #[command(
        after_help = "Example:\n  id=$(ashctl session create my-agent)\n  ashctl session send $id \"What files are here?\"\n  \
                            ashctl session exec $id git status\n  ashctl session pause $id; ashctl session resume $id\n  ashctl session end $id\n\n\
                            What happened to it: ashctl session events ID; journalctl ASH_SESSION=ID"
    )]
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// What sessions may use: memory, cpu, processes, disk, time of a turn.
    Limits {
        #[command(subcommand)]
        command: LimitsCommand,
    },
    /// API keys.
    #[command(after_help = "Example: ashctl keys create laptop --tenant acme; the key is shown this once")]
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Tenants: whose keys, agents and sessions are kept apart. One begins with its first key (`ashctl keys create --tenant`).
    #[command(after_help = "Example: ashctl keys create laptop --tenant acme; ashctl tenant delete acme --yes")]
    Tenant {
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Who uses what, live: state, memory, cpu, pressure, turn, tokens.
    Top(super::top::TopArgs),
    /// Prompts that are worked on when there is room.
    Queue {
        #[command(subcommand)]
        command: super::queue::QueueCommand,
    },
    /// Measures an agent with questions whose answers are known.
    #[command(
        after_help = "Example:\n  ashctl eval import my-agent evals.json\n  ashctl eval run my-agent --version 1\n  \
                            ashctl eval runs my-agent\n  ashctl eval compare my-agent RUN_A RUN_B"
    )]
    Eval {
        #[command(subcommand)]
        command: super::evals::EvalCommand,
    },
    /// Keys of tenants for the model, sealed by ashd.
    Credentials {
        #[command(subcommand)]
        command: super::credentials::CredentialsCommand,
    },
    /// Copies database and session files into one archive, while ashd runs.
    #[command(
        after_help = "Example: sudo ashctl backup /backup/ashd.tar.gz && sudo ashctl restore --verify /backup/ashd.tar.gz"
    )]
    Backup(super::backup::BackupArgs),
    /// Puts a backup back (ashd must be stopped), or only checks it.
    Restore(super::backup::RestoreArgs),
    /// A part of backup, which root does not do itself.
    #[command(hide = true)]
    CopyDatabase(super::backup::CopyDatabaseArgs),
    /// Versions of Claude Code on this host.
    Claude {
        #[command(subcommand)]
        command: super::claude_install::ClaudeCommand,
    },
    /// Prints the completions of a shell: `ashctl completions bash > /etc/bash_completion.d/ashctl`.
    Completions { shell: clap_complete::Shell },
    /// Prints ashctl(1), for the package.
    #[command(hide = true)]
    Manual,
}

#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Uploads a folder that holds a CLAUDE.md; .git, node_modules and caches stay behind.
    Deploy {
        dir: PathBuf,
        /// Its name: 1 to 255 of A-Z a-z 0-9 _ - (default: the folder's).
        #[arg(long)]
        name: Option<String>,
        /// A variable of every session of this agent, as NAME=VALUE (repeatable).
        #[arg(long = "env", value_parser = pair)]
        env: Vec<(String, String)>,
    },
    /// All agents, by name.
    List,
    Info {
        name: String,
    },
    /// Deletes the agent; its sessions go on.
    Delete {
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct Page {
    /// At most so many.
    #[arg(long)]
    pub limit: Option<u32>,
    /// Only those with a greater sequence number.
    #[arg(long)]
    pub after: Option<i64>,
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Opens a session; answers when claude is ready.
    Create {
        agent: String,
        #[arg(long)]
        model: Option<String>,
        /// Added to the agent's instructions.
        #[arg(long)]
        system_prompt: Option<String>,
        /// A variable of this session, as NAME=VALUE (repeatable).
        #[arg(long = "env", value_parser = pair)]
        env: Vec<(String, String)>,
    },
    /// Sends a message and streams the answer; `-` reads the message from standard input.
    Send {
        id: String,
        #[arg(required = true, num_args = 1..)]
        text: Vec<String>,
    },
    /// A conversation in the terminal: one line, one turn; Ctrl-D leaves, the session stays.
    Chat {
        id: String,
    },
    /// Sessions, newest first.
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
    /// Runs a command in the session's sandbox, beside a running turn; ashctl exits with the command's exit code.
    Exec {
        id: String,
        /// Milliseconds (1 to 300000) until the command and everything it started are killed.
        #[arg(long, default_value_t = 30_000)]
        timeout: u32,
        /// Runs in /workspace. One argument is a line for bash: 'ls | wc -l'. Several are a program and its arguments, which arrive
        /// as they are: bash -c 'echo "$1"' x 'two words'.
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
    /// Ends the session for good; its files can still be read.
    End {
        id: String,
        /// Also removes its files, messages, timeline and attachments, at once.
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
    /// What the kernel was measured to enforce, layer by layer.
    Confinement {
        id: String,
    },
    /// The timeline.
    Events {
        id: String,
        /// lifecycle, text, tool_start, tool_result, reasoning, error or turn_complete.
        #[arg(long = "type")]
        kind: Option<String>,
        #[command(flatten)]
        page: Page,
    },
    /// The conversation so far.
    Messages {
        id: String,
        #[command(flatten)]
        page: Page,
    },
    /// What claude and its tools wrote to standard error.
    Logs {
        id: String,
        /// Only lines after this index.
        #[arg(long)]
        after: Option<i64>,
        /// Go on with what is written from now on, until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
    },
    /// Follows the session's stream, whoever sends the messages, until Ctrl-C.
    Tail {
        id: String,
        /// Start after this event id (the `id:` of a frame) instead of now.
        #[arg(long)]
        after: Option<String>,
    },
}

/// Whose limits: one of them, or none for the key's own tenant.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Level {
    /// Of one session.
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Of each session of an agent.
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,
    /// Of each session of another tenant (needs the admin).
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// What holds, and which level decided it.
    Show {
        #[command(flatten)]
        level: Level,
    },
    /// Changes limits at once, without a restart of anything.
    #[command(after_help = "Example: ashctl limits set --session ID memory=4GiB cpu=1.5 pids=256 disk=2GiB turn=30m\n\
                            A value of none takes the level's own word back; then the levels above it decide.")]
    Set {
        #[command(flatten)]
        level: Level,
        /// memory, swap, cpu (cores), weight, pids, io-read, io-write, io-read-ops, io-write-ops (a second), disk, files or turn,
        /// and of a tenant storage (all its files and rows together), as NAME=VALUE.
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = super::limits::parse_named)]
        limits: Vec<(String, Option<u64>)>,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Makes a key and shows it, this once.
    Create {
        label: String,
        /// For another tenant (needs the admin).
        #[arg(long)]
        tenant: Option<String>,
        /// With the admin role (needs the admin; tenant `default` only).
        #[arg(long, conflicts_with = "tenant")]
        admin: bool,
    },
    /// The tenant's keys; those with the admin role are shown to admins only.
    List,
    /// The key stops working at once. Keys with the admin role are revoked by admins only, the last of them never.
    Revoke { id: String },
}

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Deletes a tenant with everything it has: keys, agents, sessions with their files and messages (needs the admin).
    ///
    /// What it used stays on record. The default tenant cannot be deleted.
    Delete {
        name: String,
        /// Really: nothing of it can be brought back but from a backup.
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
