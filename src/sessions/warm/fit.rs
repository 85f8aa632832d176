//! Which sessions a warm sandbox can become. Pure, but for the look at the agent's directory.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::sessions::claude::LaunchOptions;

/// Files of an agent's directory that are looked at before each claim. An agent with more is started cold.
const MAX_FILES: usize = 2000;

/// Whether a process that was started with `prepared` can serve a session that asks for `wanted`: the same, but for the
/// model, which each turn sets by a request where it differs. Prompt, environment, servers and tools exist only as flags or
/// in the first `initialize` (measured).
pub fn fits(prepared: &LaunchOptions, wanted: &LaunchOptions) -> bool {
    // A model that is set can be replaced, but not taken back to "none given".
    let model = wanted.model.is_some() || prepared.model.is_none();
    model && *prepared == LaunchOptions { model: prepared.model.clone(), ..wanted.clone() }
}

/// A mark of everything below an agent's directory: names, sizes, times. An agent that was deployed from a `path` may be
/// edited in place without anybody telling ashd, and a session must get the files as they are now.
///
/// # Errors
/// A directory that cannot be read, or holds more than 2000 entries.
pub fn fingerprint(directory: &Path) -> io::Result<u64> {
    let root = directory.canonicalize()?;
    let mut hash = DefaultHasher::new();
    root.hash(&mut hash);
    for (seen, entry) in walkdir::WalkDir::new(&root).sort_by_file_name().into_iter().enumerate() {
        if seen >= MAX_FILES {
            return Err(io::Error::other(format!("it holds more than {MAX_FILES} files and directories")));
        }
        let entry = entry?;
        let data = entry.metadata()?;
        entry.path().hash(&mut hash);
        (data.ino(), data.mode(), data.size(), data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec())
            .hash(&mut hash);
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sessions::claude::PermissionMode;

    #[test]
    fn only_the_model_may_differ() {
        let agent = LaunchOptions {
            model: Some("m".into()),
            system_prompt: Some("You are A.".into()),
            env: [("A".into(), "1".into())].into(),
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
        assert!(!with(|o| drop(o.env.insert("B".into(), "2".into()))));
        assert!(!with(|o| drop(o.mcp_servers.insert("s".into(), json!({ "command": "x" })))));
        assert!(!with(|o| o.permission_mode = PermissionMode::Default));
        assert!(!with(|o| o.allowed_tools.push("Bash".into())));
        assert!(!with(|o| o.disallowed_tools.push("Bash".into())));
        assert!(!with(|o| o.betas.push("b".into())));
        assert!(!with(|o| o.subagents = Some(json!({}))));
        assert!(!with(|o| o.initial_agent = Some("x".into())));
        assert!(fits(&LaunchOptions::default(), &LaunchOptions { model: Some("m".into()), ..Default::default() }));
    }

    #[test]
    fn an_edited_directory_has_another_mark() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/CLAUDE.md");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(&file, "one").unwrap();
        let first = fingerprint(dir.path()).unwrap();
        assert_eq!(first, fingerprint(dir.path()).unwrap());
        std::fs::write(&file, "two").unwrap();
        let second = fingerprint(dir.path()).unwrap();
        assert_ne!(first, second);
        std::fs::write(dir.path().join("new"), "").unwrap();
        assert_ne!(second, fingerprint(dir.path()).unwrap());
        assert!(fingerprint(&dir.path().join("missing")).is_err());
    }
}
