//! Lists the files of a workspace by descriptor, with limits on entries visited and on the answer.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use serde::Serialize;
use utoipa::ToSchema;

use super::beneath;
use ash_model::{iso, names};

/// Maximum files in one answer, entries visited for it, and depth.
const MAX_FILES: usize = 50_000;
const MAX_SEEN: usize = 500_000;
const MAX_DEPTH: usize = 64;
/// Bytes of the paths of an answer, as JSON, and of the directories still to visit.
const MAX_PATHS: usize = 8 << 20;
const MAX_WAITING: usize = 16 << 20;

/// Listed only with `includeHidden=all`.
const NEVER: [&str; 4] = ["node_modules", ".git", "__pycache__", ".DS_Store"];
const NEVER_ENDINGS: [&str; 3] = [".sock", ".lock", ".pid"];
/// Listed with `includeHidden` (the default): caches, virtual environments, temporary files.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Without [`HIDDEN`] and [`NEVER`].
    Plain,
    Hidden,
    /// Every regular file.
    All,
}

/// One file.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Relative to the workspace. Bytes that are not UTF-8 are percent-encoded (`caf%E9`).
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
    /// A limit was reached: there are more files.
    pub truncated: bool,
}

/// Directories still to visit.
struct Todo {
    directories: Vec<PathBuf>,
    bytes: usize,
}

impl Todo {
    fn pop(&mut self) -> Option<PathBuf> {
        let next = self.directories.pop()?;
        self.bytes -= next.as_os_str().len();
        Some(next)
    }

    /// `false` when there is no space for it.
    fn push(&mut self, directory: &Path) -> bool {
        let bytes = directory.as_os_str().len();
        let fits = self.bytes + bytes <= MAX_WAITING;
        if fits {
            self.bytes += bytes;
            self.directories.push(directory.to_owned());
        }
        fits
    }
}

/// Bytes of a path as a JSON string: a control character needs six.
fn in_json(path: &str) -> usize {
    path.bytes().map(|byte| if byte < 0x20 { 6 } else { 1 + usize::from(matches!(byte, b'"' | b'\\')) }).sum()
}

/// Lists regular files below `root`, sorted by path. Links are neither followed nor listed.
pub fn list(root: &File, show: Show) -> io::Result<Listing> {
    list_of(root, show, |_| true)
}

/// The same, for files that `takes` accepts.
pub fn list_of(root: &File, show: Show, takes: fn(&Stat) -> bool) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let mut todo = Todo { directories: vec![PathBuf::new()], bytes: 0 };
    let (mut seen, mut paths) = (0, 0);
    while let Some(directory) = todo.pop() {
        let open = match beneath::directory(root, &directory) {
            Ok(open) => open,
            Err(cause) if directory.as_os_str().is_empty() => return Err(io::Error::other(cause)),
            // Removed, or replaced by a link, since it was listed.
            Err(_) => continue,
        };
        for entry in Dir::read_from(open.as_fd())? {
            let Ok(entry) = entry else { break };
            let raw = entry.file_name().to_bytes();
            if raw == b"." || raw == b".." {
                continue;
            }
            seen += 1;
            if seen > MAX_SEEN || listing.files.len() >= MAX_FILES || paths > MAX_PATHS {
                listing.truncated = true;
                return Ok(sorted(listing));
            }
            if !listed(raw, show) {
                continue;
            }
            let path = directory.join(OsStr::from_bytes(raw));
            let before = listing.files.len();
            look(open.as_fd(), &entry, path, &mut listing, &mut todo, takes);
            paths += listing.files[before..].iter().map(|file| in_json(&file.path)).sum::<usize>();
        }
    }
    Ok(sorted(listing))
}

fn look(
    open: impl AsFd,
    entry: &rustix::fs::DirEntry,
    path: PathBuf,
    listing: &mut Listing,
    todo: &mut Todo,
    takes: fn(&Stat) -> bool,
) {
    let Ok(stat) = rustix::fs::statat(open, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { return };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if path.components().count() < MAX_DEPTH && todo.push(&path) => {}
        FileType::Directory => listing.truncated = true,
        FileType::RegularFile if takes(&stat) => {
            let modified = stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec as i64 / 1_000_000);
            listing.files.push(FileEntry {
                path: names::shown(&path),
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

fn listed(name: &[u8], show: Show) -> bool {
    let is = |known: &&str| known.as_bytes() == name;
    let never = NEVER.iter().any(is) || NEVER_ENDINGS.iter().any(|ending| name.ends_with(ending.as_bytes()));
    match show {
        Show::All => true,
        Show::Hidden => !never,
        Show::Plain => !never && !HIDDEN.iter().any(is),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(root: &Path, show: Show) -> Vec<String> {
        let root = beneath::root(root).unwrap();
        list(&root, show).unwrap().files.into_iter().map(|file| file.path).collect()
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
            paths(temp.path(), Show::Hidden),
            [".cache/x", "CLAUDE.md", "a/tmp.txt", "src/.env", "src/index.ts", "tmp/y", "venv/bin/python"]
        );
        assert_eq!(paths(temp.path(), Show::Plain), ["CLAUDE.md", "a/tmp.txt", "src/.env", "src/index.ts"]);
        let all = paths(temp.path(), Show::All);
        assert_eq!(all.len(), files.len());
        assert!(all.contains(&"run/yarn.lock".to_owned()) && all.contains(&".git/HEAD".to_owned()), "{all:?}");
    }

    #[test]
    fn names_that_are_not_utf8_are_listed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join(OsStr::from_bytes(b"dir\xff"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(OsStr::from_bytes(b"caf\xe9")), "").unwrap();
        std::fs::write(temp.path().join("caf%E9"), "").unwrap();
        assert_eq!(paths(temp.path(), Show::Hidden), ["caf%25E9", "dir%FF/caf%E9"]);
    }

    #[test]
    fn sizes_and_times() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_768_471_200_007);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let root = beneath::root(temp.path()).unwrap();
        let listing = list(&root, Show::Hidden).unwrap();
        assert_eq!(listing.files[0].size, 5);
        assert_eq!(listing.files[0].modified_at, "2026-01-15T10:00:00.007Z");
        assert!(!listing.truncated);
    }

    #[test]
    fn long_paths_are_bounded_in_bytes() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join(format!("{}/", "\u{1}".repeat(250)).repeat(15));
        std::fs::create_dir_all(&deep).unwrap();
        for n in 0..1000 {
            std::fs::write(deep.join(n.to_string()), "").unwrap();
        }
        let listing = list(&beneath::root(temp.path()).unwrap(), Show::Hidden).unwrap();
        let json = serde_json::to_string(&listing.files).unwrap();
        assert!(listing.truncated && json.len() < MAX_PATHS + (64 << 10), "{}", json.len());
        assert!(listing.files.len() > 300, "{}", listing.files.len());
    }

    #[test]
    fn a_deep_tree_ends_somewhere() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d/".repeat(80));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("x"), "").unwrap();
        let root = beneath::root(temp.path()).unwrap();
        assert!(list(&root, Show::Hidden).unwrap().truncated);
    }
}
