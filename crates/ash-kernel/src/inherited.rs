//! Inherited descriptors: systemd's sockets, and those that ashd passes to its unprivileged
//! successor.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::FdFlags;

use super::single::SingleThreaded;

static CLAIMED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes an inherited descriptor by its number, once. It is close-on-exec afterwards.
///
/// # Errors
/// `InvalidInput` for stdin, stdout and stderr, for a second claim, and for a descriptor opened by
/// this process (which is close-on-exec). `EBADF` for one that is not open.
pub fn claim(number: RawFd) -> io::Result<OwnedFd> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number}: {why}"));
    if number < 3 {
        return Err(refused("is stdin, stdout or stderr"));
    }
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    if claimed.contains(&number) {
        return Err(refused("already taken"));
    }
    // SAFETY: the number is borrowed for one fcntl, which returns EBADF if nothing is open there.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(borrowed)?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(refused("not inherited"));
    }
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    claimed.insert(number);
    // SAFETY: it is open and has no owner in this process: everything that Rust opens is
    // close-on-exec from the start, and this was not, so it came through exec. CLAIMED returns each
    // number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every inherited descriptor from `first` on that was not [claimed](claim).
///
/// As in [`claim`], inherited descriptors are those that are not close-on-exec.
///
/// # Errors
/// /proc cannot be read, or this process has several threads.
pub fn close_strays(one: &SingleThreaded, first: RawFd) -> io::Result<()> {
    one.check()?;
    let names = std::fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let open: Vec<RawFd> = names.filter(|number| *number >= first.max(3)).collect();
    for number in open {
        // SAFETY: the number is borrowed for one fcntl, which returns EBADF if nothing is open
        // there.
        let flags = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        if flags.is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC)) {
            // SAFETY: it is open, and no code of this process owns it: see above.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    Ok(())
}

/// Keeps a descriptor open over the next exec.
pub fn keep_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
}

/// Reverts [`keep_on_exec`].
pub fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

    #[test]
    fn only_what_was_inherited_and_only_once() {
        let own = std::fs::File::open("/dev/null").unwrap();
        assert!(claim(own.as_raw_fd()).is_err());
        assert!(claim(1).is_err());
        assert!(claim(1_000_000).is_err());
        keep_on_exec(own.as_fd()).unwrap();
        let number = own.into_raw_fd();
        let claimed = claim(number).unwrap();
        assert!(rustix::io::fcntl_getfd(&claimed).unwrap().contains(FdFlags::CLOEXEC));
        assert!(claim(number).is_err());
    }
}
