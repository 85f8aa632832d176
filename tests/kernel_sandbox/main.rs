//! Real sandboxes, as root. If a sandbox cannot be created, these tests FAIL; none is skipped.
//!
//! The set-up forks, so this binary has one thread and its own main, with the options that test
//! runners need: `--list`, a filter, `--exact`.
#![allow(clippy::unwrap_used)]

mod confinement;
mod etc;
mod init;
mod keeper;
mod own;
#[path = "../common/patience.rs"]
mod patience;
mod policy;
#[allow(dead_code)]
#[path = "../common/programs.rs"]
mod programs;
mod sandbox;
mod start;

use std::panic::catch_unwind;

type Test = (&'static str, fn());

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let filter = args.iter().find(|arg| !arg.starts_with("--") && *arg != "terse");
    let tests =
        [start::TESTS, etc::TESTS, init::TESTS, keeper::TESTS, confinement::TESTS, policy::TESTS, own::TESTS].concat();
    let chosen = tests.into_iter().filter(|(name, _)| match filter {
        Some(filter) if has("--exact") => name == filter,
        Some(filter) => name.contains(filter.as_str()),
        None => true,
    });
    let mut failed = 0;
    for (name, test) in chosen {
        if has("--list") {
            // No test is ignored: that list is empty.
            if !has("--ignored") {
                println!("{name}: test");
            }
        } else if !has("--ignored") {
            let outcome = catch_unwind(test);
            println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
            failed += i32::from(outcome.is_err());
        }
    }
    std::process::exit(failed.min(1));
}
