//! What the tests of all crates share: where the programs are.

use std::path::PathBuf;

/// A program of this workspace, by its name, as built beside the running test (`target/<profile>/<name>`).
///
/// Cargo sets `CARGO_BIN_EXE_<name>` only for programs of the test's own package. `cargo nextest run` and `cargo test` build all of
/// them anew, since each package with a program has an integration test.
///
/// # Panics
/// When it is not there.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}
