//! Runs npm and Claude Code without root's privileges.
//!
//! ```text
//!   <temporary directory>/           owned by root, 0711
//!      npm.log                       output of npm
//!      npm/                          owned by an id without an account, 0700: HOME, cache,
//!                                    npmrc (a copy of the admin's)
//!         <package>.tgz              root reads it through the descriptor of npm/
//! ```
//!
//! `npm` reads the settings of the user who calls ashctl (`~/.npmrc` or `NPM_CONFIG_USERCONFIG`,
//! npm's global file, variables of npm and of proxies). It reads no project settings: its working
//! directory is new and has its own `package.json`, so npm searches no further.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::CtlError;
use ash_kernel::private::Private;
use ash_kernel::tree::{Tree, give};
use ash_kernel::unprivileged::{self, NO_ACCOUNT};
use ash_kernel::{inherited, trusted};

/// Time limit of `claude --version`; it takes a second on a slow disk.
const VERSION_WITHIN: Duration = Duration::from_secs(60);
/// Maximum size of an npm settings file in bytes.
const MAX_NPMRC: u64 = 256 * 1024;
/// Environment variables that npm needs to reach a registry, besides its own.
const PASSED: [&str; 14] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
];

/// Fetches the archive of a version; npm checks it. This may take minutes: progress is shown.
///
/// # Errors
/// [`CtlError::Install`] when npm is missing or fails, with npm's output.
pub fn download(platform: &str, version: &str) -> Result<File, CtlError> {
    let package = format!("@anthropic-ai/claude-code-{platform}@{version}");
    eprintln!("downloading {package} with npm");
    let private = Private::new(None, "ashctl-npm", 0o711).map_err(CtlError::file("temporary directory"))?;
    let made = prepare(private.tree()).map_err(CtlError::file(private.path()));
    let (work, settings) = made?;
    let failed = |e: std::io::Error| CtlError::file(private.path())(e);
    let mut log = private.tree().create_file("npm.log").map_err(|e| failed(e.into()))?;
    let home = work.path();
    let mut npm = unprivileged::command("npm", NO_ACCOUNT);
    npm.args(["pack", "--ignore-scripts", "--loglevel=error", &package]);
    npm.arg("--userconfig").arg(home.join("npmrc")).arg("--cache").arg(home.join("cache"));
    npm.current_dir(home).stdout(Stdio::null()).stderr(log.try_clone().map_err(failed)?);
    npm.envs(environment(&settings)).env("HOME", home).env("TMPDIR", home);
    let mut npm = npm.spawn().map_err(|e| match e.kind() {
        // A directory in PATH that only root can enter gives another errno.
        _ if !on_path("npm") => CtlError::Install(
            "npm is not installed. Claude Code is installed from npm: run `sudo apt install npm` and try again"
                .to_owned(),
        ),
        _ => CtlError::Install(format!(
            "cannot start npm without root's privileges: {e}. Every user must be able to run it, and to enter {}",
            private.path().display()
        )),
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
    if !status.success() {
        let text = end_of(&mut log, private.tree()).map_err(failed)?;
        return Err(CtlError::Install(format!("npm could not fetch {package} ({status}):\n{}", text.trim())));
    }
    let names = work.names().map_err(|e| failed(e.into()))?;
    let archive = names.iter().find(|name| Path::new(name).extension().is_some_and(|ext| ext == "tgz"));
    let archive =
        archive.ok_or_else(|| CtlError::Install(format!("npm reported success but wrote no archive of {package}")))?;
    // The file stays open when its directory is removed.
    work.open_file(archive).map_err(|refused| CtlError::file(home.join(archive))(refused.into()))
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// npm's working directory, and the text of the settings copied into it.
fn prepare(private: &Tree) -> std::io::Result<(Tree, String)> {
    let settings = npmrc()?;
    let work = private.make_dir("npm", 0o700, None)?;
    work.create_file("package.json")?.write_all(b"{}\n")?;
    let mut copy = work.create_file("npmrc")?;
    copy.write_all(settings.as_bytes())?;
    if rustix::process::geteuid().is_root() {
        give(&copy, NO_ACCOUNT)?;
        give(work.open_file("package.json")?, NO_ACCOUNT)?;
        // Last, because the new owner can exchange the contents from here on.
        give(&work, NO_ACCOUNT)?;
    }
    Ok((work, settings))
}

/// The caller's npm settings; empty if there are none.
fn npmrc() -> std::io::Result<String> {
    let named = ["NPM_CONFIG_USERCONFIG", "npm_config_userconfig"].into_iter().find_map(std::env::var_os);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".npmrc"));
    let Some(path) = named.map(PathBuf::from).or(home) else { return Ok(String::new()) };
    let path = std::path::absolute(path)?;
    // `sudo` may keep HOME: root must not use settings that another user wrote.
    match trusted::read(&path, MAX_NPMRC) {
        Ok(text) => String::from_utf8(text).map_err(std::io::Error::other),
        Err(why) if why.is_missing() => Ok(String::new()),
        Err(why) => {
            eprintln!("  npm's settings in {} are not used: {why}", path.display());
            Ok(String::new())
        }
    }
}

/// The environment variables passed to npm, and those its settings refer to as `${NAME}`.
fn environment(settings: &str) -> Vec<(OsString, OsString)> {
    let referred: Vec<&str> =
        settings.split("${").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.trim_end_matches('?'))).collect();
    let wanted = |name: &OsStr| {
        let Some(name) = name.to_str() else { return false };
        let of_npm = name.to_ascii_lowercase();
        PASSED.contains(&name) || referred.contains(&name) || of_npm.starts_with("npm_config_")
    };
    std::env::vars_os().filter(|(name, _)| wanted(name)).collect()
}

fn end_of(log: &mut File, private: &Tree) -> std::io::Result<String> {
    const TAIL: u64 = 8 << 10;
    let length = log.seek(SeekFrom::End(0))?;
    let mut file = private.open_file("npm.log")?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The output of the open binary's `--version`. It runs without root's privileges and by its
/// descriptor, so it is the file whose checksum was computed.
///
/// # Errors
/// [`CtlError::Install`] when it does not run, times out or fails.
pub fn ask_version(binary: &File, shown: &Path) -> Result<String, CtlError> {
    let failed = |e: std::io::Error| CtlError::Install(format!("cannot run {}: {e}", shown.display()));
    let passed = binary.try_clone().map_err(failed)?;
    // A script's interpreter opens the path again.
    let passed: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(&passed);
    inherited::keep_on_exec(passed).map_err(failed)?;
    let private = Private::new(None, "ashctl-version", 0o711).map_err(failed)?;
    let owner = rustix::process::geteuid().is_root().then_some(NO_ACCOUNT);
    let home = private.tree().make_dir("home", 0o700, owner).map_err(|refused| failed(refused.into()))?;
    let mut command = unprivileged::command(format!("/proc/self/fd/{}", passed.as_raw_fd()), NO_ACCOUNT);
    command.arg("--version").env("HOME", home.path()).env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1");
    command.env("PATH", "/usr/bin:/bin");
    let answer = unprivileged::answer(&mut command, VERSION_WITHIN, 4096).map_err(failed)?;
    let said = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    if answer.status.success() {
        return Ok(said);
    }
    let why = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
    Err(CtlError::Install(format!("{} --version failed ({}): {why}", shown.display(), answer.status)))
}
