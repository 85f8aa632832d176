//! Landlock (landlock(7)): access rights of a payload for paths, in addition to mounts and modes.
//!
//! The ruleset requests every right of the kernel's ABI, without a best-effort mode. The caller
//! decides whether the ABI is sufficient.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, RestrictSelfAttr, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};

/// The newest ABI tested with this code. Rights of later ones are not requested.
const TRIED: i32 = 7;

/// Access rights for a path and everything below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    List,
    /// Read files, list directories.
    Read,
    /// Read, list and execute.
    ReadExecute,
    /// Device files: read, write, ioctl.
    Device,
    /// Create and remove sockets. Nothing can be read or written.
    Sockets,
    /// Everything except creating device files.
    Full,
}

/// A ruleset that can be enforced any number of times, for one child after the other.
#[derive(Debug)]
pub struct Rules {
    ruleset: RulesetCreated,
    abi: u32,
}

/// The ABI version of the running kernel.
///
/// # Errors
/// `ENOSYS` if the kernel is built without landlock, `EOPNOTSUPP` if it is disabled at boot.
pub fn abi() -> io::Result<u32> {
    const VERSION: u32 = 1; // LANDLOCK_CREATE_RULESET_VERSION
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: the version query takes a null pointer and size 0 and creates nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(version as u32) }
}

impl Rules {
    /// Opens every path, which must exist, and creates the ruleset. From ABI 6 on it includes
    /// scopes: abstract unix sockets and signals stay within the domain. TCP is not restricted,
    /// because the network namespace is empty.
    pub fn new(paths: &[(&str, Right)]) -> io::Result<Self> {
        let version = i32::try_from(abi()?).map_err(io::Error::other)?.min(TRIED);
        let abi = ABI::from(version);
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .map_err(io::Error::other)?;
        if version >= 6 {
            ruleset = ruleset.scope(Scope::from_all(abi)).map_err(io::Error::other)?;
        }
        let mut created = ruleset.create().map_err(io::Error::other)?;
        for (path, right) in paths {
            let fd = rustix::fs::open(*path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("{path}: {error}")))?;
            let rule = PathBeneath::new(&fd, rights(*right, abi, is_dir(fd.as_fd())?));
            created = created.add_rule(rule).map_err(|error| io::Error::other(format!("{path}: {error}")))?;
        }
        Ok(Self { ruleset: created, abi: version as u32 })
    }

    /// The domain of a daemon: these paths, if they exist, and outgoing TCP to these ports. From
    /// ABI 4 on, other TCP connections and all binds are refused. Scopes as in [`Rules::new`].
    ///
    /// # Errors
    /// The path or port that the kernel refuses.
    pub fn of_daemon(paths: &[(std::path::PathBuf, Right)], connect: &[u16]) -> io::Result<Self> {
        let version = i32::try_from(abi()?).map_err(io::Error::other)?.min(TRIED);
        let abi = ABI::from(version);
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .map_err(io::Error::other)?;
        if version >= 4 {
            ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(io::Error::other)?;
        }
        if version >= 6 {
            ruleset = ruleset.scope(Scope::from_all(abi)).map_err(io::Error::other)?;
        }
        let mut created = ruleset.create().map_err(io::Error::other)?;
        for (path, right) in paths {
            let named = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
            let fd = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => fd,
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => continue,
                Err(error) => return Err(named(&error)),
            };
            let rule = PathBeneath::new(&fd, rights(*right, abi, is_dir(fd.as_fd())?));
            created = created.add_rule(rule).map_err(|error| named(&error))?;
        }
        for port in connect.iter().filter(|_| version >= 4) {
            created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp)).map_err(io::Error::other)?;
        }
        Ok(Self { ruleset: created, abi: version as u32 })
    }

    pub fn abi(&self) -> u32 {
        self.abi
    }

    /// Enforces the rules for this process and all its children. Needs `no_new_privs`.
    ///
    /// # Errors
    /// Also if the kernel did not enforce all of it.
    pub fn enforce(&self) -> io::Result<()> {
        let mut ruleset = self.ruleset.try_clone()?;
        if self.abi >= 7 {
            // A payload may confine itself further with logging enabled. Each denial would then
            // create a record in the host's audit log.
            ruleset = ruleset.log_same_exec(false).map_err(io::Error::other)?;
            ruleset = ruleset.log_subdomains(false).map_err(io::Error::other)?;
        }
        let status = ruleset.restrict_self().map_err(io::Error::other)?;
        match status.ruleset {
            RulesetStatus::FullyEnforced => Ok(()),
            other => Err(io::Error::other(format!("landlock is {other:?}"))),
        }
    }
}

fn rights(right: Right, abi: ABI, dir: bool) -> landlock::BitFlags<AccessFs> {
    let all = AccessFs::from_all(abi);
    let rights = match right {
        Right::List => AccessFs::ReadDir.into(),
        Right::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Right::ReadExecute => AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute,
        Right::Device => {
            AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev
        }
        Right::Sockets => AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile,
        Right::Full => all & !(AccessFs::MakeChar | AccessFs::MakeBlock),
    };
    // A rule may contain only rights that the ruleset handles, and for a file only rights of files.
    rights & all & if dir { all } else { AccessFs::from_file(abi) }
}

fn is_dir(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}
