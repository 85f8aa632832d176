//! Checks of the source: dependencies have one direction, unsafe code stays in `ash-kernel`, files
//! are short, every task is supervised, and pages name tests that exist.

mod edges;
mod pages;
mod source;
mod tasks;

use source::{code, read, root, rust_files};

const MAX_LINES: usize = 400;

#[test]
fn unsafe_code_stays_in_the_kernel_crate() {
    let mut wrong = Vec::new();
    for file in ["src", "crates", "tests", "benches", "examples"].iter().flat_map(|dir| rust_files(dir)) {
        let text = read(&file);
        let code = code(&text);
        let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let found = words.filter(|word| ["unsafe", "unsafe_code"].contains(word)).count();
        // A test that attacks the sandbox may need raw system calls; the product has them in one
        // crate.
        let kernel = ["crates/ash-kernel", "tests/kernel"]
            .iter()
            .any(|place| file.to_string_lossy().starts_with(&*root().join(place).to_string_lossy()));
        if found > 0 && !kernel {
            wrong.push(format!("{}: {found} times", file.display()));
        }
        if found > 0 && !text.contains("SAFETY:") && code.contains("unsafe {") {
            wrong.push(format!("{}: no SAFETY note", file.display()));
        }
    }
    assert!(wrong.is_empty(), "unsafe outside crates/ash-kernel:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let mut wrong = Vec::new();
    for file in ["src", "crates", "tests", "benches"].iter().flat_map(|dir| rust_files(dir)) {
        let lines = read(&file).lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines, at most {MAX_LINES}: split it by meaning", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
