//! Communication with systemd: notifications and passed sockets. Without systemd every call does
//! nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// A socket that systemd opened before it started this process (`sd_listen_fds(3)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenFd {
    pub number: i32,
    /// `FileDescriptorName=` of the socket unit.
    pub name: String,
}

/// `READY=1`: requests are answered from now on.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The line that `systemctl status` shows.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// `MAINPID=`: declares another process of the unit as its main process.
pub fn main_pid(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// `RELOADING=1` with the start time, which `Type=notify-reload` of systemd 253 requires. [`ready`]
/// ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "systemd was not notified of the reload"),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The interval for calls of [`alive`]: half of `WatchdogSec=`. `None`: no watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// `WATCHDOG=1`.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    // A lost notification (systemd is being re-executed) is followed by the next one.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not notified");
    }
}

/// The sockets for this process, in systemd's order. Empty without systemd, or if they are meant
/// for another process.
pub fn listen_fds() -> Vec<ListenFd> {
    let variable = |name| std::env::var(name).ok();
    parse(variable("LISTEN_PID"), variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"), std::process::id())
}

/// Descriptors are numbered from 3 (`SD_LISTEN_FDS_START`).
fn parse(pid: Option<String>, count: Option<String>, names: Option<String>, me: u32) -> Vec<ListenFd> {
    let mine = pid.and_then(|pid| pid.parse::<u32>().ok()) == Some(me);
    let count = count.and_then(|count| count.parse::<u8>().ok()).filter(|_| mine).unwrap_or(0);
    let names = names.unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat("unknown"));
    (3..).zip(names).take(count.into()).map(|(number, name)| ListenFd { number, name: name.to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn sockets_are_taken_only_when_they_are_ours() {
        let parse = |pid: &str, count: &str, names: Option<&str>| {
            super::parse(Some(pid.into()), Some(count.into()), names.map(Into::into), 7)
                .into_iter()
                .map(|fd| (fd.number, fd.name))
                .collect::<Vec<_>>()
        };
        let api = |number| (number, "api".to_owned());
        assert_eq!(parse("7", "2", Some("api:api")), [api(3), api(4)]);
        assert_eq!(parse("7", "2", Some("api")), [api(3), (4, "unknown".to_owned())]);
        assert_eq!(parse("8", "2", Some("api:api")), []);
        assert_eq!(parse("7", "x", None), []);
        assert_eq!(super::parse(None, Some("2".into()), None, 7), []);
    }
}
