//! `ashctl claude`: versions of Claude Code, side by side in `<claude dir>/<version>/claude`.
//!
//! ```text
//!   npm (ids without an account) --> archive ------+
//!   <data dir>/claude of an earlier ashd ----------+--> <claude dir>/.install-*/fresh/claude
//!      --> SHA-256 of the written bytes --> --version (ids without an account) --> rename
//! ```
//!
//! Only root can change the claude directory and its parents (`kernel::trusted`), so the launcher
//! opens what was checked here. A version appears by one rename: a starting session sees either
//! nothing or a complete binary. To uninstall a version, remove its directory.
//! A session can execute the binary but not read it, see [`close`].

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CtlError;
use super::claude_archive::{copy, unpack};
use super::claude_fetch::{ask_version, download};
use super::output::Output;
use ash_kernel::private::Private;
use ash_kernel::tree::Tree;
use ash_kernel::trusted::{self, Untrusted};

/// The version this ashd is built and tested with.
pub const PINNED: &str = "2.1.330";

/// Checksums of the binaries of known versions: version, npm's platform name, SHA-256.
const KNOWN: [(&str, &str, &str); 2] = [
    ("2.1.330", "linux-x64", "f390eaa0814e6a1bff74cbb47acb74cb9c89d30ced809fe0af5af00c7bfe8ebb"),
    ("2.1.330", "linux-arm64", "6016f90cac783e367fb1aa97c768a2efb94a0128a5b46b70fb3d8fcbbd9dd444"),
];

#[derive(Debug, Subcommand)]
pub enum ClaudeCommand {
    /// Installs Claude Code with npm, which runs without root's privileges; versions live side by
    /// side.
    Install {
        #[arg(default_value = PINNED)]
        version: String,
        /// Install it again even if it is installed.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        trust: Trust,
    },
    /// Adapts versions of an earlier ashd: copies those in its data directory whose checksums are
    /// known, and removes the sessions' permission to read the installed ones.
    Migrate,
    /// Lists the installed versions.
    List,
}

/// Which binary to accept for a version with no known checksum.
#[derive(Clone, Debug, Default, Args)]
pub struct Trust {
    /// SHA-256 of the version's binary, 64 hexadecimal digits; a different one is not installed.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    /// Accept what npm delivers for a version with no known checksum.
    #[arg(long, conflicts_with = "sha256")]
    pub allow_unknown_checksum: bool,
}

fn sha256(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text);
    }
    Err("expected 64 hexadecimal digits".to_owned())
}

/// The first bytes of an ELF file (elf(5)).
const ELF: &[u8; 4] = b"\x7fELF";
pub const EXECUTE_ONLY: u32 = 0o711;

#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    pub claude_dir: &'a Path,
    /// An earlier ashd kept versions below it.
    pub data_dir: &'a Path,
}

pub fn run(command: &ClaudeCommand, places: Places<'_>, out: &Output) -> Result<(), CtlError> {
    match command {
        ClaudeCommand::Install { version, force, trust } => {
            let path = install(places, version, *force, trust)?;
            if out.json() {
                out.value(&json!({ "version": version, "path": path }))
            } else {
                out.line(&format!("Claude Code {version} is at {}", path.display()))
            }
        }
        ClaudeCommand::Migrate => super::claude_migrate::run(places, out),
        ClaudeCommand::List => {
            let versions: Vec<Value> = installed(places.claude_dir)?
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

/// Installs a version and returns the path of its binary. Keeps an intact one, unless `force`.
///
/// # Errors
/// [`CtlError::Usage`] for an invalid version. [`CtlError::Install`] when npm is missing or fails,
/// the checksum differs or is unknown, or others than root can change the claude directory. An
/// error changes nothing.
pub fn install(places: Places<'_>, version: &str, force: bool, trust: &Trust) -> Result<PathBuf, CtlError> {
    let platform = platform()?;
    if !is_version(version) {
        return Err(CtlError::Usage(format!("\"{version}\" is not a version such as {PINNED}")));
    }
    let binary = places.claude_dir.join(version).join("claude");
    let expected = expected(version, platform, trust)?;
    let home = Tree::make_trusted(places.claude_dir).map_err(untrusted)?;
    if !force && is_whole(&home, version, expected.as_deref())? {
        close(&home, version)?;
        eprintln!("Claude Code {version} is already installed");
        return Ok(binary);
    }
    if !force
        && let Some(expected) = &expected
        && super::claude_migrate::take_over(&home, places.data_dir, version, expected)?
    {
        return Ok(binary);
    }
    put(
        &home,
        version,
        |to| unpack(download(platform, version)?, to),
        |sum| match &expected {
            Some(expected) if expected != sum => Err(CtlError::Install(format!(
                "the binary of Claude Code {version} has SHA-256 {sum}, expected {expected}; nothing was installed"
            ))),
            None if !trust.allow_unknown_checksum => Err(CtlError::Install(format!(
                "the binary of Claude Code {version} for {platform} has SHA-256 {sum}, but this ashctl knows no checksum for it; nothing was \
                 installed. Compare it with a source you trust, then: ashctl claude install {version} --sha256 {sum} \
                 (or --allow-unknown-checksum, which accepts what npm delivers)"
            ))),
            Some(_) => {
                eprintln!("  SHA-256 {sum}: matches");
                Ok(())
            }
            None => {
                eprintln!("  SHA-256 {sum}: unknown, accepted because of --allow-unknown-checksum");
                Ok(())
            }
        },
    )?;
    Ok(binary)
}

/// Writes a binary into a new directory of the claude directory, checks its SHA-256 and its
/// `--version`, and gives the directory its final name.
pub(super) fn put(
    home: &Tree,
    version: &str,
    write: impl FnOnce(&mut File) -> Result<String, CtlError>,
    judge: impl FnOnce(&str) -> Result<(), CtlError>,
) -> Result<(), CtlError> {
    let failed = |e: std::io::Error| CtlError::file(home.path())(e);
    let scratch = Private::new(Some(home.path()), ".install", 0o700).map_err(failed)?;
    let fresh = scratch.tree().make_dir("fresh", 0o755, None).map_err(|e| failed(e.into()))?;
    let mut file = fresh.create_file("claude").map_err(|e| failed(e.into()))?;
    let sum = write(&mut file)?;
    judge(&sum)?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o755)).map_err(|e| failed(e.into()))?;
    file.sync_all().map_err(failed)?;
    // A file that is open for writing cannot be executed. Only root can exchange it here.
    drop(file);
    let file = fresh.open_file("claude").map_err(|e| failed(e.into()))?;
    let said = ask_version(&file, &home.path().join(version).join("claude"))?;
    if !said.starts_with(version) {
        return Err(CtlError::Install(format!(
            "the binary reports version \"{said}\", expected {version}; nothing was installed"
        )));
    }
    eprintln!("  it runs: {said}");
    close(scratch.tree(), "fresh")?;
    let named = if home.has(version) {
        // The scratch directory removes the old one.
        scratch.tree().exchange("fresh", home, version).or_else(|_| {
            home.rename(version, scratch.tree(), "old")?;
            scratch.tree().rename("fresh", home, version)
        })
    } else {
        scratch.tree().rename("fresh", home, version)
    };
    named.map_err(|e| failed(e.into()))
}

/// Whether a version is installed and intact; without a checksum, whether only root can change it.
pub(super) fn is_whole(home: &Tree, version: &str, expected: Option<&str>) -> Result<bool, CtlError> {
    let path = home.path().join(version).join("claude");
    match trusted::file(&path) {
        Err(why) if why.is_missing() => return Ok(false),
        Err(why) => return Err(untrusted(why)),
        Ok(_) => {}
    }
    let Some(expected) = expected else { return Ok(true) };
    let failed = |e: std::io::Error| CtlError::file(&path)(e);
    let file = home.open_file(Path::new(version).join("claude")).map_err(|e| failed(e.into()))?;
    Ok(copy(file, &mut std::io::sink()).map_err(failed)? == expected)
}

/// Makes a version's binary readable by root only. No process can trace or read another one whose
/// program its user cannot read, so a tool in a sandbox can neither read nor change the claude that
/// started it. A script stays readable, because its interpreter must read it.
pub(super) fn close(home: &Tree, version: &str) -> Result<(), CtlError> {
    let failed = |e: std::io::Error| CtlError::file(home.path())(e);
    let mut file = home.open_file(Path::new(version).join("claude")).map_err(|e| failed(e.into()))?;
    let mut magic = [0; ELF.len()];
    let is_elf = file.read_exact(&mut magic).is_ok() && magic == *ELF;
    let stat = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?;
    if is_elf && stat.st_mode & 0o7777 != EXECUTE_ONLY {
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(EXECUTE_ONLY)).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

/// The checksum that the binary must have: the known or the admin's one. If both exist, they must
/// be equal.
fn expected(version: &str, platform: &str, trust: &Trust) -> Result<Option<String>, CtlError> {
    let known = known(version, platform);
    match (known, &trust.sha256) {
        (Some(known), Some(given)) if known != given => Err(CtlError::Usage(format!(
            "--sha256 {given} differs from the known SHA-256 of Claude Code {version} for {platform}, {known}"
        ))),
        (known, given) => Ok(given.clone().or(known.map(str::to_owned))),
    }
}

pub(super) fn known(version: &str, platform: &str) -> Option<&'static str> {
    KNOWN.iter().find(|(v, p, _)| *v == version && *p == platform).map(|(_, _, sum)| *sum)
}

/// Why root does not use a path, and how to fix it.
pub(super) fn untrusted(why: Untrusted) -> CtlError {
    if let Untrusted::Io { path, source } = why {
        return CtlError::File { path: path.display().to_string(), source };
    }
    let remedy = why.remedy().map_or(String::new(), |remedy| format!(" ({remedy}, or use another --claude-dir)"));
    CtlError::Install(format!("{why}{remedy}"))
}

/// Version, path and size in bytes of every installed binary, by name.
pub(super) fn installed(claude_dir: &Path) -> Result<Vec<(String, PathBuf, u64)>, CtlError> {
    let home = match Tree::open(claude_dir) {
        Err(why) if why.is_missing() => return Ok(Vec::new()),
        other => other.map_err(untrusted)?,
    };
    let names = home.names().map_err(|e| CtlError::file(claude_dir)(e.into()))?;
    let found = names.iter().filter_map(|name| {
        let version = name.to_str().filter(|name| is_version(name))?.to_owned();
        let at = Path::new(&version).join("claude");
        let bytes = u64::try_from(home.stat(&at).ok()?.st_size).ok()?;
        Some((version, home.path().join(at), bytes))
    });
    Ok(found.collect())
}

/// Three numbers and an optional pre-release. It becomes a directory name and an argument of npm.
pub(super) fn is_version(text: &str) -> bool {
    let (numbers, pre) = text.split_once('-').unwrap_or((text, "0"));
    let number = |part: &str| !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit());
    let ident = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    numbers.split('.').count() == 3
        && numbers.split('.').all(number)
        && !pre.is_empty()
        && pre.len() <= 64
        && pre.bytes().all(ident)
}

pub(super) fn platform() -> Result<&'static str, CtlError> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("linux-x64"),
        "aarch64" => Ok("linux-arm64"),
        other => Err(CtlError::Install(format!("Claude Code does not support {other}; supported: x86_64, aarch64"))),
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

    #[test]
    fn a_checksum_of_the_admin_never_overrides_a_known_one() {
        let trust = |sha256: Option<&str>| Trust { sha256: sha256.map(str::to_owned), allow_unknown_checksum: false };
        let own = "0".repeat(64);
        let (_, platform, sum) = KNOWN[0];
        assert_eq!(expected(PINNED, platform, &trust(None)).unwrap().as_deref(), Some(sum));
        assert_eq!(expected(PINNED, platform, &trust(Some(sum))).unwrap().as_deref(), Some(sum));
        assert!(expected(PINNED, platform, &trust(Some(&own))).is_err());
        assert_eq!(expected("9.9.9", platform, &trust(Some(&own))).unwrap(), Some(own));
        assert_eq!(expected("9.9.9", platform, &trust(None)).unwrap(), None);
    }
}
