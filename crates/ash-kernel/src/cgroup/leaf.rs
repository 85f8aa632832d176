//! One sandbox's cgroups, from mkdir to rmdir.
//!
//! ```text
//!   create -> (limits) -> processes -> kill -> populated 0 -> remove
//!                          freeze/thaw through the descriptors of freeze_file and events_file (see kernel::freeze)
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};

use super::{CgroupError, CgroupPaths};
use crate::freeze;

/// How long [`Leaf::remove`] waits for the last process. A killed group is empty after milliseconds.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);
/// Groups below a leaf are nobody's: the payload has no cgroup file system. This many levels are cleared anyway.
const DEPTH: u32 = 8;

/// A sandbox's place in every hierarchy. Dropping it leaves the groups; [`Leaf::remove`] is the undo of creating it.
#[derive(Debug)]
pub struct Leaf {
    paths: CgroupPaths,
    unified: OwnedFd,
}

impl Leaf {
    /// Makes the directories. A group left over from an earlier sandbox is never used again, but made anew.
    pub(super) fn create(paths: CgroupPaths) -> Result<Self, CgroupError> {
        let directories = paths.directories();
        for (made, dir) in directories.iter().enumerate() {
            let again = |error: io::Error| match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    // Refused while processes are in it, and then the whole creation is.
                    std::fs::remove_dir(dir).map_err(|_| error).and_then(|()| super::make_dir(dir))
                }
                _ => Err(error),
            };
            if let Err(error) = super::make_dir(dir).or_else(again) {
                for dir in &directories[..made] {
                    std::fs::remove_dir(dir).ok();
                }
                return Err(CgroupError::io("create", dir, error));
            }
        }
        let unified = open_dir(&paths.unified);
        match unified {
            Ok(unified) => Ok(Self { paths, unified }),
            Err(error) => {
                for dir in paths.directories() {
                    std::fs::remove_dir(dir).ok();
                }
                Err(error)
            }
        }
    }

    /// The groups of a sandbox made earlier. A missing v2 directory is made again (a removal was interrupted, and what
    /// is left must be removable).
    pub(super) fn open(paths: CgroupPaths) -> Result<Self, CgroupError> {
        for dir in paths.unified.parent().into_iter().chain([paths.unified.as_path()]) {
            super::ensure_dir(dir)?;
        }
        let unified = open_dir(&paths.unified)?;
        Ok(Self { paths, unified })
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    pub fn unified_fd(&self) -> BorrowedFd<'_> {
        self.unified.as_fd()
    }

    pub fn paths(&self) -> &CgroupPaths {
        &self.paths
    }

    /// Puts a process into the v1 groups; on a pure v2 host there is nothing to do, since it was cloned into its group.
    ///
    /// Costs one RCU grace period, about 10 ms, on a quiet machine: the controllers share it when written in a row.
    ///
    /// # Errors
    /// `ESRCH` when the process is gone, and whatever else the kernel answers.
    pub fn attach(&self, pid: i32) -> io::Result<()> {
        for dir in self.paths.directories() {
            if dir != self.paths.unified {
                std::fs::write(dir.join("cgroup.procs"), pid.to_string())?;
            }
        }
        Ok(())
    }

    /// Puts a process into the v2 group, for kernels that cannot clone into it.
    ///
    /// # Errors
    /// As [`Leaf::attach`].
    pub fn attach_unified(&self, pid: i32) -> io::Result<()> {
        let procs = self.open_file(c"cgroup.procs", OFlags::WRONLY)?;
        rustix::io::write(&procs, pid.to_string().as_bytes())?;
        Ok(())
    }

    /// Writes new limits (see [`super::limits::apply`]).
    ///
    /// # Errors
    /// The file that refused its value.
    pub fn set_limits(&self, limits: &ash_model::Limits) -> Result<Vec<String>, CgroupError> {
        super::limits::apply(&self.paths, limits)
    }

    /// `cgroup.freeze`, opened for writing.
    ///
    /// # Errors
    /// What openat(2) answers.
    pub fn freeze_file(&self) -> io::Result<OwnedFd> {
        self.open_file(c"cgroup.freeze", OFlags::WRONLY)
    }

    /// `cgroup.events`, opened for reading.
    ///
    /// # Errors
    /// What openat(2) answers.
    pub fn events_file(&self) -> io::Result<OwnedFd> {
        self.open_file(c"cgroup.events", OFlags::RDONLY)
    }

    /// `memory.reclaim`, opened for writing.
    ///
    /// # Errors
    /// `NotFound` where the memory controller is not on cgroup v2, or before Linux 5.19.
    pub fn reclaim_file(&self) -> io::Result<OwnedFd> {
        self.open_file(c"memory.reclaim", OFlags::WRONLY)
    }

    /// The processes in it at this moment.
    ///
    /// # Errors
    /// What reading `cgroup.procs` answers.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut text = String::new();
        io::Read::read_to_string(
            &mut std::fs::File::from(self.open_file(c"cgroup.procs", OFlags::RDONLY)?),
            &mut text,
        )?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Sends SIGKILL to every process in it, frozen ones too, and to those being forked, and takes its bounds of processor and disk
    /// away: one that waits for its turn there cannot die before, and on cgroup v2 the files it wrote last would keep to these bounds
    /// after the group is gone, whoever writes them then (seen on 6.12).
    ///
    /// # Errors
    /// `NotFound` on kernels before 5.14, which have no `cgroup.kill`.
    pub fn kill(&self) -> io::Result<()> {
        let file = self.open_file(c"cgroup.kill", OFlags::WRONLY)?;
        rustix::io::write(&file, b"1")?;
        // One that cannot be taken away delays this end, and is no reason against it.
        super::limits::lift(&self.paths).ok();
        Ok(())
    }

    /// Whether a living process is in it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn populated(&self) -> io::Result<bool> {
        let events = self.events_file()?;
        Ok(freeze::read_events(events.as_fd())?.populated)
    }

    /// One attempt to remove every directory; those that are gone are no error.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] while a process is left.
    pub fn try_remove(&self) -> Result<(), CgroupError> {
        for dir in self.paths.directories() {
            remove_below(dir, DEPTH).map_err(|source| CgroupError::Busy { path: dir.to_owned(), source })?;
        }
        Ok(())
    }

    /// Kills what is in it, waits until it is empty (at most 5 s) and removes it.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] when a process outlives that.
    pub fn remove(self) -> Result<(), CgroupError> {
        if self.populated().unwrap_or(true)
            && let Err(error) = self.kill()
        {
            return Err(CgroupError::io("kill", &self.paths.unified, error));
        }
        let deadline = Instant::now() + REMOVE_WITHIN;
        loop {
            match self.try_remove() {
                Err(CgroupError::Busy { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                done => return done,
            }
        }
    }

    fn open_file(&self, name: &std::ffi::CStr, access: OFlags) -> io::Result<OwnedFd> {
        Ok(openat(&self.unified, name, access | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, CgroupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| CgroupError::io("open", path, error.into()))
}

fn remove_below(dir: &Path, depth: u32) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if depth > 0 && error.kind() == io::ErrorKind::ResourceBusy => {
            let mut deeper = false;
            for entry in std::fs::read_dir(dir)?.flatten() {
                if entry.file_type()?.is_dir() {
                    deeper = true;
                    remove_below(&entry.path(), depth - 1)?;
                }
            }
            if deeper { std::fs::remove_dir(dir) } else { Err(error) }
        }
        done => done,
    }
}
