//! User ids: the map of a sandbox's user namespace, and a namespace that exists only to map a mount.
//!
//! ```text
//!   on disk            idmapped mount        host           user namespace        inside
//!   ashd's uid  ---->  disk uid -> uid  ---> uid     <----  1000 -> uid    <----  1000 (payload)
//!                                            init's  <----   999 -> init's <----   999 (init)
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::clone::{Side, clone_into, exit_now};
use super::pidfd;

/// One line of uid_map and gid_map: one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub inside: u32,
    pub outside: u32,
}

/// Writes both maps of a process in a new user namespace, and takes setgroups(2) from it (user_namespaces(7)).
///
/// # Errors
/// `EPERM` without `CAP_SETUID`/`CAP_SETGID` over the ids; `ESRCH` when the process is gone.
pub fn write_maps(pid: i32, uids: &[Entry], gids: &[Entry]) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    std::fs::write(format!("/proc/{pid}/gid_map"), lines(gids))?;
    std::fs::write(format!("/proc/{pid}/uid_map"), lines(uids))
}

fn lines(entries: &[Entry]) -> String {
    entries.iter().map(|e| format!("{} {} 1\n", e.inside, e.outside)).collect()
}

/// A user namespace with no living process in it, for `MOUNT_ATTR_IDMAP`. It goes with this and the mounts that use it.
#[derive(Debug)]
pub struct Mapping {
    namespace: OwnedFd,
    /// The process it was born with. Killed already; its end takes a part of a millisecond, for which nobody waits but
    /// [`Mapping::settle`].
    maker: RefCell<Option<OwnedFd>>,
}

impl Mapping {
    /// Waits for the end of its maker, where nobody has yet.
    pub fn settle(&self) {
        if let Some(maker) = self.maker.take() {
            pidfd::kill_and_reap(maker.as_fd());
        }
    }
}

impl AsFd for Mapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Mappings that were made, to be used again: a sandbox gets the lowest uids that are free, so most come back at once, and one costs a
/// process (0.35 ms of a start). They hold nothing but two numbers each, and go with this.
#[derive(Debug, Default)]
pub struct Mappings(HashMap<(Entry, Entry), Rc<Mapping>>);

impl Mappings {
    /// At most so many are kept, one descriptor each; one more, and all are made anew.
    const KEPT: usize = 256;

    /// # Errors
    /// As [`mapping_namespace`].
    pub fn get(&mut self, uid: Entry, gid: Entry) -> io::Result<Rc<Mapping>> {
        if let Some(made) = self.0.get(&(uid, gid)) {
            return Ok(Rc::clone(made));
        }
        if self.0.len() >= Self::KEPT {
            self.0.clear();
        }
        let made = Rc::new(mapping_namespace(uid, gid)?);
        self.0.insert((uid, gid), Rc::clone(&made));
        Ok(made)
    }
}

/// A [`Mapping`] with these maps.
///
/// # Errors
/// Those of [`write_maps`], and of clone3(2).
pub fn mapping_namespace(uid: Entry, gid: Entry) -> io::Result<Mapping> {
    let child = match clone_into(libc::CLONE_NEWUSER as u64, None)? {
        Side::Child => {
            // Lives until the parent has opened its namespace and kills it; dies with the parent in any case.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
            if rustix::process::getppid().is_none() {
                exit_now(1);
            }
            loop {
                rustix::event::pause();
            }
        }
        Side::Parent(child) => child,
    };
    let made = write_maps(child.pid, &[uid], &[gid]).and_then(|()| File::open(format!("/proc/{}/ns/user", child.pid)));
    match made {
        Ok(namespace) => {
            pidfd::kill(child.pidfd.as_fd());
            Ok(Mapping { namespace: namespace.into(), maker: RefCell::new(Some(child.pidfd)) })
        }
        Err(error) => {
            pidfd::kill_and_reap(child.pidfd.as_fd());
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_an_entry() {
        let map = [Entry { inside: 1000, outside: 200_000 }, Entry { inside: 999, outside: 200_001 }];
        assert_eq!(lines(&map), "1000 200000 1\n999 200001 1\n");
    }
}
