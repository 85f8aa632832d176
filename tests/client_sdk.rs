//! The published Python client (`ash-ai-sdk` from PyPI, unmodified) with the daemon.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Daemon, Options};

/// `ASH_TEST_PYTHON`, else the environment that `scripts/setup` makes.
fn python() -> PathBuf {
    if let Some(path) = std::env::var_os("ASH_TEST_PYTHON") {
        return PathBuf::from(path);
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/sdk/bin/python");
    let found = [own, PathBuf::from("/opt/ashsdk/bin/python")].into_iter().find(|path| path.exists());
    found.expect("ash-ai-sdk is not installed: run sudo ./scripts/setup, or set ASH_TEST_PYTHON")
}

fn drive(options: Options, script: &str) {
    let daemon = Daemon::start(options);
    let dir = daemon.agent_dir("sdk", &[("CLAUDE.md", "You are a test.\n")]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(script);
    let out = Command::new(python())
        .arg(script)
        .args([&format!("http://127.0.0.1:{}", daemon.port), &daemon.key])
        .arg(dir)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    println!("{said}");
}

#[test]
fn the_published_client_with_the_fake_claude() {
    drive(Options::default(), "client_sdk.py");
}

#[test]
fn the_published_client_with_the_real_claude() {
    drive(Options::default().real_claude(), "client_sdk.py");
}

#[test]
fn every_function_of_the_published_client() {
    drive(Options::default(), "client_sdk_functions.py");
}
