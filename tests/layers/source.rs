//! The source for the checks: files, and their code without comments and strings.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories with the source of the product.
pub const PRODUCT: [&str; 2] = ["src", "crates"];

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn rust_files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.expect("an entry of the source tree").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The source without comments and strings, so that words in them do not count.
pub fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            at += open + rest[open..].find(&close).map_or(rest.len() - open, |end| end + close.len());
        } else if rest.starts_with('"') {
            let mut end = 1;
            while end < rest.len() && bytes[at + end] != b'"' {
                end += if bytes[at + end] == b'\\' { 2 } else { 1 };
            }
            at += (end + 1).min(rest.len());
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            at += rest[1..].find('\'').map_or(1, |end| end + 2);
        } else {
            let next = rest.chars().next().expect("not at the end");
            out.push(next);
            at += next.len_utf8();
        }
        while at < bytes.len() && !source.is_char_boundary(at) {
            at += 1;
        }
    }
    out
}

fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// The source without the tests at its end.
pub fn product(source: &str) -> &str {
    source.find("#[cfg(test)]\nmod ").map_or(source, |at| &source[..at])
}

/// The first names of all paths that start with `prefix`, including groups in braces.
pub fn paths_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            continue;
        };
        let (mut depth, mut name) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    names.insert(std::mem::take(&mut name));
                }
                _ if depth == 0 => name.push(c),
                _ => {}
            }
        }
        names.insert(name);
    }
    let first = |name: String| name.trim().split("::").next().unwrap_or_default().to_owned();
    names.into_iter().map(first).filter(|name| !name.is_empty()).collect()
}

#[test]
fn code_is_seen_without_comments_and_texts() {
    let up = "use crate::{store::{Row, Col}, http};\n// crate::kernel\nlet s = \"crate::kernel\";";
    assert_eq!(paths_after(&code(up), "crate::"), ["http", "store"].map(str::to_owned).into());
    assert_eq!(paths_after("crate::sessions::api::X", "crate::sessions::"), ["api".to_owned()].into());
    assert!(code("let q = '\"'; unsafe {}").contains("unsafe"));
    assert!(!code("r#\"unsafe \" \"# // unsafe\n /* unsafe */").contains("unsafe"));
    assert_eq!(product("a\n#[cfg(test)]\nmod tests {}"), "a\n");
}
