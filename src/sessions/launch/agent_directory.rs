//! Resolves, checks and opens the directory of an agent at each use.
//!
//! ```text
//!   path of the agent --canonicalize--> real path --below a root?--> openat2 beneath it, no links
//!                                                                      |
//!      walk `..` from the descriptor to `/`, compare (device, inode) with ashd's own directories
//! ```
//!
//! The check covers the opened directory: one that becomes a link after its deployment, or between
//! check and use, is checked as it is now. Files are then read relative to the descriptor
//! ([`ash_kernel::copy`], the files API).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, stat};
use rustix::io::Errno;

use crate::config::Config;
use crate::sessions::SessionError;
use crate::sessions::context::Shared;
use crate::sessions::workspace::layout::agents_of;
use crate::store::Agent;

/// Attempts to open a directory that changes meanwhile.
const TRIES: usize = 16;
/// Maximum directory depth.
const MAX_DEPTH: usize = 4096;
/// No link of any kind, and nothing above the root.
const STRICT: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// The packaged configuration directory.
const ETC: &str = "/etc/ashd";

/// Why a directory is refused. The text completes "The directory of agent ... is refused:" and the
/// answer to a deployment.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It does not exist, is no directory, or ashd's user may not read it.
    #[error("{0}")]
    Unusable(io::Error),
    #[error("path must lie under one of the agent roots (`[agents] roots` in ashd.toml)")]
    Outside,
    #[error("path must not be, contain or lie in the {0} of ashd")]
    Own(&'static str),
    #[error(
        "without `[agents] roots`, only a key with the admin role may use a directory of the server; upload the agent with \
         files, or ask the admin to set `[agents] roots` in ashd.toml or to deploy it"
    )]
    NeedsAdmin,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Unusable(errno.into())
    }
}

/// An agent's directory, open for reading.
#[derive(Debug)]
pub struct AgentDirectory {
    fd: OwnedFd,
    uploaded: bool,
}

impl AgentDirectory {
    /// Checks the agent's directory against the current configuration and file system. Blocks: call
    /// it on a blocking thread.
    ///
    /// # Errors
    /// [`SessionError::AgentDirectoryGone`] or [`SessionError::AgentDirectoryRefused`], both 422.
    pub fn of(config: &Config, agent: &Agent) -> Result<Self, SessionError> {
        let opened = match uploaded(config, agent) {
            Some(below) => open_beneath(&config.data_dir, &below).map(|fd| Self { fd, uploaded: true }),
            None => Self::named(config, Path::new(&agent.path), agent.path_by_admin),
        };
        opened.map_err(|refusal| {
            tracing::warn!(ASH_AGENT = agent.name, path = agent.path, "agent directory refused: {refusal}");
            let agent = agent.name.clone();
            match refusal {
                Refusal::Unusable(cause) => SessionError::AgentDirectoryGone { agent, what: what_happened(&cause) },
                refusal => SessionError::AgentDirectoryRefused { agent, why: refusal.to_string() },
            }
        })
    }

    /// A directory of the server by an absolute path. `by_admin`: a key with the admin role named
    /// it.
    ///
    /// # Errors
    /// Why it may not or cannot be used.
    pub fn named(config: &Config, path: &Path, by_admin: bool) -> Result<Self, Refusal> {
        let roots = &config.agents.roots;
        if roots.is_empty() && !by_admin {
            return Err(Refusal::NeedsAdmin);
        }
        let fd = resolve(roots, path)?;
        judge(&fd, &own_directories(config))?;
        Ok(Self { fd, uploaded: false })
    }

    /// Whether ashd made it from uploaded files. Such a directory never changes within its version.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded
    }

    /// The same directory as a `File`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn to_file(&self) -> io::Result<File> {
        Ok(File::from(self.fd.try_clone()?))
    }

    /// Whether it has a regular file of that name; a link to one within the directory counts.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn has_file(&self, name: &str) -> io::Result<bool> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.fd, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(found) => Ok(FileType::from_raw_mode(fstat(found)?.st_mode) == FileType::RegularFile),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether ashd's user may read a file that [`Self::has_file`] found.
    ///
    /// # Errors
    /// Why not.
    pub fn check_readable(&self, name: &str) -> io::Result<()> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        openat2(&self.fd, name, flags, Mode::empty(), resolve)?;
        Ok(())
    }

    /// Which of its files may be read. In a directory of the server, hard links to ashd's own files
    /// are excluded: with `fs.protected_hardlinks` off, any local user can create one.
    pub fn takes(&self) -> fn(&Stat) -> bool {
        if self.uploaded {
            |_| true
        } else {
            |stat| stat.st_nlink < 2 || stat.st_uid != rustix::process::geteuid().as_raw()
        }
    }
}

impl Shared {
    /// [`AgentDirectory::of`], off the async threads.
    pub async fn agent_directory(&self, agent: &Agent) -> Result<AgentDirectory, SessionError> {
        let (config, agent) = (self.config.now(), agent.clone());
        let opened = tokio::task::spawn_blocking(move || AgentDirectory::of(&config, &agent)).await;
        opened.map_err(|e| SessionError::Failed(format!("cannot inspect the agent's directory: {e}")))?
    }
}

impl AsFd for AgentDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The change since the directory was deployed.
fn what_happened(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "no longer exists",
        io::ErrorKind::NotADirectory => "is no longer a directory",
        io::ErrorKind::PermissionDenied => {
            "may not be read by the user that ashd runs as: give it permission (chmod -R o+rX, and o+x on the directories above), or \
             upload the agent with files"
        }
        _ => "cannot be read",
    }
}

/// Path of an uploaded agent relative to the data directory; `None` for an agent deployed by path.
fn uploaded(config: &Config, agent: &Agent) -> Option<PathBuf> {
    let home = agents_of(&config.data_dir, &agent.tenant).join(&agent.name);
    let mut version = Path::new(&agent.path).strip_prefix(&home).ok()?.components();
    match (version.next(), version.next()) {
        (Some(Component::Normal(version)), None) => Some(home.strip_prefix(&config.data_dir).ok()?.join(version)),
        _ => None,
    }
}

/// The directory at `path`, opened below its root, or below `/` without roots.
fn resolve(roots: &[PathBuf], path: &Path) -> Result<OwnedFd, Refusal> {
    let real_roots: Vec<PathBuf> = match roots {
        [] => vec![PathBuf::from("/")],
        roots => roots.iter().filter_map(|root| root.canonicalize().ok()).collect(),
    };
    for _ in 0..TRIES {
        let real = match path.canonicalize() {
            Ok(real) => real,
            // The same answer for paths that do not exist and paths outside the roots: it reveals
            // nothing.
            Err(_) if !roots.is_empty() && !plainly_below(roots, path) => return Err(Refusal::Outside),
            Err(cause) => return Err(Refusal::Unusable(cause)),
        };
        let below = real_roots.iter().find_map(|root| Some((root, real.strip_prefix(root).ok()?)));
        let Some((root, below)) = below else { return Err(Refusal::Outside) };
        match open_beneath(root, below) {
            // Something in the path was replaced since it was resolved.
            Err(Refusal::Unusable(cause)) if changed(&cause) => {}
            other => return other,
        }
    }
    Err(Refusal::Unusable(io::Error::other("it changed repeatedly while it was opened")))
}

fn changed(cause: &io::Error) -> bool {
    let errno = Errno::from_io_error(cause);
    matches!(errno, Some(Errno::LOOP | Errno::NOENT | Errno::XDEV | Errno::AGAIN))
}

fn plainly_below(roots: &[PathBuf], path: &Path) -> bool {
    let plain = !path.components().any(|part| part == Component::ParentDir);
    plain && roots.iter().any(|root| path.starts_with(root))
}

fn open_beneath(root: &Path, below: &Path) -> Result<OwnedFd, Refusal> {
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(openat2(root, below, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), STRICT)?)
}

/// A directory of ashd.
struct Own {
    what: &'static str,
    path: PathBuf,
    /// Whether agents below it are refused as well.
    with_all_below: bool,
}

fn own_directories(config: &Config) -> Vec<Own> {
    let whole = |what, path: &Path| Own { what, path: path.to_owned(), with_all_below: true };
    let configuration = "configuration directory";
    let mut own = vec![
        whole("data directory", &config.data_dir),
        whole("run directory", &config.run_dir),
        whole(configuration, Path::new(ETC)),
    ];
    if let Some(file) = &config.file {
        own.push(whole(configuration, Path::new(&format!("{}.d", file.display()))));
        // A configuration outside /etc may be in a home directory, next to agents.
        let beside = file.parent().map(Path::to_owned);
        own.extend(beside.map(|path| Own { what: configuration, path, with_all_below: false }));
    }
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    own.extend(credentials.map(|path| whole("credentials directory", &path)));
    own
}

/// (device, inode): identifies a directory under any name.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn judge(directory: &OwnedFd, own: &[Own]) -> Result<(), Refusal> {
    let above = ancestors(directory)?;
    for own in own {
        // One that does not exist holds nothing.
        let Ok(real) = own.path.canonicalize() else { continue };
        let mut line = real.ancestors().filter_map(|path| stat(path).ok()).map(|stat| identity(&stat)).peekable();
        let below = own.with_all_below && line.peek().is_some_and(|own| above.contains(own));
        if below || line.any(|own| own == above[0]) {
            return Err(Refusal::Own(own.what));
        }
    }
    Ok(())
}

/// The directory itself, then each above it.
fn ancestors(directory: &OwnedFd) -> Result<Vec<Identity>, Refusal> {
    let mut all = vec![identity(&fstat(directory)?)];
    let mut here = openat(directory, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    while all.len() < MAX_DEPTH {
        here = openat(&here, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let above = identity(&fstat(&here)?);
        if all.last() == Some(&above) {
            return Ok(all);
        }
        all.push(above);
    }
    Err(Refusal::Unusable(io::Error::other(format!("it is nested more than {MAX_DEPTH} directories deep"))))
}

#[cfg(test)]
#[path = "agent_directory_tests.rs"]
mod tests;
