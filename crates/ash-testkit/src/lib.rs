//! Shared by the tests of all crates: the paths of the programs.

use std::path::PathBuf;

/// A program of this workspace by name, built beside the running test (`target/<profile>/<name>`).
///
/// Cargo sets `CARGO_BIN_EXE_<name>` only for programs of the test's own package. `cargo nextest
/// run` and `cargo test` build all programs, because each package with a program has an integration
/// test.
///
/// # Panics
/// The program does not exist.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}
