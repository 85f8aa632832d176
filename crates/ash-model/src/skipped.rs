//! The entries that a copy omits, reported to the caller.

use std::path::Path;

use serde::Serialize;

use super::names;

/// Most names in one answer. The rest is counted.
const MOST: usize = 100;

/// One entry that is missing or different in a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SkippedEntry {
    #[cfg_attr(feature = "schema", schema(example = "run/agent.sock"))]
    pub path: String,
    #[cfg_attr(feature = "schema", schema(example = "a socket"))]
    pub reason: String,
}

/// The entries that a copy omits: the first 100 by name, the rest as a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub entries: Vec<SkippedEntry>,
    pub more: u64,
}

impl Skipped {
    pub fn add(&mut self, path: &Path, reason: impl Into<String>) {
        if self.entries.len() < MOST {
            self.entries.push(SkippedEntry { path: names::shown(path), reason: reason.into() });
        } else {
            self.more += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn count(&self) -> u64 {
        self.entries.len() as u64 + self.more
    }

    /// Adds the entries of another copy, with paths below `within`.
    pub fn append(&mut self, other: Self, within: &str) {
        for entry in other.entries {
            if self.entries.len() < MOST {
                self.entries.push(SkippedEntry { path: format!("{within}{}", entry.path), ..entry });
            } else {
                self.more += 1;
            }
        }
        self.more += other.more;
    }
}

/// For `skip_serializing_if`: omits a count of 0.
pub fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_are_named_and_the_rest_is_counted() {
        let mut skipped = Skipped::default();
        for n in 0..150 {
            skipped.add(Path::new(&format!("s{n}")), "a socket");
        }
        assert_eq!((skipped.entries.len(), skipped.more, skipped.count()), (100, 50, 150));
        let mut all = Skipped::default();
        all.append(skipped, "/home/agent/");
        all.add(Path::new("x"), "a device");
        assert_eq!((all.entries[0].path.as_str(), all.more), ("/home/agent/s0", 51));
    }
}
