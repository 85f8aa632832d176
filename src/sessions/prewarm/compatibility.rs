//! Which sessions a warm sandbox can serve. Pure, except for the check of the agent's directory.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};

use crate::sessions::claude::LaunchOptions;

/// Files of an agent's directory that are checked before each claim. An agent with more starts
/// cold.
const MAX_FILES: usize = 2000;
/// Maximum depth of its directories.
const MAX_DEPTH: usize = 128;

/// Whether a process started with `prepared` can serve a session with `wanted`. All options must be
/// equal except the model, which each turn can set by a request. Prompt, environment, servers and
/// tools exist only as flags or in the first `initialize`.
pub fn fits(prepared: &LaunchOptions, wanted: &LaunchOptions) -> bool {
    // A set model can be replaced, but not unset.
    let model = wanted.model.is_some() || prepared.model.is_none();
    model && *prepared == LaunchOptions { model: prepared.model.clone(), ..wanted.clone() }
}

/// A hash of everything below an agent's directory: names, sizes, times. An agent deployed from a
/// `path` may be edited in place without notice to ashd, and a session must get the current files.
///
/// # Errors
/// A directory that cannot be read, has more than 2000 entries or is more than 128 directories
/// deep.
pub fn fingerprint(directory: BorrowedFd<'_>) -> io::Result<u64> {
    let mut hash = DefaultHasher::new();
    let mut seen = 0;
    mark(&mut hash, &fstat(directory)?);
    walk(directory, &mut hash, &mut seen, 0)?;
    Ok(hash.finish())
}

fn walk(directory: BorrowedFd<'_>, hash: &mut DefaultHasher, seen: &mut usize, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("it is nested more than {MAX_DEPTH} directories deep")));
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() == b"." || name.as_bytes() == b".." {
            continue;
        }
        *seen += 1;
        if *seen >= MAX_FILES {
            return Err(io::Error::other(format!("it has more than {MAX_FILES} files and directories")));
        }
        names.push(name);
    }
    names.sort_unstable();
    for name in names {
        let stat = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        name.hash(hash);
        mark(hash, &stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = openat(directory, &name, flags, Mode::empty())?;
            walk(inner.as_fd(), hash, seen, depth + 1)?;
        }
    }
    // Marks a directory's end, so that its files differ from those of the directory above.
    u8::MAX.hash(hash);
    Ok(())
}

fn mark(hash: &mut DefaultHasher, stat: &Stat) {
    let (modified, changed) = ((stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec));
    (stat.st_dev, stat.st_ino, stat.st_mode, stat.st_size, modified, changed).hash(hash);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sessions::claude::PermissionMode;
    use ash_model::Variables;

    #[test]
    fn only_the_model_may_differ() {
        let agent = LaunchOptions {
            model: Some("m".into()),
            system_prompt: Some("You are A.".into()),
            env: Variables::stored([("A".into(), "1".into())].into()),
            ..LaunchOptions::default()
        };
        let with = |edit: fn(&mut LaunchOptions)| {
            let mut wanted = agent.clone();
            edit(&mut wanted);
            fits(&agent, &wanted)
        };
        assert!(with(|_| {}));
        assert!(with(|o| o.model = Some("other".into())));
        assert!(!with(|o| o.model = None));
        assert!(!with(|o| o.system_prompt = Some("You are A.\n\nBe brief.".into())));
        assert!(!with(|o| o.env.set("env", "B", "2").unwrap()));
        assert!(!with(|o| o.mcp_servers.set("s", json!({ "command": "x" }).into())));
        assert!(!with(|o| o.permission_mode = PermissionMode::Default));
        assert!(!with(|o| o.allowed_tools.push("Bash".into())));
        assert!(!with(|o| o.disallowed_tools.push("Bash".into())));
        assert!(!with(|o| o.betas.push("b".into())));
        assert!(!with(|o| o.subagents = Some(json!({}).into())));
        assert!(!with(|o| o.initial_agent = Some("x".into())));
        assert!(fits(&LaunchOptions::default(), &LaunchOptions { model: Some("m".into()), ..Default::default() }));
    }

    #[test]
    fn an_edited_directory_has_another_mark() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/CLAUDE.md");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(&file, "one").unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        let first = fingerprint(open.as_fd()).unwrap();
        assert_eq!(first, fingerprint(open.as_fd()).unwrap());
        std::fs::write(&file, "two").unwrap();
        let second = fingerprint(open.as_fd()).unwrap();
        assert_ne!(first, second);
        std::fs::write(dir.path().join("new"), "").unwrap();
        let third = fingerprint(open.as_fd()).unwrap();
        assert_ne!(second, third);
        // The same name elsewhere in the tree.
        std::fs::rename(dir.path().join("new"), dir.path().join("sub/new")).unwrap();
        assert_ne!(third, fingerprint(open.as_fd()).unwrap());
        let deep = dir.path().join("d/".repeat(MAX_DEPTH + 2));
        std::fs::create_dir_all(deep).unwrap();
        assert!(fingerprint(open.as_fd()).unwrap_err().to_string().contains("deep"));
    }
}
