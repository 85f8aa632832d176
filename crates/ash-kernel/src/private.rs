//! Temporary directories and files that no other user can replace.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

use super::tree::Tree;

/// A directory of this process in a directory that only root controls. It is removed with this
/// value.
#[derive(Debug)]
pub struct Private {
    above: Tree,
    name: OsString,
    tree: Tree,
}

impl Private {
    /// Creates `<prefix>-<random>` in `above`, or in `$TMPDIR` (default `/var/tmp`).
    ///
    /// # Errors
    /// [`Untrusted`] if the parent directory is not root's, or as for mkdir(2).
    pub fn new(above: Option<&Path>, prefix: &str, mode: u32) -> io::Result<Self> {
        let above = match above {
            Some(above) => above.to_owned(),
            None => std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map_or("/var/tmp".into(), PathBuf::from),
        };
        let above = std::path::absolute(above)?;
        let above = Tree::held(super::trusted::sticky_directory(&above)?, above)?;
        let name = OsString::from(format!("{prefix}-{}", uuid::Uuid::new_v4().simple()));
        let tree = above.make_dir(&name, mode, None)?;
        Ok(Self { above, name, tree })
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    pub fn path(&self) -> &Path {
        self.tree.path()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(error) = self.above.remove(&self.name) {
            tracing::warn!(%error, path = %self.path().display(), "a temporary directory was not removed: remove it");
        }
    }
}

/// A file without a name in `$TMPDIR` (default `/var/tmp`), which is gone when it is closed.
///
/// # Errors
/// As for [`Private::new`].
pub fn nameless() -> io::Result<File> {
    let private = Private::new(None, "ashd-nameless", 0o700)?;
    private.tree().create_file("file")?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(private.tree(), "file", flags, Mode::empty())?))
}
