//! Becomes the unprivileged user permanently: new image, new environment, no capabilities.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use caps::CapSet;

use super::BootError;
use super::users::Account;

/// Environment variables that the unprivileged stage gets. Others were read into the configuration
/// or are not needed.
const KEPT: [&str; 12] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TERM",
    "RUST_BACKTRACE",
    "ASH_LOG",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "JOURNAL_STREAM",
    "CREDENTIALS_DIRECTORY",
];

/// Executes this program again as `user`, with `stdin` as standard input and `arg` as argument.
///
/// # Errors
/// The failed step. Nothing is served then.
pub(super) fn become_and_execute(user: &Account, stdin: OwnedFd, arg: &str) -> Result<Infallible, BootError> {
    // The bounding and inheritable sets limit every program executed later; drop them while the
    // capability to do so exists. The kernel clears the others with the last uid of 0
    // (capabilities(7)).
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Bounding] {
        caps::clear(None, set)
            .map_err(|why| BootError::Refused(format!("cannot drop capabilities ({set:?} set): {why}")))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(BootError::errno("no_new_privs"))?;
    // By descriptor: the program may be in a directory that only root can enter, such as below
    // /root.
    let image = std::fs::File::open("/proc/self/exe").map_err(BootError::io("own program"))?;
    let mut command = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()));
    command.arg0("ashd").arg(arg).stdin(Stdio::from(stdin)).current_dir("/").env_clear();
    command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // `uid` also drops the supplementary groups.
    command.gid(user.gid).uid(user.uid);
    let source = command.exec();
    Err(BootError::Io { what: format!("executing ashd again as user {}", user.name), source })
}
