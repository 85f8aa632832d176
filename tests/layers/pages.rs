//! Tests that pages name must exist.

use std::collections::BTreeSet;

use crate::source::{read, root, rust_files};

/// The threat model names a test for each defence.
#[test]
fn the_threat_model_names_tests_that_exist() {
    names_tests_that_exist("docs/threat-model.md");
}

#[test]
fn the_page_of_confinement_names_tests_that_exist() {
    names_tests_that_exist("docs/confinement.md");
}

#[test]
fn the_page_of_survival_names_tests_that_exist() {
    names_tests_that_exist("docs/survival.md");
}

#[test]
fn the_page_of_neighbours_names_tests_that_exist() {
    assert!(tests_named_in("docs/neighbours.md") >= 10);
}

fn names_tests_that_exist(page: &str) {
    let named = tests_named_in(page);
    assert!(named > 30, "only {named} tests are named");
}

/// Checks the tests that a page names. Returns their number.
fn tests_named_in(page: &str) -> usize {
    let text = read(&root().join(page));
    // A name of four or more words in backquotes is a test.
    let quoted = text.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(|part| part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
    let named: BTreeSet<&str> = words.filter(|word| word.matches('_').count() >= 3).collect();
    let sources: Vec<String> =
        ["src", "crates", "tests"].iter().flat_map(|dir| rust_files(dir)).map(|file| read(&file)).collect();
    let missing: Vec<&&str> =
        named.iter().filter(|name| !sources.iter().any(|source| source.contains(&format!("fn {name}(")))).collect();
    assert!(missing.is_empty(), "{page} names tests that are not there: {missing:?}");
    named.len()
}
