//! ashd: the daemon.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use ashd::boot::{self, keeper};
use ashd::config::Config;
use clap::{Args, Parser, Subcommand};

/// Claude Code agents as a service: one kernel-enforced sandbox per session, over the Ash REST API.
#[derive(Debug, Parser)]
#[command(name = "ashd", version, after_long_help = HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve in the foreground (default command).
    Serve(File),
    /// Check the configuration; print OK, or every error with file, line and key.
    CheckConfig(File),
    /// Stop a manually started daemon: ashd, its sandboxes, launcher and gateway.
    Stop(File),
    #[command(name = keeper::UNPRIVILEGED, hide = true)]
    ServeUnprivileged,
    #[command(name = keeper::KEEP, hide = true)]
    Keep {
        file: PathBuf,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

#[derive(Args, Debug, Default)]
struct File {
    /// Configuration file instead of /etc/ashd/ashd.toml; its drop-ins are FILE.d/*.toml.
    #[arg(long = "config", value_name = "FILE")]
    path: Option<PathBuf>,
}

const HELP: &str = "\
Quick start, as root, without systemd and without a model key (the offline model answers):
  ASH_DATA_DIR=/var/lib/ashd ashd          serves on port 4100; the API key is in <data dir>/initial-api-key
  ashctl health                            in another terminal
  ashd stop                                ends ashd and everything it started

Started as root, ashd starts ash-launcher and ash-gateway, then drops all privileges. Both outlive it: ashd can be
restarted at any time, sandboxes continue, and the next ashd finds them. As another user, ashd needs both to be
running (systemd starts them this way).

Configuration (later overrides earlier): defaults, /etc/ashd/ashd.toml, /etc/ashd/ashd.toml.d/*.toml, environment:
  ASH_PORT ASH_HOST ASH_API_KEY ASH_DATA_DIR ASH_RUN_DIR ASH_MAX_SANDBOXES ASH_IDLE_TIMEOUT_MS ASH_CLAUDE_BIN
  ASH_CREDENTIAL_KEY ASH_MAX_ATTACHMENT_SIZE ASH_UPSTREAM (offline, or a URL)
  ANTHROPIC_API_KEY ANTHROPIC_BASE_URL ANTHROPIC_CUSTOM_HEADERS (only for the gateway)
ASH_LOG (log.level) sets the log level: error warn info debug trace, or module=level.

Signals: SIGTERM and SIGINT end ashd within a second; sandboxes continue. SIGHUP reads the configuration again.
Exit status: 0 success, 1 an error, written to stderr, 2 wrong usage.";

/// Ignores a closed pipe: `ashd stop | head` must still end the sandboxes.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn main() -> ExitCode {
    let result = match Cli::parse().command.unwrap_or_else(|| Command::Serve(File::default())) {
        Command::Serve(file) => boot::serve(file.path.as_deref()).map_err(|error| error.to_string()),
        Command::CheckConfig(file) => {
            Config::load(file.path.as_deref()).map(|_| say("OK")).map_err(|errors| errors.to_string())
        }
        Command::Stop(file) => {
            boot::stop(file.path.as_deref()).map(|said| say(&said)).map_err(|error| error.to_string())
        }
        Command::ServeUnprivileged => boot::serve_handed_over().map_err(|error| error.to_string()),
        Command::Keep { file, command } => keeper::keep(&file, &command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("ashd: {text}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
