//! Tests the help text. This test also makes cargo build the program for the tests of other
//! packages.

use std::process::Command;

#[test]
fn help_names_the_options() {
    let help = Command::new(env!("CARGO_BIN_EXE_ash-launcher")).arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success() && text.contains("--run-dir"), "{text}");
}
