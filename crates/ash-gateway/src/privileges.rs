//! Drops privileges before the gateway reads its first byte from a sandbox.
//!
//! ```text
//!  root --(bounding set, groups, gid, uid)--> the given user --+
//!  any other user ---------------------------------------------+--> no capability, no_new_privs,
//!                                                                   not dumpable, no cores
//! ```
//!
//! User and capabilities belong to a thread, so [`drop_all`] requires proof of a single thread.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use caps::CapSet;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, User, setgroups, setresgid, setresuid};

use ash_kernel::single::SingleThreaded;

/// A failed step; the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error("started as root without --user; the gateway holds the model key and must not be root")]
    StaysRoot,
    #[error("user {0} is root; the gateway must not be")]
    UserIsRoot(String),
    #[error("user {0} does not exist; create it (the package does) or choose another one with --user")]
    NoSuchUser(String),
    #[error("--user {0}: only root can become another user")]
    NotRoot(String),
    #[error("state directory {path}: {source}")]
    StateDirectory { path: PathBuf, source: std::io::Error },
    #[error("{step}: {source}")]
    Step { step: &'static str, source: std::io::Error },
    #[error("capabilities remain after the drop: {0}")]
    CapabilitiesLeft(String),
}

/// A user and its primary group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: Uid,
    pub gid: Gid,
}

/// Looks a user up by name or number. A number needs no entry in the user database: without the
/// package, ashd uses unassigned numbers, and the group has the same number.
///
/// # Errors
/// [`PrivilegeError::NoSuchUser`].
pub fn lookup(name: &str) -> Result<Account, PrivilegeError> {
    let number = name.parse().ok().map(Uid::from_raw);
    let entry = User::from_name(name).ok().flatten().or_else(|| User::from_uid(number?).ok().flatten());
    match (entry, number) {
        (Some(user), _) => Ok(Account { name: user.name, uid: user.uid, gid: user.gid }),
        (None, Some(uid)) => Ok(Account { name: name.to_owned(), uid, gid: Gid::from_raw(uid.as_raw()) }),
        (None, None) => Err(PrivilegeError::NoSuchUser(name.to_owned())),
    }
}

/// Becomes `user` (required when started as root) and drops all other privileges.
///
/// # Errors
/// The first step that failed. The process may have lost part of its privileges and should exit.
pub fn drop_all(one: &SingleThreaded, user: Option<&str>) -> Result<(), PrivilegeError> {
    one.check().map_err(|why| step("one thread", why))?;
    let user = user.map(lookup).transpose()?;
    if let Some(user) = user.as_ref().filter(|user| user.uid.is_root()) {
        return Err(PrivilegeError::UserIsRoot(user.name.clone()));
    }
    let current = Uid::effective();
    match user {
        None if current.is_root() => return Err(PrivilegeError::StaysRoot),
        Some(user) if current.is_root() => become_user(&user)?,
        Some(user) if user.uid != current => return Err(PrivilegeError::NotRoot(user.name)),
        _ => {}
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        // Under systemd there are none, and its filter refuses capset(2).
        if caps::read(None, set).is_ok_and(|held| held.is_empty()) {
            continue;
        }
        caps::clear(None, set).map_err(|why| step("drop capabilities", std::io::Error::other(why)))?;
    }
    let left =
        caps::read(None, CapSet::Permitted).map_err(|why| step("read capabilities", std::io::Error::other(why)))?;
    if !left.is_empty() || Uid::effective().is_root() || Uid::current().is_root() {
        return Err(PrivilegeError::CapabilitiesLeft(format!("{left:?}")));
    }
    prctl::set_no_new_privs().map_err(|why| step("no_new_privs", why.into()))?;
    // After the change of user, which resets it. Protects /proc/<pid>/{mem,environ} and against
    // ptrace by other processes of the same user.
    prctl::set_dumpable(false).map_err(|why| step("not dumpable", why.into()))?;
    // One descriptor per connection: the soft limit is often 1024; the hard limit is the admin's.
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    limit(Resource::RLIMIT_CORE, 0, "no core files")?;
    limit(Resource::RLIMIT_NOFILE, hard, "descriptor limit")?;
    Ok(())
}

/// Creates the state directory for `user` while this process is root; keeps one that the user owns.
/// Other users create it themselves.
///
/// # Errors
/// It cannot be created, or belongs to another user.
pub fn own_directory(path: &Path, user: Option<&str>) -> Result<(), PrivilegeError> {
    let failed = |source| PrivilegeError::StateDirectory { path: path.to_owned(), source };
    let user = user.map(lookup).transpose()?;
    let of_root = user.as_ref().is_none_or(|user| user.uid.is_root());
    if Uid::effective().is_root() && of_root {
        // `drop_all` refuses it; create nothing before.
        return Ok(());
    }
    let made = match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => true,
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(why) => return Err(failed(why)),
    };
    // Opens the link itself: root must not give away what another user planted here.
    let directory = File::options()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY).bits())
        .open(path)
        .map_err(failed)?;
    let found = directory.metadata().map_err(failed)?;
    let wanted =
        user.map_or_else(|| (Uid::effective().as_raw(), None), |user| (user.uid.as_raw(), Some(user.gid.as_raw())));
    if made && found.uid() != wanted.0 {
        std::os::unix::fs::fchown(&directory, Some(wanted.0), wanted.1).map_err(failed)?;
    } else if found.uid() != wanted.0 {
        let why = format!(
            "belongs to uid {}, not to the gateway's user {}; to fix it: `chown -R {} {}`",
            found.uid(),
            wanted.0,
            wanted.0,
            path.display()
        );
        return Err(failed(std::io::Error::other(why)));
    }
    Ok(())
}

fn become_user(user: &Account) -> Result<(), PrivilegeError> {
    // While still root: nothing executed later can gain a capability either.
    caps::clear(None, CapSet::Bounding).map_err(|why| step("drop bounding set", std::io::Error::other(why)))?;
    setgroups(&[]).map_err(|why| step("drop groups", why.into()))?;
    setresgid(user.gid, user.gid, user.gid).map_err(|why| step("change group", why.into()))?;
    setresuid(user.uid, user.uid, user.uid).map_err(|why| step("change user", why.into()))
}

/// Under systemd the limits are already set, and its filter refuses to set them.
fn limit(resource: Resource, value: u64, name: &'static str) -> Result<(), PrivilegeError> {
    if getrlimit(resource).is_ok_and(|now| now == (value, value)) {
        return Ok(());
    }
    setrlimit(resource, value, value).map_err(|why| step(name, why.into()))
}

fn step(step: &'static str, source: std::io::Error) -> PrivilegeError {
    PrivilegeError::Step { step, source }
}
