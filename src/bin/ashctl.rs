//! ashctl: the command line of ashd, implemented in `ash_ctl`.

use std::process::ExitCode;

use ash_ctl::cli::{Cli, Command, Format};
use ash_ctl::render::printable;
use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Doctor { json, config } = &cli.command {
        return doctor(*json || cli.output == Format::Json, config.as_deref()).await;
    }
    let Err(error) = ash_ctl::run(cli).await else { return ExitCode::SUCCESS };
    if !error.is_silent() {
        // The text may contain words of ashd, npm or an agent's file names.
        eprintln!("ashctl: {}", printable(&error.to_string()));
        if let Some(hint) = error.hint() {
            eprintln!("        {hint}");
        }
    }
    ExitCode::from(error.exit_code())
}

async fn doctor(json: bool, config: Option<&std::path::Path>) -> ExitCode {
    let diagnosis = ashd::doctor::examine(config).await;
    if json {
        println!("{}", serde_json::to_string_pretty(&diagnosis).expect("plain data"));
    } else {
        print!("{}", printable(&diagnosis.text()));
    }
    ExitCode::from(diagnosis.exit_code())
}
