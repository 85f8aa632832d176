//! Reads an agent's directory for a deployment.

use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use walkdir::WalkDir;

use super::CtlError;

/// Never uploaded, at any depth: tools can recreate them.
const SKIPPED: [&str; 8] =
    [".git", ".hg", ".svn", "node_modules", "__pycache__", ".DS_Store", ".venv", ".pytest_cache"];

/// Maximum bytes of a directory: its base64 form must fit into one request.
const MAX_BYTES: u64 = 32 << 20;

/// Maximum files of a directory.
const MAX_FILES: usize = 10_000;

#[derive(Debug)]
pub struct UploadFile {
    /// Relative, separated by `/`.
    pub path: String,
    pub size: u64,
    pub base64: String,
}

/// The directory's name, the default name of the agent.
pub fn name_of(dir: &Path) -> Result<String, CtlError> {
    let real = dir.canonicalize().map_err(CtlError::file(dir))?;
    let name = real.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fits {
        Ok(name.to_owned())
    } else {
        Err(CtlError::Usage(format!("\"{name}\" is not a valid agent name (A-Z a-z 0-9 _ -): pass one with --name")))
    }
}

/// Reads every file. Skips links and special files, and names them on standard error.
pub fn read(dir: &Path) -> Result<Vec<UploadFile>, CtlError> {
    if !dir.join("CLAUDE.md").is_file() {
        return Err(CtlError::Usage(format!("{} has no CLAUDE.md, so it is not an agent's directory", dir.display())));
    }
    let mut files = Vec::new();
    let mut total = 0;
    let walk = WalkDir::new(dir).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|e| e.depth() == 0 || !SKIPPED.iter().any(|s| e.file_name() == *s)) {
        let entry = entry.map_err(|e| CtlError::Usage(format!("cannot read the directory: {e}")))?;
        if entry.file_type().is_dir() {
            continue;
        }
        let relative = entry.path().strip_prefix(dir).unwrap_or(entry.path());
        let Some(path) = relative.to_str() else {
            return Err(CtlError::Usage(format!("{}: the name is not UTF-8", entry.path().display())));
        };
        if !entry.file_type().is_file() {
            eprintln!("skipped {}: not a regular file", super::render::printable(path));
            continue;
        }
        // The file may be larger than memory: read only what fits.
        let mut bytes = Vec::new();
        let file = std::fs::File::open(entry.path()).map_err(CtlError::file(entry.path()))?;
        file.take(MAX_BYTES - total + 1).read_to_end(&mut bytes).map_err(CtlError::file(entry.path()))?;
        total += bytes.len() as u64;
        if total > MAX_BYTES || files.len() == MAX_FILES {
            return Err(CtlError::Usage(format!(
                "{} has more than {MAX_FILES} files or {} MiB: move out what the agent does not need",
                dir.display(),
                MAX_BYTES >> 20
            )));
        }
        files.push(UploadFile {
            path: path.to_owned(),
            size: bytes.len() as u64,
            base64: base64::engine::general_purpose::STANDARD.encode(&bytes),
        });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_tools_make_stays_behind() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        for path in ["CLAUDE.md", "src/a.py", ".claude/skills/x/SKILL.md", ".git/config", "src/node_modules/m/i.js"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
            fs::write(path, "hi")?;
        }
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link"))?;
        let files = read(dir.path())?;
        let paths: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, [".claude/skills/x/SKILL.md", "CLAUDE.md", "src/a.py"]);
        assert_eq!(files[1].base64, "aGk=");
        Ok(())
    }

    #[test]
    fn a_folder_without_instructions_is_refused_before_any_upload() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        assert!(matches!(read(dir.path()), Err(CtlError::Usage(text)) if text.contains("CLAUDE.md")));
        Ok(())
    }
}
