//! Paths of the programs that play claude.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// The fake, which `cargo build --examples` puts beside the daemon.
pub fn fake_claude() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_ashd")).with_file_name("examples").join("fake-claude");
    assert!(path.is_file(), "{} is missing: cargo build --example fake-claude", path.display());
    as_roots(path)
}

/// The pinned Claude Code: `ASH_TEST_CLAUDE`, else where `scripts/setup` installs it.
pub fn real_claude() -> PathBuf {
    if let Some(path) = std::env::var_os("ASH_TEST_CLAUDE") {
        return PathBuf::from(path);
    }
    let version = ash_ctl::claude_install::PINNED;
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/ashd/claude").join(version).join("claude");
    let found = [own, PathBuf::from(format!("/opt/claude-{version}/claude"))].into_iter().find(|path| path.is_file());
    as_roots(found.expect("Claude Code is not installed: run sudo ./scripts/setup, or set ASH_TEST_CLAUDE"))
}

/// The launcher accepts a program only at a path that only root can write. In a source tree of
/// another user (`sudo ./scripts/test`) the program is copied once to `/var/tmp/ashd-tests`, which
/// may be removed at any time.
fn as_roots(program: PathBuf) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    if ash_kernel::trusted::file(&program).is_ok() {
        return program;
    }
    let meta = std::fs::metadata(&program).unwrap();
    let name = format!("{}-{}-{}-{}", meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec());
    let home = ash_kernel::tree::Tree::make_trusted(Path::new("/var/tmp/ashd-tests")).unwrap();
    let copy = home.path().join(&name);
    if !home.has(&name) {
        let fresh = format!(".{}-{:?}", std::process::id(), std::thread::current().id());
        let mut file = home.create_file(&fresh).unwrap();
        std::io::copy(&mut std::fs::File::open(&program).unwrap(), &mut file).unwrap();
        std::fs::set_permissions(home.path().join(&fresh), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        drop(file);
        // Another test may have been faster, with the same bytes.
        std::fs::rename(home.path().join(&fresh), &copy).unwrap();
    }
    copy
}
