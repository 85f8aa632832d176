//! The settings of the launcher: flags, then `launcher.toml`, then defaults. Requests cannot change
//! them.

use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;

use super::policy::Floor;
use ash_kernel::trusted;
use ash_model::{CLAUDE_DIR, Limits, UNLIMITED};

/// Lowest uid for sandboxes. System and ordinary users are below 65536 (login.defs).
const LOWEST_UID: u32 = 65_536;
const MAX_FILE: u64 = 64 * 1024;

/// The privileged part of ashd: creates and ends sandboxes on request over a unix socket.
///
/// Only the user named by --client-user (and root) can connect. A request names a sandbox by its
/// id. The launcher's settings, which only root can write, decide its directories, uids, cgroups
/// and limits.
#[derive(Clone, Debug, Parser)]
#[command(name = "ash-launcher", version, after_help = AFTER_HELP)]
pub struct Flags {
    /// Where launcher.sock and sandboxes/ are created
    #[arg(long, value_name = "DIR", default_value = "/run/ashd")]
    pub run_dir: PathBuf,
    /// Sessions: <DIR>/sessions/<id>/{workspace,home}
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ashd")]
    pub data_dir: PathBuf,
    /// Claude Code versions, <DIR>/<version>/claude; the whole path must be root's [default:
    /// /var/lib/ash-claude]
    #[arg(long, value_name = "DIR")]
    pub claude_dir: Option<PathBuf>,
    /// User (name or number) that may connect and that owns the session directories
    #[arg(long, value_name = "USER", default_value = "ashd")]
    pub client_user: String,
    /// Settings file; must belong to root and be writable by root only [default:
    /// /etc/ashd/launcher.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// First host uid of the range for sandboxes, which use two each [default: 1900000000]
    #[arg(long, value_name = "UID")]
    pub uid_base: Option<u32>,
    /// Number of uids in the range [default: 131072]
    #[arg(long, value_name = "N")]
    pub uid_count: Option<u32>,
    /// Name of the parent cgroup of all sandboxes, if systemd gives none [default: ashd]
    #[arg(long, value_name = "NAME")]
    pub cgroup: Option<String>,
    /// Group of cgroup v2 (path below the mount) that systemd delegates for sandboxes;
    /// --hold-cgroup runs in it
    #[arg(long, value_name = "PATH")]
    pub delegated_cgroup: Option<PathBuf>,
    /// Only keep this process's cgroup for the sandboxes, until SIGTERM
    #[arg(long)]
    pub hold_cgroup: bool,
    /// A Claude Code binary, used instead of an installed version
    #[arg(long, value_name = "FILE")]
    pub claude_binary: Option<PathBuf>,
    /// End with all sandboxes when the pipe on standard input is closed: a launcher of `ashctl
    /// doctor` must not outlive it
    #[arg(long, hide = true)]
    pub while_stdin_is_open: bool,
    /// Check whether a launcher could start with these settings on this host, and exit
    #[arg(long)]
    pub check: bool,
}

const AFTER_HELP: &str = "\
Example of launcher.toml (every line is optional; a flag overrides the file):
  uid_base = 1900000000
  uid_count = 131072
  cgroup = \"ashd\"
  claude_dir = \"/var/lib/ash-claude\"
  claude_binary = \"/opt/claude/claude\"
  [ceiling]                 # upper bounds for every sandbox
  memory_bytes = 8589934592
  swap_bytes = 8589934592
  cpu_millis = 4000         # thousandths of a core
  cpu_weight = 1000
  pids = 4096
  io_write_bps = 104857600  # bytes per second; also io_read_bps, io_read_iops, io_write_iops; default: no limit
  [floor]                   # requirements for sandboxes to start
  landlock_abi = 2

Signals: TERM and INT end every sandbox and then the launcher. KILL leaves them running: the next launcher finds them
again. HUP reloads ceiling, floor and claude_binary. USR2 replaces the program in the same process, for an upgrade:
sandboxes and connections continue. If the program or the settings fail --check, nothing changes.";

/// `launcher.toml` as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    uid_base: Option<u32>,
    uid_count: Option<u32>,
    cgroup: Option<String>,
    claude_dir: Option<PathBuf>,
    claude_binary: Option<PathBuf>,
    ceiling: Ceiling,
    floor: FloorFile,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FloorFile {
    landlock_abi: Option<u32>,
}

/// Upper bounds for the limits that the launcher enforces. ashd itself watches disk and turn time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ceiling {
    pub memory_bytes: u64,
    pub swap_bytes: u64,
    pub cpu_millis: u64,
    pub cpu_weight: u64,
    pub pids: u64,
    pub io_read_bps: u64,
    pub io_write_bps: u64,
    pub io_read_iops: u64,
    pub io_write_iops: u64,
}

impl Default for Ceiling {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 30,
            swap_bytes: 256 << 30,
            cpu_millis: 128_000,
            cpu_weight: 10_000,
            pids: 32_768,
            io_read_bps: UNLIMITED,
            io_write_bps: UNLIMITED,
            io_read_iops: UNLIMITED,
            io_write_iops: UNLIMITED,
        }
    }
}

impl Ceiling {
    /// The first limit above the ceiling: its name, the requested value, and the ceiling. Refused
    /// instead of lowered, so that every accepted limit is in force.
    pub fn exceeded(&self, asked: &Limits) -> Option<(&'static str, u64, u64)> {
        [
            ("memoryBytes", asked.memory_bytes, self.memory_bytes),
            ("swapBytes", asked.swap_bytes, self.swap_bytes),
            ("cpuMillis", asked.cpu_millis, self.cpu_millis),
            ("cpuWeight", asked.cpu_weight, self.cpu_weight),
            ("pids", asked.pids, self.pids),
            ("ioReadBps", asked.io_read_bps, self.io_read_bps),
            ("ioWriteBps", asked.io_write_bps, self.io_write_bps),
            ("ioReadIops", asked.io_read_iops, self.io_read_iops),
            ("ioWriteIops", asked.io_write_iops, self.io_write_iops),
        ]
        .into_iter()
        .find(|(_, asked, ceiling)| asked > ceiling)
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub run_dir: PathBuf,
    pub data_dir: PathBuf,
    pub claude_dir: PathBuf,
    pub client_uid: u32,
    pub client_gid: u32,
    pub uid_base: u32,
    pub uid_count: u32,
    pub cgroup: String,
    pub claude_binary: Option<PathBuf>,
    pub ceiling: Ceiling,
    pub floor: Floor,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("--client-user {0}: the user does not exist: create it, or name another one")]
    NoUser(String),
    #[error("{name}: {why}")]
    Value { name: &'static str, why: String },
}

impl Settings {
    /// Combines flags and file.
    ///
    /// # Errors
    /// Names the flag, or the file and line.
    pub fn load(flags: &Flags) -> Result<Self, SettingsError> {
        let default = PathBuf::from("/etc/ashd/launcher.toml");
        let file = match &flags.config {
            Some(path) => read(path)?,
            None if default.exists() => read(&default)?,
            None => File::default(),
        };
        let (client_uid, client_gid) = user(&flags.client_user)?;
        let uid_base = flags.uid_base.or(file.uid_base).unwrap_or(1_900_000_000);
        let uid_count = flags.uid_count.or(file.uid_count).unwrap_or(131_072);
        let cgroup = flags.cgroup.clone().or(file.cgroup).unwrap_or_else(|| "ashd".to_owned());
        check_range(uid_base, uid_count, client_uid)?;
        check_cgroup(&cgroup)?;
        let absolute = |name, path: &Path| match path.is_absolute() {
            true => Ok(path.to_owned()),
            false => Err(SettingsError::Value { name, why: format!("{} must be an absolute path", path.display()) }),
        };
        let binary = flags.claude_binary.clone().or(file.claude_binary);
        let claude_dir = flags.claude_dir.clone().or(file.claude_dir).unwrap_or_else(|| CLAUDE_DIR.into());
        Ok(Self {
            run_dir: absolute("--run-dir", &flags.run_dir)?,
            data_dir: absolute("--data-dir", &flags.data_dir)?,
            claude_dir: absolute("--claude-dir", &claude_dir)?,
            claude_binary: binary.map(|path| absolute("--claude-binary", &path)).transpose()?,
            floor: file.floor.landlock_abi.map_or_else(Floor::default, |landlock_abi| Floor { landlock_abi }),
            ceiling: file.ceiling,
            client_uid,
            client_gid,
            uid_base,
            uid_count,
            cgroup,
        })
    }
}

fn read(path: &Path) -> Result<File, SettingsError> {
    let fault = |why: String| SettingsError::File { path: path.to_owned(), why };
    let path = std::path::absolute(path).map_err(|error| fault(error.to_string()))?;
    let text = trusted::read(&path, MAX_FILE).map_err(|why| match why.remedy() {
        Some(remedy) => fault(format!("must be writable by root only: {why} ({remedy})")),
        None => fault(why.to_string()),
    })?;
    let text = String::from_utf8(text).map_err(|error| fault(error.to_string()))?;
    toml::from_str(&text).map_err(|error| fault(error.to_string()))
}

fn user(name: &str) -> Result<(u32, u32), SettingsError> {
    let found = match name.parse() {
        Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_) => nix::unistd::User::from_name(name),
    };
    match (found.ok().flatten(), name.parse()) {
        (Some(user), _) => Ok((user.uid.as_raw(), user.gid.as_raw())),
        // A number needs no entry in /etc/passwd. Its group has the same number.
        (None, Ok(uid)) => Ok((uid, uid)),
        (None, Err(_)) => Err(SettingsError::NoUser(name.to_owned())),
    }
}

fn check_range(base: u32, count: u32, client: u32) -> Result<(), SettingsError> {
    let fault = |why: String| Err(SettingsError::Value { name: "uid_base, uid_count", why });
    if count < 2 {
        return fault(format!("{count} uids are too few: each sandbox uses two"));
    }
    // u32::MAX is "no id" (chown(2)).
    let Some(end) = base.checked_add(count).filter(|end| *end < u32::MAX) else {
        return fault(format!("{base} + {count} is above the last uid"));
    };
    if base < LOWEST_UID {
        return fault(format!("the range must start at {LOWEST_UID} or above, outside of system and user accounts"));
    }
    if (base..end).contains(&client) {
        return fault(format!("the range contains uid {client} of --client-user: a sandbox would own ashd's files"));
    }
    Ok(())
}

fn check_cgroup(name: &str) -> Result<(), SettingsError> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && !name.starts_with('-');
    if fits {
        return Ok(());
    }
    let why = format!("\"{name}\" must be 1 to 64 characters of A-Z a-z 0-9 _ - (a name, not a path)");
    Err(SettingsError::Value { name: "cgroup", why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (base, count, fits) in [
            (1_900_000_000, 131_072, true),
            (65_536, 2, true),
            (65_535, 2, false),
            (0, 65_536, false),
            (1_900_000_000, 1, false),
            (u32::MAX - 2, 2, false),
            (u32::MAX, 2, false),
            (99_990, 20, false),
        ] {
            assert_eq!(check_range(base, count, 100_000).is_ok(), fits, "{base} + {count}");
        }
    }

    #[test]
    fn cgroup_names_are_no_paths() {
        for (name, fits) in [("ashd", true), ("a-b_1", true), ("", false), ("..", false), ("a/b", false), ("-x", false)]
        {
            assert_eq!(check_cgroup(name).is_ok(), fits, "{name}");
        }
    }

    #[test]
    fn the_ceiling_names_the_field() {
        let ceiling = Ceiling { pids: 100, ..Ceiling::default() };
        assert_eq!(ceiling.exceeded(&Limits::default()), Some(("pids", 512, 100)));
        assert_eq!(Ceiling::default().exceeded(&Limits::default()), None);
    }

    #[test]
    fn the_example_in_the_help_is_a_configuration() {
        let example: String =
            AFTER_HELP.lines().filter(|line| line.starts_with("  ")).map(|l| format!("{l}\n")).collect();
        let file: File = toml::from_str(&example).unwrap();
        assert_eq!(file.ceiling.cpu_millis, 4000);
        assert_eq!(file.floor.landlock_abi, Some(2));
        assert!(toml::from_str::<File>("uid_bsae = 1").unwrap_err().to_string().contains("uid_bsae"));
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("launcher.toml");
        std::fs::write(&path, "cgroup = \"x\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("root"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read(&path).unwrap().cgroup.as_deref(), Some("x"));
    }
}
