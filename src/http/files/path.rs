//! Paths as clients write them. Pure: what a path means on disk is [`super::beneath`]'s to decide.

use std::path::PathBuf;

/// Longest path and deepest nesting that are looked at.
const MAX_BYTES: usize = 4096;
const MAX_DEPTH: usize = 128;

/// The path without `.` and doubled slashes; an error in words when it is not a relative path to a file.
pub fn relative(given: &str) -> Result<PathBuf, String> {
    let wrong = |what: &str| Err(format!("\"{}\" {what}", shown(given)));
    if given.is_empty() {
        return Err("a file's path is required".into());
    }
    if given.len() > MAX_BYTES {
        return wrong("is longer than 4096 bytes");
    }
    if given.contains('\0') {
        return wrong("must not contain a NUL byte");
    }
    if given.starts_with('/') {
        return wrong("must be relative");
    }
    if given.ends_with('/') {
        return wrong("must name a file, not a directory");
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for part in given.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return wrong("must not contain \"..\"");
        }
        depth += 1;
        path.push(part);
    }
    if depth == 0 {
        return wrong("must name a file, not a directory");
    }
    if depth > MAX_DEPTH {
        return wrong("is nested deeper than 128 directories");
    }
    Ok(path)
}

/// The directory to write into: `.` or empty is the workspace itself.
pub fn directory(given: &str) -> Result<PathBuf, String> {
    let trimmed = given.trim_end_matches('/');
    if given.starts_with('/') {
        return Err(format!("\"{}\" must be relative", shown(given)));
    }
    if trimmed.split('/').all(|part| part.is_empty() || part == ".") {
        return Ok(PathBuf::new());
    }
    relative(trimmed)
}

/// A path for an error text: short enough to read.
fn shown(path: &str) -> String {
    if path.chars().count() <= 200 {
        return path.to_owned();
    }
    path.chars().take(200).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn relative_paths() {
        for (given, expected) in
            [("a", "a"), ("./a//b", "a/b"), ("a/./b", "a/b"), ("...", "..."), ("a..b/..c", "a..b/..c"), ("ä b", "ä b")]
        {
            assert_eq!(relative(given).as_deref(), Ok(Path::new(expected)), "{given}");
        }
        for given in
            ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "./", "a/", "a\0b", &"a/".repeat(200)]
        {
            assert!(relative(given).is_err(), "{given:?}");
        }
        assert!(relative(&"x/".repeat(127)).is_err() && relative(&format!("{}y", "x/".repeat(127))).is_ok());
        assert!(relative(&"x".repeat(5000)).unwrap_err().len() < 900);
    }

    #[test]
    fn directories() {
        for (given, expected) in [("", ""), (".", ""), ("./", ""), ("a/", "a"), ("a/b", "a/b")] {
            assert_eq!(directory(given).as_deref(), Ok(Path::new(expected)), "{given}");
        }
        for given in ["/", "/a", "..", "a/../.."] {
            assert!(directory(given).is_err(), "{given}");
        }
    }
}
