//! The files of a workspace, walked by descriptor, with bounds on what is looked at and what is answered.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType};
use serde::Serialize;
use utoipa::ToSchema;

use super::beneath;
use crate::model::iso;

/// Most files in one answer, most entries looked at for it, and how deep.
const MAX_FILES: usize = 50_000;
const MAX_SEEN: usize = 500_000;
const MAX_DEPTH: usize = 64;

/// Never listed (contract §7).
const NEVER: [&str; 4] = ["node_modules", ".git", "__pycache__", ".DS_Store"];
const NEVER_ENDINGS: [&str; 3] = [".sock", ".lock", ".pid"];
/// Listed with `includeHidden` only: caches, virtual environments, temporary files.
const HIDDEN: [&str; 17] = [
    ".cache",
    ".npm",
    ".yarn",
    ".pnpm-store",
    ".pip",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".tox",
    ".next",
    ".nuxt",
    ".turbo",
    ".parcel-cache",
    ".venv",
    "venv",
    "tmp",
    ".tmp",
];

/// One file.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Relative to the workspace.
    #[schema(example = "src/index.ts")]
    pub path: String,
    /// Bytes.
    pub size: u64,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub modified_at: String,
}

#[derive(Debug, Default)]
pub struct Listing {
    pub files: Vec<FileEntry>,
    /// A bound was met: there is more than this.
    pub truncated: bool,
}

/// Regular files below `root` in the order of their paths. Links are neither followed nor listed.
pub fn list(root: &File, hidden: bool) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let mut todo = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(directory) = todo.pop() {
        let open = match beneath::directory(root, &directory) {
            Ok(open) => open,
            Err(cause) if directory.as_os_str().is_empty() => return Err(io::Error::other(cause)),
            // Removed, or swapped for a link, since it was seen.
            Err(_) => continue,
        };
        for entry in Dir::read_from(&open)? {
            let Ok(entry) = entry else { break };
            let raw = entry.file_name().to_bytes();
            if raw == b"." || raw == b".." {
                continue;
            }
            seen += 1;
            if seen > MAX_SEEN || listing.files.len() >= MAX_FILES {
                listing.truncated = true;
                return Ok(sorted(listing));
            }
            let name = String::from_utf8_lossy(raw);
            if !listed(&name, hidden) {
                continue;
            }
            let path = directory.join(name.as_ref());
            look(&open, &entry, path, &mut listing, &mut todo);
        }
    }
    Ok(sorted(listing))
}

fn look(open: impl AsFd, entry: &rustix::fs::DirEntry, path: PathBuf, listing: &mut Listing, todo: &mut Vec<PathBuf>) {
    let Ok(stat) = rustix::fs::statat(open, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { return };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if path.components().count() < MAX_DEPTH => todo.push(path),
        FileType::Directory => listing.truncated = true,
        FileType::RegularFile => {
            let modified = stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec as i64 / 1_000_000);
            listing.files.push(FileEntry {
                path: path.to_string_lossy().into_owned(),
                size: u64::try_from(stat.st_size).unwrap_or(0),
                modified_at: iso(modified),
            });
        }
        _ => {}
    }
}

fn sorted(mut listing: Listing) -> Listing {
    listing.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    listing
}

fn listed(name: &str, hidden: bool) -> bool {
    let never = NEVER.contains(&name)
        || NEVER_ENDINGS.iter().any(|ending| Path::new(name).as_os_str().to_string_lossy().ends_with(ending));
    !never && (hidden || !HIDDEN.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(root: &Path, hidden: bool) -> Vec<String> {
        let root = beneath::root(root).unwrap();
        list(&root, hidden).unwrap().files.into_iter().map(|file| file.path).collect()
    }

    #[test]
    fn what_is_listed() {
        let temp = tempfile::tempdir().unwrap();
        let files = [
            "CLAUDE.md",
            "src/index.ts",
            "src/.env",
            "node_modules/a/index.js",
            ".git/HEAD",
            "a/__pycache__/x.pyc",
            ".DS_Store",
            "run/server.pid",
            "run/server.sock",
            "run/yarn.lock",
            ".cache/x",
            "venv/bin/python",
            "tmp/y",
            "a/tmp.txt",
        ];
        for file in files {
            let path = temp.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "12345").unwrap();
        }
        std::os::unix::fs::symlink("/etc", temp.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("CLAUDE.md", temp.path().join("alias.md")).unwrap();
        assert_eq!(
            paths(temp.path(), true),
            [".cache/x", "CLAUDE.md", "a/tmp.txt", "src/.env", "src/index.ts", "tmp/y", "venv/bin/python"]
        );
        assert_eq!(paths(temp.path(), false), ["CLAUDE.md", "a/tmp.txt", "src/.env", "src/index.ts"]);
    }

    #[test]
    fn sizes_and_times() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_768_471_200_007);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let root = beneath::root(temp.path()).unwrap();
        let listing = list(&root, true).unwrap();
        assert_eq!(listing.files[0].size, 5);
        assert_eq!(listing.files[0].modified_at, "2026-01-15T10:00:00.007Z");
        assert!(!listing.truncated);
    }

    #[test]
    fn a_deep_tree_ends_somewhere() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d/".repeat(80));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("x"), "").unwrap();
        let root = beneath::root(temp.path()).unwrap();
        assert!(list(&root, true).unwrap().truncated);
    }
}
