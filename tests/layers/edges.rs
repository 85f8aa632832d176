//! Dependencies have one direction, between crates and between the modules of ashd. Each table is
//! ordered from bottom to top: an entry names only entries above it in the table, and an unused
//! edge is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::source::{code, paths_after, product, read, root, rust_files};

/// A name, and the names above it that it uses.
pub type Edges = &'static [(&'static str, &'static [&'static str])];

/// The crates below `crates/`, by their manifests.
const CRATES: Edges = &[
    ("ash-model", &[]),
    ("ash-observe", &[]),
    ("ash-testkit", &[]),
    ("ash-kernel", &["ash-model"]),
    ("ash-protocol", &["ash-kernel", "ash-model"]),
    ("ash-archive", &["ash-kernel", "ash-model"]),
    ("ash-ctl", &["ash-archive", "ash-kernel", "ash-model"]),
    ("ash-launcher", &["ash-kernel", "ash-model", "ash-observe", "ash-protocol"]),
    ("ash-gateway", &["ash-kernel", "ash-model", "ash-observe", "ash-protocol"]),
];

/// The modules of ashd. `boot` connects them.
const MODULES: Edges = &[
    ("config", &["ash-model"]),
    ("gateway", &["ash-kernel", "ash-observe", "ash-protocol"]),
    ("pool", &["ash-model"]),
    ("sandbox", &["ash-kernel", "ash-model", "ash-observe", "ash-protocol"]),
    ("store", &["ash-model", "ash-observe"]),
    ("doctor", &["ash-kernel", "ash-model", "ash-protocol", "config", "sandbox"]),
    ("vault", &["ash-model", "config"]),
    (
        "sessions",
        &[
            "ash-kernel",
            "ash-model",
            "ash-observe",
            "ash-protocol",
            "config",
            "gateway",
            "pool",
            "sandbox",
            "store",
            "vault",
        ],
    ),
    ("http", &["ash-archive", "ash-kernel", "ash-model", "ash-observe", "config", "sessions", "store"]),
];

/// Differences between the edges found and the table, and errors in the table.
pub fn differences(table: Edges, found: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, (name, uses)) in table.iter().enumerate() {
        let above: Vec<&str> = table[..at].iter().map(|(name, _)| *name).collect();
        wrong.extend(
            uses.iter().filter(|used| !above.contains(used)).map(|used| format!("{name} -> {used}: against the order")),
        );
        let Some(real) = found.get(*name) else {
            wrong.push(format!("{name} is not there"));
            continue;
        };
        wrong.extend(
            uses.iter().filter(|used| !real.contains(**used)).map(|used| format!("{name} -> {used}: not used")),
        );
        wrong.extend(
            real.iter()
                .filter(|used| !uses.contains(&used.as_str()))
                .map(|used| format!("{name} -> {used}: not allowed")),
        );
    }
    wrong.extend(
        found
            .keys()
            .filter(|name| !table.iter().any(|(known, _)| known == name))
            .map(|name| format!("{name}: not in the table")),
    );
    wrong
}

fn none_of(wrong: &[String]) {
    assert!(wrong.is_empty(), "tests/layers/edges.rs:\n{}", wrong.join("\n"));
}

#[test]
fn crates_depend_in_one_direction() {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("crates")).expect("crates") {
        let path = entry.expect("an entry").path();
        let manifest = read(&path.join("Cargo.toml"));
        let own = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
        let own = own.split("\n[").next().unwrap_or_default();
        let names = own.lines().filter_map(|line| line.split(['.', ' ']).next());
        let ours = names.filter(|name| name.starts_with("ash-")).map(str::to_owned).collect();
        found.insert(path.file_name().expect("a name").to_string_lossy().into_owned(), ours);
    }
    none_of(&differences(CRATES, &found));
}

/// The edges between the first names below a directory. `prefix`: how their paths begin in the
/// code.
fn edges(dir: &str, prefix: &str, crates: bool) -> BTreeMap<String, BTreeSet<String>> {
    let base = root().join(dir);
    let files = rust_files(dir);
    let place = |path: &Path| {
        let first = path.strip_prefix(&base).ok()?.components().next()?.as_os_str().to_str()?.to_owned();
        let name = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
        (!["main", "lib", "bin", "mod"].contains(&name.as_str())).then_some(name)
    };
    let names: BTreeSet<String> = files.iter().filter_map(|file| place(file)).collect();
    let mut found: BTreeMap<String, BTreeSet<String>> =
        names.iter().map(|name| (name.clone(), BTreeSet::new())).collect();
    for file in &files {
        let Some(name) = place(file) else { continue };
        if file.to_string_lossy().ends_with("tests.rs") {
            continue;
        }
        let code = code(product(&read(file)));
        let used = paths_after(&code, prefix).into_iter().filter(|used| names.contains(used) && *used != name);
        let outer = CRATES
            .iter()
            .map(|(name, _)| name.replace('-', "_"))
            .filter(|name| crates && code.contains(&format!("{name}::")));
        let outer: Vec<String> = outer.map(|name| name.replace('_', "-")).collect();
        found.get_mut(&name).expect("a known name").extend(used.chain(outer));
    }
    found
}

#[test]
fn modules_of_ashd_depend_in_one_direction() {
    let mut found = edges("src", "crate::", true);
    found.remove("boot");
    let crates: Vec<(&str, &[&str])> = CRATES.iter().map(|(name, _)| (*name, &[][..])).collect();
    for (name, _) in &crates {
        found.insert((*name).to_owned(), BTreeSet::new());
    }
    let table: Vec<(&str, &[&str])> = crates.into_iter().chain(MODULES.iter().copied()).collect();
    none_of(&differences(table.leak(), &found));
}

#[test]
fn differences_are_seen() {
    const TABLE: Edges = &[("a", &[]), ("b", &["a"]), ("c", &["d"]), ("d", &["a"])];
    let found = [("a", vec!["b"]), ("b", vec![]), ("c", vec!["d"]), ("e", vec![])];
    let found = found
        .into_iter()
        .map(|(name, uses)| (name.to_owned(), uses.into_iter().map(str::to_owned).collect()))
        .collect();
    let wrong = differences(TABLE, &found);
    assert_eq!(
        wrong,
        [
            "a -> b: not allowed",
            "b -> a: not used",
            "c -> d: against the order",
            "d is not there",
            "e: not in the table"
        ]
    );
}
