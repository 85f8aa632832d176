//! Measures the promised numbers (docs/promises.md) on this machine with the real programs: one row
//! each, beside its bound. Exit status 1 when a bound is exceeded.
//!
//! ```text
//! sudo ./scripts/perf [short] [PART...]        parts: turn pause reclaim create relay health memory start probe churn
//!                                               streams restart many connections
//!   -> a table on stdout, followed by the same as one line of JSON
//! ```
//!
//! Compared values are measured in one run, in turns, so that other work on the machine affects
//! both. `short` is for every change: fewer rounds, and looser bounds on wall-clock time
//! ([`figures::SLACK`]). The figures of docs/promises.md come from the long form on a quiet
//! machine.
#![allow(clippy::unwrap_used)]

mod churn;
#[path = "../common/mod.rs"]
mod common;
mod connections;
mod create;
mod figures;
mod health;
#[path = "../launcher/host.rs"]
#[allow(dead_code)]
mod host;
#[path = "../faults/link.rs"]
#[allow(dead_code)]
mod link;
mod many;
mod memory;
mod pause;
mod pipe;
mod probe;
mod procfs;
mod reclaim;
mod relay;
mod restart;
mod start;
mod streams;
mod turn;

use std::process::ExitCode;

use figures::{Figure, Form};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let form = if args.iter().any(|arg| arg == "short") { Form::Short } else { Form::Long };
    let parts: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "short").collect();
    if let Some(unknown) = parts.iter().find(|part| !PARTS.iter().any(|(name, _)| name == *part)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        eprintln!("\"{unknown}\" is none of short, {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut all = Vec::new();
    for (name, measure) in PARTS {
        if parts.is_empty() || parts.contains(&name) {
            eprintln!("measuring: {name}");
            all.extend(measure(form));
        }
    }
    println!("{}", figures::table(&all, form));
    println!("{}", figures::json(&all, form));
    let broken: Vec<&str> = all.iter().filter(|figure| !figure.holds(form)).map(|figure| figure.name).collect();
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("broken: {}", broken.join("; "));
    ExitCode::FAILURE
}

type Part = (&'static str, fn(Form) -> Vec<Figure>);

const PARTS: [Part; 14] = [
    ("turn", |form| run(turn::measure(form))),
    ("pause", |form| run(pause::measure(form))),
    ("reclaim", |form| run(reclaim::measure(form))),
    ("create", |form| run(create::measure(form))),
    ("relay", |form| run(relay::measure(form))),
    ("health", |form| run(health::measure(form))),
    ("connections", |form| run(connections::measure(form))),
    ("memory", |form| run(memory::measure(form))),
    ("start", |form| run(start::measure(form))),
    ("probe", |form| run(probe::measure(form))),
    ("churn", |form| run(churn::measure(form))),
    ("streams", |form| run(streams::measure(form))),
    ("restart", |form| run(restart::measure(form))),
    ("many", |form| run(many::measure(form))),
];

fn run(work: impl Future<Output = Vec<Figure>>) -> Vec<Figure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
