//! Checks of a deployment, before anything is written.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::auth::Caller;
use super::super::error::ApiError;
use super::super::files::path::of_text;
use super::wire::Files;
use crate::config::Config;
use crate::sessions::launch::agent_directory::{AgentDirectory, Refusal};
use ash_kernel::copy::{Bounds, Links, would_skip};
use ash_model::raw::RawObject;
use ash_model::{RawJson, Skipped, Variables};

/// Limits of one deployment: files, and their bytes together.
pub const MAX_FILES: usize = 10_000;
pub const MAX_BYTES: usize = 100 << 20;
const MAX_NAME: usize = 255;
/// The API's text for a directory that is not an agent.
const NO_CLAUDE_MD: &str = "Agent directory must contain CLAUDE.md";

pub fn check_name(name: &str) -> Result<(), ApiError> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fits {
        return Ok(());
    }
    Err(ApiError::bad_request(if name.is_empty() {
        format!("name is required: 1 to {MAX_NAME} characters of A-Z a-z 0-9 _ -")
    } else {
        format!("name must be 1 to {MAX_NAME} characters of A-Z a-z 0-9 _ -")
    }))
}

pub fn env(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    let checked = Variables::parse("env", env).map_err(|e| ApiError::bad_request(e.to_string()))?;
    Ok(checked.into_map())
}

/// Bytes of each text of an agent (prompt, description, ...) and of its config.
pub const MAX_TEXT: usize = 1 << 20;

/// Checks the texts of an agent, given by name.
pub fn check_texts<const N: usize>(texts: [(&str, Option<&String>); N]) -> Result<(), ApiError> {
    for (name, text) in texts {
        if let Some(text) = text.filter(|text| text.len() > MAX_TEXT) {
            return Err(ApiError::bad_request(format!("{name} has {} bytes; the limit is {MAX_TEXT}", text.len())));
        }
    }
    Ok(())
}

/// Checks a config from a request: it must be an object within bounds.
pub fn check_config(config: Option<RawJson>) -> Result<Option<RawObject>, ApiError> {
    let Some(config) = config else { return Ok(None) };
    if !config.is_object() {
        return Err(ApiError::bad_request(format!("config must be an object, not {}", config.kind())));
    }
    let object = RawObject::read(&config).ok_or_else(too_many)?;
    check_merged(&object)?;
    Ok(Some(object))
}

fn too_many() -> ApiError {
    ApiError::bad_request(format!("config must have at most {} members", RawObject::MEMBERS))
}

pub fn check_merged(config: &RawObject) -> Result<(), ApiError> {
    if config.len() > RawObject::MEMBERS {
        return Err(too_many());
    }
    let bytes: usize = config.iter().map(|(name, value)| name.len() + value.get().len() + 4).sum();
    if bytes > MAX_TEXT {
        return Err(ApiError::bad_request(format!("config has {bytes} bytes; the limit is {MAX_TEXT}")));
    }
    Ok(())
}

/// Checks the path of an agent. Returns its absolute form, and the entries that sessions cannot
/// copy.
///
/// The rules apply to the path with links resolved. The path is recorded as given, and checked
/// again at each use.
pub async fn check_path(config: Arc<Config>, caller: &Caller, path: String) -> Result<(String, Skipped), ApiError> {
    let admin = caller.admin;
    tokio::task::spawn_blocking(move || allowed(&config, admin, &path))
        .await
        .map_err(|cause| ApiError::internal("the agent's directory cannot be inspected", &cause))?
}

fn allowed(config: &Config, admin: bool, given: &str) -> Result<(String, Skipped), ApiError> {
    if given.is_empty() || given.contains('\0') {
        return Err(ApiError::bad_request("path must be a directory on the server"));
    }
    if !given.starts_with('/') {
        return Err(ApiError::bad_request(format!(
            "path \"{given}\" is relative; give the absolute path of a directory on the server, or upload the agent with files"
        )));
    }
    let absolute = std::path::absolute(given)
        .map_err(|cause| ApiError::bad_request(format!("path \"{given}\" cannot be resolved: {cause}")))?;
    let directory = AgentDirectory::named(config, &absolute, admin).map_err(|refusal| match refusal {
        Refusal::Unusable(cause) => unusable(given, &cause),
        other => ApiError::bad_request(other.to_string()),
    })?;
    match directory.has_file("CLAUDE.md") {
        Ok(true) => directory
            .check_readable("CLAUDE.md")
            .map_err(|cause| unusable(&format!("{}/CLAUDE.md", given.trim_end_matches('/')), &cause))?,
        Ok(false) => return Err(ApiError::bad_request(NO_CLAUDE_MD)),
        Err(cause) => return Err(unusable(given, &cause)),
    }
    let path = absolute.into_os_string().into_string().map_err(|_| ApiError::bad_request("path must be UTF-8"))?;
    let skipped = would_skip(directory.as_fd(), Bounds::default(), Links::Inside, directory.takes());
    let skipped = skipped.unwrap_or_else(|why| {
        let mut skipped = Skipped::default();
        skipped.add(Path::new("."), format!("sessions cannot copy this directory: {why}"));
        skipped
    });
    Ok((path, skipped))
}

fn unusable(given: &str, cause: &io::Error) -> ApiError {
    ApiError::bad_request(match cause.kind() {
        io::ErrorKind::NotFound => format!("{NO_CLAUDE_MD}: \"{given}\" does not exist on the server"),
        io::ErrorKind::NotADirectory => format!("{NO_CLAUDE_MD}: \"{given}\" is not a directory"),
        io::ErrorKind::PermissionDenied => format!(
            "{NO_CLAUDE_MD}: ashd's user may not read \"{given}\"; grant permission (chmod -R o+rX on the agent's \
             directory, and o+x on those above), or upload the agent with files"
        ),
        _ => format!("{NO_CLAUDE_MD}: \"{given}\": {cause}"),
    })
}

/// Decoded files by their path in the agent's directory.
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Checks and decodes an agent. `CLAUDE.md` is made from the prompt when it is missing.
pub fn decode(files: Files, prompt: Option<String>) -> Result<Tree, ApiError> {
    let mut tree = decode_files(files)?;
    if let Some(prompt) = prompt {
        tree.entry(PathBuf::from("CLAUDE.md")).or_insert_with(|| prompt.into_bytes());
    }
    if !tree.contains_key(Path::new("CLAUDE.md")) {
        return Err(ApiError::bad_request(NO_CLAUDE_MD));
    }
    Ok(tree)
}

/// In any spelling (`./CLAUDE.md`).
pub fn is_claude_md(path: &str) -> bool {
    of_text(path).is_ok_and(|path| path == Path::new("CLAUDE.md"))
}

pub fn decode_files(files: Files) -> Result<Tree, ApiError> {
    if files.count > MAX_FILES {
        return Err(ApiError::bad_request(format!("files has {} entries; the limit is {MAX_FILES}", files.count)));
    }
    let mut tree = Tree::new();
    let mut total = 0;
    for (index, file) in files.first.into_iter().enumerate() {
        let wrong = |what: String| ApiError::bad_request(format!("files[{index}].{what}"));
        let path = of_text(&file.path).map_err(|why| wrong(format!("path: {why}")))?;
        let bytes = STANDARD.decode(file.content).map_err(|why| wrong(format!("content must be base64: {why}")))?;
        total += bytes.len();
        if total > MAX_BYTES {
            return Err(ApiError::too_large(format!("files hold more than the limit of {MAX_BYTES} bytes")));
        }
        if tree.insert(path, bytes).is_some() {
            return Err(wrong(format!("path: \"{}\" is a duplicate", file.path)));
        }
    }
    // A file cannot be the directory of another file.
    let clash = tree.keys().find(|path| path.ancestors().skip(1).any(|above| tree.contains_key(above)));
    if let Some(path) = clash {
        return Err(ApiError::bad_request(format!("files: \"{}\" is below another file", path.display())));
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::super::UploadedFile;
    use super::*;

    fn file(path: &str, content: &str) -> UploadedFile {
        UploadedFile { path: path.into(), content: content.into() }
    }

    fn decode(files: Vec<UploadedFile>, prompt: Option<String>) -> Result<Tree, ApiError> {
        super::decode(Files { count: files.len(), first: files }, prompt)
    }

    #[test]
    fn texts_and_config_are_bounded() {
        let long = "x".repeat(MAX_TEXT + 1);
        let error = check_texts([("description", Some(&long))]).unwrap_err();
        assert_eq!(error.text(), format!("description has {} bytes; the limit is {MAX_TEXT}", MAX_TEXT + 1));
        assert!(check_texts([("description", None), ("slug", Some(&"x".repeat(MAX_TEXT)))]).is_ok());
        let config =
            |text: &str| check_config(Some(RawJson::parse(text).unwrap())).map(|_| ()).map_err(|e| e.text().to_owned());
        assert_eq!(config(r#"{"z":1}"#), Ok(()));
        assert_eq!(config("[]").unwrap_err(), "config must be an object, not an array");
        let many: String = (0..1001).map(|n| format!("\"{n}\":0,")).collect();
        assert!(config(&format!("{{{}}}", many.trim_end_matches(','))).unwrap_err().contains("1000 members"));
        assert!(config(&format!(r#"{{"a":"{long}"}}"#)).unwrap_err().contains("the limit is"));
    }

    #[test]
    fn names() {
        for good in ["a", "my-agent", "A_9", &"x".repeat(255)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn uploads_that_are_refused() {
        for (files, text) in [
            (vec![], "Agent directory must contain CLAUDE.md"),
            (vec![file("a.md", "")], "Agent directory must contain CLAUDE.md"),
            (vec![file("sub/CLAUDE.md", "")], "Agent directory must contain CLAUDE.md"),
            (vec![file("../x", "")], "files[0].path: \"../x\" must not contain \"..\""),
            (vec![file("CLAUDE.md", ""), file("/etc/x", "")], "files[1].path: \"/etc/x\" must be relative"),
            (vec![file("CLAUDE.md", "###")], "files[0].content must be base64"),
            (vec![file("CLAUDE.md", ""), file("./CLAUDE.md", "")], "files[1].path: \"./CLAUDE.md\" is a duplicate"),
            (vec![file("CLAUDE.md", ""), file("CLAUDE.md/x", "")], "files: \"CLAUDE.md/x\" is below another file"),
        ] {
            let error = decode(files, None).unwrap_err();
            assert!(error.text().starts_with(text), "{} for {text}", error.text());
        }
    }

    #[test]
    fn the_prompt_becomes_claude_md_only_when_missing() {
        let tree = decode(vec![], Some("Be brief.".into())).unwrap();
        assert_eq!(tree[Path::new("CLAUDE.md")], b"Be brief.");
        let tree = decode(vec![file("CLAUDE.md", "aGk=")], Some("Be brief.".into())).unwrap();
        assert_eq!(tree[Path::new("CLAUDE.md")], b"hi");
    }

    #[test]
    fn directories_of_the_server() {
        let temp = tempfile::tempdir().unwrap();
        let make = |name: &str, claude: bool| {
            let dir = temp.path().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            if claude {
                std::fs::write(dir.join("CLAUDE.md"), "x").unwrap();
            }
            dir
        };
        let good = make("roots/good", true);
        let empty = make("roots/empty", false);
        let elsewhere = make("elsewhere", true);
        let data = make("data", false);
        let stolen = make("data/agents/a", true);
        std::os::unix::fs::symlink(&elsewhere, temp.path().join("roots/link")).unwrap();
        let roots = [temp.path().join("roots")];
        let config = |roots: &[PathBuf]| Config {
            data_dir: data.clone(),
            run_dir: temp.path().join("run"),
            agents: crate::config::AgentsConfig { roots: roots.to_vec() },
            ..Config::default()
        };
        let try_path = |roots: &[PathBuf], admin: bool, path: &Path| {
            let found = allowed(&config(roots), admin, path.to_str().unwrap());
            found.map(|(path, _)| path).map_err(|e| e.text().to_owned())
        };
        assert_eq!(try_path(&[], true, &good), Ok(good.to_str().unwrap().to_owned()));
        for admin in [true, false] {
            assert_eq!(try_path(&roots, admin, &good), Ok(good.to_str().unwrap().to_owned()));
        }
        assert_eq!(try_path(&[], true, &empty).unwrap_err(), NO_CLAUDE_MD);
        let missing = try_path(&[], true, &temp.path().join("nowhere")).unwrap_err();
        assert!(missing.starts_with(NO_CLAUDE_MD) && missing.ends_with("does not exist on the server"), "{missing}");
        let file = try_path(&[], true, &good.join("CLAUDE.md")).unwrap_err();
        assert!(file.ends_with("is not a directory"), "{file}");
        assert!(try_path(&[], false, &good).unwrap_err().contains("upload the agent"));
        for (roots, path) in [
            (&roots[..], elsewhere.clone()),
            (&roots[..], temp.path().join("roots/link")),
            (&roots[..], temp.path().join("roots/../elsewhere")),
            (&roots[..], temp.path().join("nowhere")),
            (&roots[..], temp.path().join("roots/../nowhere")),
        ] {
            let text = try_path(roots, true, &path).unwrap_err();
            assert!(text.starts_with("path must lie under one of the agent roots"), "{}: {text}", path.display());
        }
        for path in [&data, &stolen, &temp.path().to_path_buf()] {
            let text = try_path(&[], true, path).unwrap_err();
            assert!(text.contains("data directory"), "{}: {text}", path.display());
        }
        // A CLAUDE.md may be a link, but not one that leaves the directory.
        std::fs::remove_file(good.join("CLAUDE.md")).unwrap();
        std::fs::write(good.join("AGENTS.md"), "x").unwrap();
        std::os::unix::fs::symlink("AGENTS.md", good.join("CLAUDE.md")).unwrap();
        assert!(try_path(&[], true, &good).is_ok());
        std::fs::remove_file(good.join("CLAUDE.md")).unwrap();
        std::os::unix::fs::symlink(elsewhere.join("CLAUDE.md"), good.join("CLAUDE.md")).unwrap();
        assert_eq!(try_path(&[], true, &good).unwrap_err(), NO_CLAUDE_MD);
    }
}
