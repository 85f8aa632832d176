//! `ashctl claude`: versions of Claude Code, side by side in `<data dir>/claude/<version>/claude`.
//!
//! ```text
//!   npm pack (npm's own client and registry) -> .tmp-<pid>/x.tgz -> claude, sha256 -> --version -> rename
//! ```
//!
//! Everything happens in a directory of its own beside the versions and appears under its final name in one step, so
//! that a session that starts meanwhile sees either nothing or a whole binary. The undo is the directory's removal.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::CtlError;
use super::claude_archive::{digest, unpack};
use super::cli::ClaudeCommand;
use super::output::Output;

/// The version this ashd was built and measured with.
pub const PINNED: &str = "2.1.330";

/// Checksums of the binaries that were examined: version, npm's name of the platform, SHA-256.
const KNOWN: [(&str, &str, &str); 1] =
    [("2.1.330", "linux-x64", "f390eaa0814e6a1bff74cbb47acb74cb9c89d30ced809fe0af5af00c7bfe8ebb")];

pub fn run(command: &ClaudeCommand, data_dir: &Path, out: &Output) -> Result<(), CtlError> {
    match command {
        ClaudeCommand::Install { version, force } => {
            let path = install(data_dir, version, *force)?;
            if out.json() {
                out.value(&json!({ "version": version, "path": path }))
            } else {
                out.line(&format!("Claude Code {version} is at {}", path.display()))
            }
        }
        ClaudeCommand::List => {
            let versions: Vec<Value> = installed(data_dir)?
                .into_iter()
                .map(|(version, path, bytes)| {
                    json!({ "default": if version == PINNED { "*" } else { "" }, "version": version, "bytes": bytes, "path": path })
                })
                .collect();
            out.rows(
                &json!({ "versions": versions }),
                "versions",
                &[("", "default"), ("version", "version"), ("bytes", "bytes"), ("path", "path")],
            )
        }
    }
}

/// Installs a version and returns the path of its binary. One that is there and whole is left alone, unless `force`.
///
/// # Errors
/// [`CtlError::Usage`] for something that is no version, [`CtlError::Install`] when npm is missing or fails or the
/// checksum is another, [`CtlError::File`] when the data directory cannot be written. Nothing is changed then.
pub fn install(data_dir: &Path, version: &str, force: bool) -> Result<PathBuf, CtlError> {
    let platform = platform()?;
    if !is_version(version) {
        return Err(CtlError::Usage(format!("\"{version}\" is not a version such as {PINNED}")));
    }
    let versions = data_dir.join("claude");
    let place = versions.join(version);
    let binary = place.join("claude");
    let expected = KNOWN.iter().find(|(v, p, _)| *v == version && *p == platform).map(|(_, _, sum)| *sum);
    if binary.is_file() && !force && whole(&binary, version, expected)? {
        eprintln!("Claude Code {version} is already installed");
        return Ok(binary);
    }
    make_dir(data_dir)?;
    make_dir(&versions)?;
    let scratch = Scratch::new(&versions)?;
    let archive = download(&scratch.0, platform, version)?;
    let fresh = scratch.0.join("fresh");
    make_dir(&fresh)?;
    let sum = unpack(&archive, &fresh.join("claude"))?;
    match expected {
        Some(expected) if expected != sum => {
            return Err(CtlError::Install(format!(
                "the binary of Claude Code {version} has SHA-256 {sum}, expected {expected}: it is not the one that was examined; nothing was installed"
            )));
        }
        Some(_) => eprintln!("  SHA-256 {sum} as expected"),
        None => eprintln!(
            "  SHA-256 {sum} (this version was not examined with this ashd; npm's own integrity check passed)"
        ),
    }
    let said = ask_version(&fresh.join("claude"), &scratch.0)?;
    if !said.starts_with(version) {
        return Err(CtlError::Install(format!(
            "the binary says it is \"{said}\", not {version}; nothing was installed"
        )));
    }
    eprintln!("  it runs: {said}");
    if place.exists() {
        fs::rename(&place, scratch.0.join("old")).map_err(CtlError::file(&place))?;
    }
    fs::rename(&fresh, &place).map_err(CtlError::file(&place))?;
    Ok(binary)
}

/// Version, path and bytes of every installed binary, by name.
fn installed(data_dir: &Path) -> Result<Vec<(String, PathBuf, u64)>, CtlError> {
    let dir = data_dir.join("claude");
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(CtlError::file(&dir))?,
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str().filter(|name| is_version(name))?.to_owned();
            let path = entry.path().join("claude");
            let bytes = fs::metadata(&path).ok()?.len();
            Some((version, path, bytes))
        })
        .collect();
    found.sort();
    Ok(found)
}

fn whole(binary: &Path, version: &str, expected: Option<&str>) -> Result<bool, CtlError> {
    match expected {
        Some(expected) => Ok(digest(binary)? == expected),
        None => Ok(ask_version(binary, Path::new("/nonexistent")).is_ok_and(|said| said.starts_with(version))),
    }
}

/// Three numbers and perhaps a pre-release; it becomes a directory's name and npm's argument.
fn is_version(text: &str) -> bool {
    let (numbers, pre) = text.split_once('-').unwrap_or((text, "0"));
    let number = |part: &str| !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit());
    let ident = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    numbers.split('.').count() == 3
        && numbers.split('.').all(number)
        && !pre.is_empty()
        && pre.len() <= 64
        && pre.bytes().all(ident)
}

fn platform() -> Result<&'static str, CtlError> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("linux-x64"),
        "aarch64" => Ok("linux-arm64"),
        other => Err(CtlError::Install(format!("there is no Claude Code for {other}; x86_64 and aarch64 have one"))),
    }
}

fn make_dir(dir: &Path) -> Result<(), CtlError> {
    match fs::DirBuilder::new().mode(0o755).create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(CtlError::file(dir))
        }
        // The mode again, because the umask has a say in the first one and the sandbox must be able to read it.
        other => other
            .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
            .map_err(CtlError::file(dir)),
    }
}

/// npm chooses, fetches and checks the archive; it may take minutes, so the time that passed is shown.
fn download(into: &Path, platform: &str, version: &str) -> Result<PathBuf, CtlError> {
    let package = format!("@anthropic-ai/claude-code-{platform}@{version}");
    eprintln!("downloading {package} with npm");
    let log = into.join("npm.log");
    let sink = fs::File::create(&log).map_err(CtlError::file(&log))?;
    let mut npm = Command::new("npm")
        .args(["pack", "--ignore-scripts", "--loglevel=error", &package])
        .current_dir(into)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(sink)
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => CtlError::Install(
                "npm is not installed, and Claude Code comes from npm: `sudo apt install npm`, then again".to_owned(),
            ),
            _ => CtlError::Install(format!("npm cannot be started: {e}")),
        })?;
    let start = Instant::now();
    let mut told = 0;
    let status = loop {
        if let Some(status) = npm.try_wait().map_err(|e| CtlError::Install(format!("npm: {e}")))? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(100));
        let seconds = start.elapsed().as_secs();
        if seconds >= told + 5 {
            told = seconds;
            eprintln!("  {seconds} s");
        }
    };
    let text = fs::read_to_string(&log).unwrap_or_default();
    if !status.success() {
        return Err(CtlError::Install(format!("npm could not fetch {package} ({status}):\n{}", text.trim())));
    }
    fs::read_dir(into)
        .map_err(CtlError::file(into))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "tgz"))
        .ok_or_else(|| CtlError::Install(format!("npm said nothing was wrong, but left no archive of {package}")))
}

fn ask_version(binary: &Path, home: &Path) -> Result<String, CtlError> {
    let answer = Command::new(binary)
        .arg("--version")
        .env_clear()
        .env("HOME", home)
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| CtlError::Install(format!("{} cannot be run: {e}", binary.display())))?;
    let said = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    if answer.status.success() {
        return Ok(said);
    }
    let why = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
    Err(CtlError::Install(format!("{} --version failed ({}): {why}", binary.display(), answer.status)))
}

/// A directory that goes away with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(beside: &Path) -> Result<Self, CtlError> {
        let dir = beside.join(format!(".tmp-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(CtlError::file(&dir))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {e}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_cannot_leave_the_directory() {
        for good in [PINNED, "0.0.1", "2.1.330-beta.1"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "2.1", "latest", "../../etc", "2.1.330/..", "2.1.x", "1.2.3-", "1.2.3-a/b", "1.2.3 --x"] {
            assert!(!is_version(bad), "{bad}");
        }
    }
}
