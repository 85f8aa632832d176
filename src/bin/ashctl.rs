//! ashctl: the command line of ashd. What it does is in `ashd::ctl`.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = ashd::ctl::cli::Cli::parse();
    let Err(error) = ashd::ctl::run(cli).await else { return ExitCode::SUCCESS };
    if !error.is_silent() {
        eprintln!("ashctl: {error}");
        if let Some(hint) = error.hint() {
            eprintln!("        {hint}");
        }
    }
    ExitCode::from(error.exit_code())
}
