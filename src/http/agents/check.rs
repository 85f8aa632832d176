//! What a deployment must be before anything is written.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::error::ApiError;
use super::super::files::path::relative;
use super::UploadedFile;
use crate::config::Config;
use crate::model::TenantId;

/// Most files of one deployment, and their bytes together.
pub const MAX_FILES: usize = 10_000;
pub const MAX_BYTES: usize = 100 << 20;
/// Longest name, in bytes.
const MAX_NAME: usize = 255;
/// The contract's words for an agent that is none.
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

/// Names and values that a process can be given.
pub fn check_env(field: &str, env: &BTreeMap<String, String>) -> Result<(), ApiError> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(ApiError::bad_request(format!("{field}: \"{name}\" is not a name of an environment variable")));
        }
        if value.contains('\0') {
            return Err(ApiError::bad_request(format!("{field}.{name} must not contain a NUL byte")));
        }
    }
    Ok(())
}

/// The absolute form of `path`, when this tenant may deploy it and it is an agent's directory.
///
/// Links are resolved before the rules are applied; the path is recorded as it was given.
pub async fn check_path(config: &Config, tenant: &TenantId, path: String) -> Result<String, ApiError> {
    let (roots, data_dir, tenant) = (config.agents.roots.clone(), config.data_dir.clone(), tenant.clone());
    tokio::task::spawn_blocking(move || allowed(&roots, &data_dir, &tenant, &path))
        .await
        .map_err(|cause| ApiError::internal("the agent's directory could not be looked at", &cause))?
}

fn allowed(roots: &[PathBuf], data_dir: &Path, tenant: &TenantId, given: &str) -> Result<String, ApiError> {
    if given.is_empty() || given.contains('\0') {
        return Err(ApiError::bad_request("path must be a directory on the server"));
    }
    if roots.is_empty() && *tenant != TenantId::default_tenant() {
        return Err(ApiError::bad_request(
            "path: this tenant may not deploy directories of the server; upload the agent with files",
        ));
    }
    let absolute = std::path::absolute(given)
        .map_err(|cause| ApiError::bad_request(format!("path \"{given}\" cannot be resolved: {cause}")))?;
    // The same answer for what does not exist and for what is outside the roots, so that they do not tell what is there.
    let outside = || {
        let roots: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
        ApiError::bad_request(format!("path must lie under one of the agent roots: {}", roots.join(", ")))
    };
    let real = match absolute.canonicalize() {
        Ok(real) => real,
        Err(_) if !roots.is_empty() && !roots.iter().any(|root| absolute.starts_with(root)) => return Err(outside()),
        Err(cause) => return Err(unusable(given, &cause)),
    };
    if !roots.is_empty() && !roots.iter().any(|root| root.canonicalize().is_ok_and(|root| real.starts_with(root))) {
        return Err(outside());
    }
    if data_dir.canonicalize().is_ok_and(|data| real.starts_with(&data) || data.starts_with(&real)) {
        return Err(ApiError::bad_request("path must not be, hold or lie in the data directory of ashd"));
    }
    if !real.is_dir() {
        return Err(ApiError::bad_request(format!("{NO_CLAUDE_MD}: \"{given}\" is not a directory")));
    }
    match std::fs::metadata(real.join("CLAUDE.md")) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(ApiError::bad_request(NO_CLAUDE_MD)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Err(ApiError::bad_request(NO_CLAUDE_MD)),
        Err(cause) => return Err(unusable(given, &cause)),
    }
    absolute.into_os_string().into_string().map_err(|_| ApiError::bad_request("path must be UTF-8"))
}

fn unusable(given: &str, cause: &io::Error) -> ApiError {
    ApiError::bad_request(match cause.kind() {
        io::ErrorKind::NotFound => format!("{NO_CLAUDE_MD}: \"{given}\" does not exist on the server"),
        io::ErrorKind::PermissionDenied => format!(
            "{NO_CLAUDE_MD}: ashd's user may not read \"{given}\"; make it readable or upload the agent with files"
        ),
        _ => format!("{NO_CLAUDE_MD}: \"{given}\": {cause}"),
    })
}

/// Decoded files by their path in the agent's directory.
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Checks and decodes a whole agent; `CLAUDE.md` is made from the prompt when it is missing.
pub fn decode(files: Vec<UploadedFile>, prompt: Option<String>) -> Result<Tree, ApiError> {
    let mut tree = decode_files(files)?;
    if let Some(prompt) = prompt {
        tree.entry(PathBuf::from("CLAUDE.md")).or_insert_with(|| prompt.into_bytes());
    }
    if !tree.contains_key(Path::new("CLAUDE.md")) {
        return Err(ApiError::bad_request(NO_CLAUDE_MD));
    }
    Ok(tree)
}

/// However it is spelt (`./CLAUDE.md`).
pub fn is_claude_md(path: &str) -> bool {
    relative(path).is_ok_and(|path| path == Path::new("CLAUDE.md"))
}

/// Checks and decodes files.
pub fn decode_files(files: Vec<UploadedFile>) -> Result<Tree, ApiError> {
    if files.len() > MAX_FILES {
        return Err(ApiError::bad_request(format!("files has {} entries; the limit is {MAX_FILES}", files.len())));
    }
    let mut tree = Tree::new();
    let mut total = 0;
    for (index, file) in files.into_iter().enumerate() {
        let wrong = |what: String| ApiError::bad_request(format!("files[{index}].{what}"));
        let path = relative(&file.path).map_err(|why| wrong(format!("path: {why}")))?;
        let bytes = STANDARD.decode(file.content).map_err(|why| wrong(format!("content must be base64: {why}")))?;
        total += bytes.len();
        if total > MAX_BYTES {
            return Err(ApiError::too_large(format!("files hold more than the limit of {MAX_BYTES} bytes")));
        }
        if tree.insert(path, bytes).is_some() {
            return Err(wrong(format!("path: \"{}\" is given twice", file.path)));
        }
    }
    // A file cannot be a directory of another one.
    let clash = tree.keys().find(|path| path.ancestors().skip(1).any(|above| tree.contains_key(above)));
    if let Some(path) = clash {
        return Err(ApiError::bad_request(format!("files: \"{}\" lies below another file", path.display())));
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &str) -> UploadedFile {
        UploadedFile { path: path.into(), content: content.into() }
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
            (vec![file("CLAUDE.md", ""), file("./CLAUDE.md", "")], "files[1].path: \"./CLAUDE.md\" is given twice"),
            (vec![file("CLAUDE.md", ""), file("CLAUDE.md/x", "")], "files: \"CLAUDE.md/x\" lies below another file"),
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
        let (default, other) = (TenantId::default_tenant(), "acme".parse::<TenantId>().unwrap());
        let try_path = |roots: &[PathBuf], tenant: &TenantId, path: &Path| {
            allowed(roots, &data, tenant, path.to_str().unwrap()).map_err(|e| e.text().to_owned())
        };
        assert_eq!(try_path(&[], &default, &good), Ok(good.to_str().unwrap().to_owned()));
        assert_eq!(try_path(&roots, &other, &good), Ok(good.to_str().unwrap().to_owned()));
        assert_eq!(try_path(&[], &default, &empty).unwrap_err(), NO_CLAUDE_MD);
        let missing = try_path(&[], &default, &temp.path().join("nowhere")).unwrap_err();
        assert!(missing.starts_with(NO_CLAUDE_MD) && missing.ends_with("does not exist on the server"), "{missing}");
        assert!(try_path(&[], &other, &good).unwrap_err().contains("upload the agent"));
        for (roots, path) in [
            (&roots[..], elsewhere.clone()),
            (&roots[..], temp.path().join("roots/link")),
            (&roots[..], temp.path().join("roots/../elsewhere")),
            (&roots[..], temp.path().join("nowhere")),
        ] {
            let text = try_path(roots, &default, &path).unwrap_err();
            assert!(text.starts_with("path must lie under one of the agent roots"), "{}: {text}", path.display());
        }
        for path in [&data, &stolen, &temp.path().to_path_buf()] {
            let text = try_path(&[], &default, path).unwrap_err();
            assert!(text.contains("data directory"), "{}: {text}", path.display());
        }
    }
}
