//! Becoming the unprivileged user, for good: another image, another environment, no capability left or to be had.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use caps::CapSet;

use super::BootError;
use super::users::Account;

/// Variables the unprivileged stage keeps. Everything else was read into the configuration already, or is none of its business.
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

/// Executes this program again as `user`, with `stdin` as its standard input and `arg` as its argument.
///
/// # Errors
/// The step that failed. Nothing is served then.
pub(super) fn become_and_execute(user: &Account, stdin: OwnedFd, arg: &str) -> Result<Infallible, BootError> {
    // The bounding and inheritable sets bind every program executed later; they go while the capability to do so is
    // there. The others are cleared by the kernel when the last uid of 0 is given up (capabilities(7)).
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Bounding] {
        caps::clear(None, set)
            .map_err(|why| BootError::Refused(format!("capabilities ({set:?} set) cannot be dropped: {why}")))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(BootError::errno("no_new_privs"))?;
    // By descriptor and not by path: the program may lie where only root may look, such as below /root.
    let image = std::fs::File::open("/proc/self/exe").map_err(BootError::io("own program"))?;
    let mut command = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()));
    command.arg0("ashd").arg(arg).stdin(Stdio::from(stdin)).current_dir("/").env_clear();
    command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // `uid` also drops the supplementary groups.
    command.gid(user.gid).uid(user.uid);
    let source = command.exec();
    Err(BootError::Io { what: format!("executing ashd again as user {}", user.name), source })
}
