//! Where the programs are that play claude.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// The fake, which `cargo build --examples` puts beside the daemon.
pub fn fake_claude() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_ashd")).with_file_name("examples").join("fake-claude");
    assert!(path.is_file(), "{} is missing: cargo build --example fake-claude", path.display());
    path
}

/// The pinned Claude Code: `ASH_TEST_CLAUDE`, else where `scripts/setup` installs it.
pub fn real_claude() -> PathBuf {
    if let Some(path) = std::env::var_os("ASH_TEST_CLAUDE") {
        return PathBuf::from(path);
    }
    let version = ashd::ctl::claude_install::PINNED;
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/ashd/claude").join(version).join("claude");
    let found = [own, PathBuf::from(format!("/opt/claude-{version}/claude"))].into_iter().find(|path| path.is_file());
    found.expect("Claude Code is not installed: run sudo ./scripts/setup, or set ASH_TEST_CLAUDE")
}
