//! Removes a directory that a payload has filled.
//!
//! The payload may have made directories that deny access, or nested them 100,000 deep: more than a
//! stack, a path or the descriptors allow. So the tree is flattened: subdirectories move up to the
//! top, and nothing is ever deeper than two levels.
//!
//! ```text
//!   top/a/b/c   -->   top/a, top/.removing-0 (was b, contains c)   -->   top/.removing-0, ...
//! ```

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

/// Removes `top` and everything below it; a missing one is no error. Links are removed, not
/// followed. No process may still work in it. Blocks: call it on a blocking thread.
///
/// # Errors
/// The first entry that cannot be removed (immutable, of another user). A second call continues
/// from there.
pub fn remove_tree(top: &Path) -> io::Result<()> {
    match fs::symlink_metadata(top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(data) if !data.is_dir() => return fs::remove_file(top),
        Ok(_) => {}
    }
    enterable(top)?;
    let mut moved = 0;
    loop {
        let directories = remove_files(top)?;
        if directories.is_empty() {
            return fs::remove_dir(top);
        }
        for directory in directories {
            enterable(&directory)?;
            for below in remove_files(&directory)? {
                // Moving a directory needs write permission on it, because its `..` changes.
                enterable(&below)?;
                move_up(&below, top, &mut moved)?;
            }
            fs::remove_dir(&directory)?;
        }
    }
}

/// Removes everything but directories, and returns those.
fn remove_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { directories.push(entry.path()) } else { fs::remove_file(entry.path())? }
    }
    Ok(directories)
}

fn enterable(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o700))
}

fn move_up(from: &Path, top: &Path, moved: &mut u64) -> io::Result<()> {
    loop {
        let to = top.join(format!(".removing-{moved}"));
        *moved += 1;
        match rustix::fs::renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // The payload took the name.
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_payload_did() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("session");
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::create_dir_all(top.join(".removing-0/x")).unwrap();
        fs::write(top.join("a/b/file"), "x").unwrap();
        let kept = temp.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&kept, top.join("a/link")).unwrap();
        // Deeper than any path: made from the inside out.
        let deep = top.join("deep");
        fs::create_dir(&deep).unwrap();
        for _ in 0..3000 {
            fs::create_dir(top.join("shell")).unwrap();
            fs::rename(&deep, top.join("shell/d")).unwrap();
            fs::rename(top.join("shell"), &deep).unwrap();
        }
        fs::set_permissions(top.join("a/b"), Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(&top, Permissions::from_mode(0o000)).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(kept.join("file").exists(), "a link was followed");
        remove_tree(&top).unwrap();
    }
}
