//! The cgroups of one sandbox, from creation to removal.
//!
//! ```text
//!   create -> (limits) -> processes -> kill -> populated 0 -> remove
//!                          freeze/thaw by freeze_file and events_file (see kernel::freeze)
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};

use super::{CgroupError, CgroupPaths};
use crate::freeze;

/// How long [`Leaf::remove`] waits for the last process. A killed group is usually empty after
/// milliseconds.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);
/// Levels of groups below a leaf that are cleared. Normally there are none, because the payload has
/// no cgroup file system.
const DEPTH: u32 = 8;

/// The groups of a sandbox in every hierarchy. Dropping it keeps the groups; [`Leaf::remove`]
/// removes them.
#[derive(Debug)]
pub struct Leaf {
    paths: CgroupPaths,
    unified: OwnedFd,
}

impl Leaf {
    /// Creates the directories. A group left over from an earlier sandbox is recreated, never
    /// reused.
    pub(super) fn create(paths: CgroupPaths) -> Result<Self, CgroupError> {
        let directories = paths.directories();
        for (made, dir) in directories.iter().enumerate() {
            let again = |error: io::Error| match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    // Fails while processes are in the group; then the whole creation fails.
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

    /// The groups of an existing sandbox. A missing v2 directory is created again, so that the rest
    /// of an interrupted removal can be removed.
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

    /// Moves a process into the v1 groups. On a pure v2 host this does nothing, because the process
    /// was cloned into its group.
    ///
    /// Costs one RCU grace period, about 10 ms on a quiet machine. Writes in a row share it.
    ///
    /// # Errors
    /// `ESRCH` if the process has ended, and other answers of the kernel.
    pub fn attach(&self, pid: i32) -> io::Result<()> {
        for dir in self.paths.directories() {
            if dir != self.paths.unified {
                std::fs::write(dir.join("cgroup.procs"), pid.to_string())?;
            }
        }
        Ok(())
    }

    /// Moves a process into the v2 group, for kernels that cannot clone into it.
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
    /// Names the file that refused its value.
    pub fn set_limits(&self, limits: &ash_model::Limits) -> Result<Vec<String>, CgroupError> {
        super::limits::apply(&self.paths, limits)
    }

    /// `cgroup.freeze`, opened for writing.
    ///
    /// # Errors
    /// As for openat(2).
    pub fn freeze_file(&self) -> io::Result<OwnedFd> {
        self.open_file(c"cgroup.freeze", OFlags::WRONLY)
    }

    /// `cgroup.events`, opened for reading.
    ///
    /// # Errors
    /// As for openat(2).
    pub fn events_file(&self) -> io::Result<OwnedFd> {
        self.open_file(c"cgroup.events", OFlags::RDONLY)
    }

    /// `memory.reclaim`, opened for writing.
    ///
    /// # Errors
    /// `NotFound` if the memory controller is not on cgroup v2, or before Linux 5.19.
    pub fn reclaim_file(&self) -> io::Result<OwnedFd> {
        self.open_file(c"memory.reclaim", OFlags::WRONLY)
    }

    /// The current processes of the group.
    ///
    /// # Errors
    /// As for reading `cgroup.procs`.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut text = String::new();
        io::Read::read_to_string(
            &mut std::fs::File::from(self.open_file(c"cgroup.procs", OFlags::RDONLY)?),
            &mut text,
        )?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Sends SIGKILL to every process of the group, including frozen and newly forked ones, and
    /// removes the CPU and I/O limits. A throttled process could not exit before. On cgroup v2, the
    /// last written files would also keep the I/O limits after the group is gone, for every later
    /// writer (seen on 6.12).
    ///
    /// # Errors
    /// `NotFound` before Linux 5.14, which has no `cgroup.kill`.
    pub fn kill(&self) -> io::Result<()> {
        let file = self.open_file(c"cgroup.kill", OFlags::WRONLY)?;
        rustix::io::write(&file, b"1")?;
        // A limit that cannot be removed only delays the end.
        super::limits::lift(&self.paths).ok();
        Ok(())
    }

    /// Whether a living process is in the group.
    ///
    /// # Errors
    /// As for reading `cgroup.events`.
    pub fn populated(&self) -> io::Result<bool> {
        let events = self.events_file()?;
        Ok(freeze::read_events(events.as_fd())?.populated)
    }

    /// Tries once to remove every directory. A missing directory is no error.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] while a process remains.
    pub fn try_remove(&self) -> Result<(), CgroupError> {
        for dir in self.paths.directories() {
            remove_below(dir, DEPTH).map_err(|source| CgroupError::Busy { path: dir.to_owned(), source })?;
        }
        Ok(())
    }

    /// Kills the processes, waits until the group is empty (at most 5 s) and removes it.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if a process is still there.
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
