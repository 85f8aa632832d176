//! Paths in requests. [`super::beneath`] decides what a path means on disk.
//!
//! In JSON a path is text; in a URL it is bytes (see [`names`]). A client may send the text of a
//! list in a URL, encoded once more. So a URL that names no file by its bytes is read as such a
//! text.

use std::path::{Path, PathBuf};

use super::super::error::ApiError;
use super::beneath::Refused;
use ash_kernel::walk::path_of;
use ash_model::names;

/// Longest path and deepest nesting.
const MAX_BYTES: usize = 4096;
const MAX_DEPTH: usize = 128;

/// The path of a URL.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its meanings, most likely first: one or two.
    paths: Vec<PathBuf>,
    /// For texts to the client.
    shown: String,
}

impl Asked {
    /// # Errors
    /// 400 for anything but a relative path.
    pub fn new(bytes: &[u8]) -> Result<Self, ApiError> {
        let wrong = |why| ApiError::bad_request(format!("path: {why}"));
        let mut paths = vec![relative(bytes).map_err(wrong)?];
        if let Ok(text) = std::str::from_utf8(bytes) {
            let other = names::bytes_of(text);
            if other != bytes {
                paths.extend(relative(&other));
            }
        }
        Ok(Self { shown: names::shown(&path_of(bytes.to_vec())), paths })
    }

    /// Whether it names this file.
    pub fn is(&self, path: &Path) -> bool {
        self.paths.iter().any(|asked| asked == path)
    }

    /// What `look` finds, and the text of the path that found it.
    ///
    /// # Errors
    /// Those of `look`, as texts for the client.
    pub fn find<T>(&self, look: impl Fn(&Path) -> Result<T, Refused>) -> Result<(T, String), ApiError> {
        for path in &self.paths {
            match look(path) {
                Err(Refused::NotFound) => {}
                Ok(found) => return Ok((found, names::shown(path))),
                Err(why) => return Err(why.for_client(&self.shown)),
            }
        }
        Err(Refused::NotFound.for_client(&self.shown))
    }
}

/// The path that a JSON text means.
pub fn of_text(given: &str) -> Result<PathBuf, String> {
    relative(&names::bytes_of(given))
}

/// The path without `.` and doubled slashes; an error text when it is not a relative path to a
/// file.
pub fn relative(given: &[u8]) -> Result<PathBuf, String> {
    let wrong = |what: &str| Err(format!("\"{}\" {what}", shown(given)));
    if given.is_empty() {
        return Err("a file's path is required".into());
    }
    if given.len() > MAX_BYTES {
        return wrong("is longer than 4096 bytes");
    }
    if given.contains(&0) {
        return wrong("must not contain a NUL byte");
    }
    if given.starts_with(b"/") {
        return wrong("must be relative");
    }
    if given.ends_with(b"/") {
        return wrong("must name a file, not a directory");
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for part in given.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return wrong("must not contain \"..\"");
        }
        depth += 1;
        path.push(path_of(part.to_vec()));
    }
    if depth == 0 {
        return wrong("must name a file, not a directory");
    }
    if depth > MAX_DEPTH {
        return wrong("is nested deeper than 128 directories");
    }
    Ok(path)
}

/// A directory to write into; `.` or empty is the workspace itself.
pub fn directory(given: &[u8]) -> Result<PathBuf, String> {
    let end = given.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let trimmed = &given[..end];
    if given.starts_with(b"/") {
        return Err(format!("\"{}\" must be relative", shown(given)));
    }
    if trimmed.split(|byte| *byte == b'/').all(|part| part.is_empty() || part == b".") {
        return Ok(PathBuf::new());
    }
    relative(trimmed)
}

/// A path shortened for an error text.
fn shown(path: &[u8]) -> String {
    let text = names::shown(&path_of(path[..path.len().min(2 * MAX_BYTES)].to_vec()));
    if text.chars().count() <= 200 {
        return text;
    }
    text.chars().take(200).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths() {
        for (given, expected) in
            [("a", "a"), ("./a//b", "a/b"), ("a/./b", "a/b"), ("...", "..."), ("a..b/..c", "a..b/..c"), ("ä b", "ä b")]
        {
            assert_eq!(relative(given.as_bytes()).as_deref(), Ok(Path::new(expected)), "{given}");
        }
        for given in
            ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "./", "a/", "a\0b", &"a/".repeat(200)]
        {
            assert!(relative(given.as_bytes()).is_err(), "{given:?}");
        }
        assert!(of_text(&"x/".repeat(127)).is_err() && of_text(&format!("{}y", "x/".repeat(127))).is_ok());
        assert!(of_text(&"x".repeat(5000)).unwrap_err().len() < 900);
        assert!(relative(&[0xff; 5000]).unwrap_err().len() < 900);
    }

    #[test]
    fn directories() {
        for (given, expected) in [("", ""), (".", ""), ("./", ""), ("a/", "a"), ("a/b", "a/b")] {
            assert_eq!(directory(given.as_bytes()).as_deref(), Ok(Path::new(expected)), "{given}");
        }
        for given in ["/", "/a", "..", "a/../.."] {
            assert!(directory(given.as_bytes()).is_err(), "{given}");
        }
    }

    #[test]
    fn a_url_names_a_file_by_its_bytes_or_by_the_text_of_a_list() {
        let known = [&b"caf\xe9"[..], b"a%20b"];
        let find = |url: &[u8]| {
            let asked = Asked::new(url).unwrap();
            let found = asked.find(|path| {
                let is = known.iter().any(|name| path_of(name.to_vec()) == path);
                if is { Ok(()) } else { Err(Refused::NotFound) }
            });
            found.map(|((), shown)| shown).map_err(|error| error.text().to_owned())
        };
        assert_eq!(find(b"caf\xe9").as_deref(), Ok("caf%E9"));
        assert_eq!(find(b"caf%E9").as_deref(), Ok("caf%E9"));
        assert_eq!(find(b"a%20b").as_deref(), Ok("a%20b"));
        assert_eq!(find(b"x\xff").unwrap_err(), "File not found: x%FF");
    }
}
