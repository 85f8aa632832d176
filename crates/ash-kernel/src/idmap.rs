//! User ids: the map of a sandbox's user namespace, and namespaces that only map the ids of a
//! mount.
//!
//! ```text
//!   on disk            idmapped mount        host           user namespace        inside
//!   ashd's uid  ---->  disk uid -> uid  ---> uid     <----  1000 -> uid    <----  1000 (payload)
//!                                            init's  <----   999 -> init's <----   999 (init)
//! ```

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::CapabilitySet;

use super::caps;
use super::clone::{Side, clone_into, exit_now};
use super::pidfd;
use super::single::SingleThreaded;

/// One line of uid_map and gid_map, for one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub inside: u32,
    pub outside: u32,
}

/// Writes both maps of a process in a new user namespace, and denies setgroups(2) in it
/// (user_namespaces(7)).
///
/// # Errors
/// `EPERM` without `CAP_SETUID`/`CAP_SETGID` over the ids; `ESRCH` if the process has ended.
pub fn write_maps(pid: i32, uids: &[Entry], gids: &[Entry]) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    std::fs::write(format!("/proc/{pid}/gid_map"), lines(gids))?;
    std::fs::write(format!("/proc/{pid}/uid_map"), lines(uids))
}

fn lines(entries: &[Entry]) -> String {
    entries.iter().map(|e| format!("{} {} 1\n", e.inside, e.outside)).collect()
}

/// A user namespace without a living process, for `MOUNT_ATTR_IDMAP`. It ends with this value and
/// the mounts that use it.
#[derive(Debug)]
pub struct Mapping {
    namespace: OwnedFd,
    /// Its first process, already killed. The end takes less than a millisecond, and only
    /// [`Mapping::settle`] waits for it.
    maker: RefCell<Option<OwnedFd>>,
}

impl Mapping {
    /// Waits until its first process has ended.
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

/// A mapping created in advance. It costs one process, 0.35 ms of a start, and uids are not reused
/// soon.
#[derive(Debug, Default)]
pub struct Mappings(Option<((Entry, Entry), Mapping)>);

impl Mappings {
    /// The prepared mapping, or a new one.
    ///
    /// # Errors
    /// As for [`mapping_namespace`].
    pub fn get(&mut self, one: &SingleThreaded, uid: Entry, gid: Entry) -> io::Result<Mapping> {
        match self.0.take() {
            Some((entries, mapping)) if entries == (uid, gid) => Ok(mapping),
            _ => mapping_namespace(one, uid, gid),
        }
    }

    /// Creates the next mapping, and waits until its process has ended.
    ///
    /// # Errors
    /// As for [`mapping_namespace`].
    pub fn prepare(&mut self, one: &SingleThreaded, uid: Entry, gid: Entry) -> io::Result<()> {
        let mapping = mapping_namespace(one, uid, gid)?;
        mapping.settle();
        self.0 = Some(((uid, gid), mapping));
        Ok(())
    }
}

/// Creates a [`Mapping`] with these maps.
///
/// # Errors
/// As for [`write_maps`] and clone3(2).
pub fn mapping_namespace(one: &SingleThreaded, uid: Entry, gid: Entry) -> io::Result<Mapping> {
    let child = match clone_into(one, libc::CLONE_NEWUSER as u64, None)? {
        Side::Child(_forked) => {
            // Lives until the parent has opened its namespace and kills it. Dies with the parent in
            // any case.
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
    // The child is not dumpable, like its parent, and its namespaces require CAP_SYS_PTRACE.
    let made = write_maps(child.pid, &[uid], &[gid])
        .and_then(|()| caps::with(CapabilitySet::SYS_PTRACE, || File::open(format!("/proc/{}/ns/user", child.pid)))?);
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
