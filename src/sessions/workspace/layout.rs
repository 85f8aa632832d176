//! A session's directory on the host.
//!
//! ```text
//! <data dir>/sessions/<id>/
//!     workspace/      /workspace of the sandbox           seen by the sandbox
//!     workspace.partial/   exists while workspace/ is incomplete
//!     home/           /home/agent of the sandbox          seen by the sandbox
//!     stdout, stderr  claude's output, append only        ashd's; claude holds them for writing
//!     process.json    what a restarted ashd must know     ashd's
//!     install.due     exists until the agent's install.sh has succeeded
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

use ash_model::TenantId;

/// The directory of one session.
#[derive(Clone, Debug)]
pub struct SessionDir(PathBuf);

/// The directory of uploaded agents in the data directory.
pub const AGENTS: &str = "agents";

/// Where a tenant's uploaded agents are.
pub fn agents_of(data_dir: &Path, tenant: &TenantId) -> PathBuf {
    data_dir.join(AGENTS).join(tenant.as_str())
}

impl SessionDir {
    pub fn new(data_dir: &Path, id: Uuid) -> Self {
        Self(data_dir.join("sessions").join(id.to_string()))
    }
    pub fn root(&self) -> &Path {
        &self.0
    }
    pub fn workspace(&self) -> PathBuf {
        self.0.join("workspace")
    }
    /// While this directory exists, the workspace is incomplete: a copy is under way, or a parked
    /// sandbox waits for an agent's files.
    pub fn partial(&self) -> PathBuf {
        self.0.join("workspace.partial")
    }
    pub fn home(&self) -> PathBuf {
        self.0.join("home")
    }
    pub fn stdout(&self) -> PathBuf {
        self.0.join("stdout")
    }
    pub fn stderr(&self) -> PathBuf {
        self.0.join("stderr")
    }
    pub fn process(&self) -> PathBuf {
        self.0.join("process.json")
    }

    fn install_due(&self) -> PathBuf {
        self.0.join("install.due")
    }

    /// Records whether the agent has an `install.sh`, before the workspace counts as whole. Call it
    /// when all files of the agent are in `files` and no process of the session has run.
    pub fn note_install(&self, files: &Path) -> io::Result<()> {
        match files.join("install.sh").symlink_metadata() {
            Ok(found) if !found.is_dir() => write_whole(&self.install_due(), b""),
            // An earlier copy may have had one.
            _ => match self.installed() {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            },
        }
    }

    pub fn install_is_due(&self) -> bool {
        self.install_due().exists()
    }

    pub fn installed(&self) -> io::Result<()> {
        std::fs::remove_file(self.install_due())
    }

    /// Whether the workspace has something of this name that is no directory. It may be anything
    /// the payload made; only the sandbox opens it.
    pub fn has_script(&self, name: &str) -> bool {
        self.workspace().join(name).symlink_metadata().is_ok_and(|found| !found.is_dir())
    }

    /// Creates missing directories with mode 0700, except the workspace, which appears whole or not
    /// at all. Restores mode 0700 of existing ones: a payload can set any mode on its files, setuid
    /// included, and ashd owns them on the disk.
    pub fn make(&self) -> io::Result<()> {
        make_dir(&self.0)?;
        if let Some(sessions) = self.0.parent() {
            close(sessions)?;
        }
        close(&self.0)?;
        make_dir(&self.home())
    }

    /// Whether all files of the agent are there.
    pub fn is_whole(&self) -> bool {
        self.workspace().is_dir() && !self.partial().exists()
    }

    /// For a parked sandbox: an empty workspace, marked as incomplete.
    pub fn make_empty(&self) -> io::Result<()> {
        self.make()?;
        make_dir(&self.partial())?;
        make_dir(&self.workspace())
    }

    /// An unnamed file on the disk of the sessions, positioned at its beginning. It vanishes with
    /// its last descriptor.
    pub fn unnamed(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(&self.0, flags, Mode::RUSR | Mode::WUSR)?);
        write(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    }

    /// Opens stdout for a new process. `known` is how far the file was read; reading continues
    /// there. Makes sure that a line ends at `known` and at the file's end, which closes an
    /// unfinished line of the previous process. After a power cut, blocks may be lost anywhere,
    /// because the kernel writes them in any order. Zeros replace lost bytes, so that offsets stay
    /// valid.
    pub fn open_stdout(&self, known: u64) -> io::Result<File> {
        // Not in append mode, which would ignore the offset.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(self.stdout())?;
        let end = file.metadata()?.len().max(known);
        let ends_a_line = |at: u64| -> io::Result<bool> {
            let mut last = [0];
            // Bytes that a power cut took read as zeros.
            Ok(at == 0 || (file.read_at(&mut last, at - 1)? == 1 && last == *b"\n"))
        };
        if !ends_a_line(known)? {
            file.write_all_at(b"\n", known - 1)?;
        }
        if !ends_a_line(end)? {
            file.write_all_at(b"\n", end)?;
        }
        // The process gets a descriptor that cannot read earlier output.
        OpenOptions::new().append(true).open(self.stdout())
    }

    /// Opens stderr for a new process; the second value is where its part begins.
    pub fn open_stderr(&self) -> io::Result<(File, u64)> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.stderr())?;
        let from = file.metadata()?.len();
        Ok((file, from))
    }

    /// At most the last 2 KiB printed to stderr since `from`, as text for an error.
    pub fn stderr_tail(&self, from: u64) -> String {
        const TAIL: u64 = 2048;
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(self.stderr())?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(from.max(len.saturating_sub(TAIL))))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        // Only adds detail to another error, so a missing stderr is not one.
        String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
    }
}

/// `mkdir -p` with mode 0700. An existing directory is no error.
pub fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Sets a directory of ashd to mode 0700. A link in its place is an error.
fn close(dir: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = rustix::fs::open(dir, flags, Mode::empty())?;
    let mode = rustix::fs::fstat(&open)?.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        tracing::warn!(directory = %dir.display(), "directory mode {mode:o} gives other users access; set to 700");
        rustix::fs::fchmod(&open, Mode::RWXU)?;
    }
    Ok(())
}

/// Writes a small file atomically, mode 0600.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_workspace_is_not_whole() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SessionDir::new(temp.path(), Uuid::new_v4());
        dir.make().unwrap();
        assert!(!dir.is_whole() && !dir.workspace().exists());
        dir.make_empty().unwrap();
        assert!(!dir.is_whole() && dir.workspace().is_dir() && dir.home().is_dir());
        std::fs::remove_dir(dir.partial()).unwrap();
        assert!(dir.is_whole());
    }

    #[test]
    fn an_install_is_due_until_it_is_done() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SessionDir::new(temp.path(), Uuid::new_v4());
        dir.make_empty().unwrap();
        dir.note_install(&dir.workspace()).unwrap();
        assert!(!dir.install_is_due() && !dir.has_script("install.sh"));
        std::fs::write(dir.workspace().join("install.sh"), "true").unwrap();
        dir.note_install(&dir.workspace()).unwrap();
        assert!(dir.install_is_due() && dir.has_script("install.sh") && !dir.has_script("."));
        dir.installed().unwrap();
        assert!(!dir.install_is_due());
    }

    #[test]
    fn directories_that_others_may_enter_are_closed_and_links_refused() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let temp = tempfile::tempdir().unwrap();
        let dir = SessionDir::new(temp.path(), Uuid::new_v4());
        dir.make().unwrap();
        let all = [temp.path().join("sessions"), dir.root().to_owned()];
        let modes = || all.clone().map(|dir| std::fs::metadata(dir).unwrap().mode() & 0o7777);
        assert_eq!(modes(), [0o700, 0o700]);
        for dir in &all {
            std::fs::set_permissions(dir, PermissionsExt::from_mode(0o2755)).unwrap();
        }
        dir.make().unwrap();
        assert_eq!(modes(), [0o700, 0o700]);
        let other = SessionDir::new(temp.path(), Uuid::new_v4());
        symlink("/etc", other.root()).unwrap();
        assert!(other.make().is_err() && std::fs::metadata("/etc").unwrap().mode() & 0o777 != 0o700);
    }

    #[test]
    fn an_unfinished_line_is_closed_once() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SessionDir::new(temp.path(), Uuid::new_v4());
        dir.make().unwrap();
        for (before, after) in [("", ""), ("{}\n", "{}\n"), ("{}\n{\"hal", "{}\n{\"hal\n")] {
            std::fs::write(dir.stdout(), before).unwrap();
            dir.open_stdout(0).unwrap();
            assert_eq!(std::fs::read_to_string(dir.stdout()).unwrap(), after);
        }
    }

    #[test]
    fn what_a_power_cut_took_leaves_a_hole_and_the_offsets_as_they_were() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SessionDir::new(temp.path(), Uuid::new_v4());
        dir.make().unwrap();
        std::fs::write(dir.stdout(), "{}\n{\"hal").unwrap();
        let mut file = dir.open_stdout(12).unwrap();
        file.write_all(b"next\n").unwrap();
        assert_eq!(std::fs::read_to_string(dir.stdout()).unwrap(), "{}\n{\"hal\0\0\0\nnext\n");
        // Zeros before an existing end.
        std::fs::write(dir.stdout(), "{}\n\0\0\0\0end\n").unwrap();
        dir.open_stdout(6).unwrap();
        assert_eq!(std::fs::read_to_string(dir.stdout()).unwrap(), "{}\n\0\0\n\0end\n");
    }

    #[test]
    fn the_tail_of_stderr_is_this_processs_own() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SessionDir::new(temp.path(), Uuid::new_v4());
        dir.make().unwrap();
        assert_eq!(dir.stderr_tail(0), "");
        std::fs::write(dir.stderr(), "old trouble\n").unwrap();
        let (mut file, from) = dir.open_stderr().unwrap();
        file.write_all(b"new trouble\n").unwrap();
        assert_eq!(dir.stderr_tail(from), "new trouble");
        file.write_all(&[b'x'; 10_000]).unwrap();
        assert_eq!(dir.stderr_tail(from).len(), 2048);
    }
}
