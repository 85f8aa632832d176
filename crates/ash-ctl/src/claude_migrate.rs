//! Versions that an earlier ashd kept in `<data dir>/claude`, which the user ashd can write. Their
//! bytes are copied into the claude directory if their checksum is known, and not used otherwise.
//! The originals stay; no program reads them. Versions in the claude directory get the mode of a
//! new installation.

use std::path::Path;

use serde_json::json;

use super::CtlError;
use super::claude_archive::copy;
use super::claude_install::{Places, close, installed, is_version, is_whole, known, platform, put, untrusted};
use super::output::Output;
use ash_kernel::beneath::Refused;
use ash_kernel::tree::Tree;
use ash_kernel::trusted;

/// `ashctl claude migrate`: the package's maintainer script runs it on upgrade.
///
/// # Errors
/// Directories that cannot be used or written.
pub fn run(places: Places<'_>, out: &Output) -> Result<(), CtlError> {
    let platform = platform()?;
    for (version, path, _) in installed(places.claude_dir)? {
        match trusted::file(&path) {
            Ok(_) => close(&Tree::make_trusted(places.claude_dir).map_err(untrusted)?, &version)?,
            // The launcher refuses it too.
            Err(why) => eprintln!("  {} is not used: {why}", path.display()),
        }
    }
    let (mut copied, mut left) = (Vec::new(), Vec::new());
    for version in old_versions(places.data_dir)? {
        let Some(sum) = known(&version, platform) else {
            left.push(version);
            continue;
        };
        let home = Tree::make_trusted(places.claude_dir).map_err(untrusted)?;
        let there = is_whole(&home, &version, Some(sum))? || take_over(&home, places.data_dir, &version, sum)?;
        if there { copied.push(version) } else { left.push(version) }
    }
    if out.json() {
        return out.value(&json!({ "copied": copied, "left": left }));
    }
    let old = places.data_dir.join("claude");
    for version in &left {
        out.line(&format!(
            "Claude Code {version} in {} is no longer used: ashd can change it and its checksum is not known. Install it: \
             ashctl claude install {version}",
            old.display()
        ))?;
    }
    if !copied.is_empty() {
        out.line(&format!(
            "Claude Code {} is now in {}; {} is no longer used and can be removed",
            copied.join(", "),
            places.claude_dir.display(),
            old.display()
        ))?;
    }
    Ok(())
}

/// Names in `<data dir>/claude`; empty if it does not exist.
fn old_versions(data_dir: &Path) -> Result<Vec<String>, CtlError> {
    let at = data_dir.join("claude");
    let data = match Tree::open(data_dir) {
        Err(why) if why.is_missing() => return Ok(Vec::new()),
        other => other.map_err(untrusted)?,
    };
    let names = match data.directory("claude") {
        Err(Refused::NotFound) => return Ok(Vec::new()),
        other => other.and_then(|dir| dir.names()).map_err(|e| CtlError::file(&at)(e.into()))?,
    };
    Ok(names.iter().filter_map(|name| name.to_str()).filter(|name| is_version(name)).map(str::to_owned).collect())
}

/// Copies a version with this SHA-256. Returns `false` if there is none.
///
/// # Errors
/// The claude directory cannot be written, or the binary does not run.
pub fn take_over(home: &Tree, data_dir: &Path, version: &str, sum: &str) -> Result<bool, CtlError> {
    let at = Path::new("claude").join(version).join("claude");
    let shown = data_dir.join(&at);
    let opened = Tree::open(data_dir).map_err(std::io::Error::from).and_then(|data| Ok(data.open_file(&at)?));
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            eprintln!("  {} is not used: {error}", shown.display());
            return Ok(false);
        }
    };
    eprintln!("copying {}", shown.display());
    let mut differs = false;
    let done = put(
        home,
        version,
        |to| copy(file, to).map_err(CtlError::file(&shown)),
        |found| {
            differs = found != sum;
            if differs { Err(CtlError::Install(format!("its SHA-256 is {found}, expected {sum}"))) } else { Ok(()) }
        },
    );
    match done {
        Err(error) if differs => {
            eprintln!("  {} is not used: {error}", shown.display());
            Ok(false)
        }
        other => other.map(|()| true),
    }
}
