//! Resolves paths that only root can change, one component at a time.
//!
//! Root uses a path only if every directory and link in it belongs to root and no other user can
//! write there. A sticky directory such as `/tmp` is accepted within a path, because other users
//! cannot replace entries of root, but not as its end. The returned descriptor is the checked one:
//! nothing is looked up twice.
//!
//! Processes without root's privileges are not at risk, so only root checks.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, readlinkat};

/// Most symbolic links in one path, as in the kernel.
const MAX_LINKS: usize = 40;
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    #[error("{} belongs to uid {uid}, who could replace it: root uses only files and directories that belong to root", .path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error("{} has mode {mode:o}, so other users could change it: root uses only files and directories that root alone can write", .path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("{} is not a {wanted}", .path.display())]
    Kind { path: PathBuf, wanted: &'static str },
    #[error("{} has more than {MAX_LINKS} links", .0.display())]
    Links(PathBuf),
    #[error("{} is not an absolute path", .0.display())]
    Relative(PathBuf),
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Untrusted {
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The command that makes the path acceptable, if there is one.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Owner { path, .. } => Some(format!("chown root: {}", path.display())),
            Self::Writable { path, .. } => Some(format!("chmod go-w {}", path.display())),
            _ => None,
        }
    }
}

impl From<Untrusted> for io::Error {
    fn from(why: Untrusted) -> Self {
        match why {
            Untrusted::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => source,
            why => Self::new(io::ErrorKind::PermissionDenied, why),
        }
    }
}

/// A regular file at `path`, as an `O_PATH` descriptor.
///
/// # Errors
/// [`Untrusted`] names the component.
pub fn file(path: &Path) -> Result<OwnedFd, Untrusted> {
    let (found, stat) = walk(path, None)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(Untrusted::Kind { path: path.to_owned(), wanted: "regular file" });
    }
    judge(path, &stat, false)?;
    Ok(found)
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// [`Untrusted`] names the component; also for a longer file.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, Untrusted> {
    let fault = |source: io::Error| Untrusted::Io { path: path.to_owned(), source };
    let found = file(path)?;
    // The checked file itself, independent of its current name.
    let file = std::fs::File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(fault)?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, most + 1), &mut text).map_err(fault)?;
    if text.len() as u64 > most {
        return Err(fault(io::Error::other(format!("has more than {most} bytes"))));
    }
    Ok(text)
}

/// A directory at `path`, as an `O_PATH` descriptor.
///
/// # Errors
/// [`Untrusted`] names the component.
pub fn directory(path: &Path) -> Result<OwnedFd, Untrusted> {
    let (found, stat) = any_directory(path)?;
    judge(path, &stat, false)?;
    Ok(found)
}

/// As [`directory`], and also accepts a sticky one, such as `/tmp`: root's entries in it stay
/// root's.
///
/// # Errors
/// [`Untrusted`] names the component.
pub fn sticky_directory(path: &Path) -> Result<OwnedFd, Untrusted> {
    let (found, stat) = any_directory(path)?;
    judge(path, &stat, true)?;
    Ok(found)
}

/// As [`directory`]. Creates missing components with mode 0755.
///
/// # Errors
/// [`Untrusted`] names the component.
pub fn make_directory(path: &Path) -> Result<OwnedFd, Untrusted> {
    let (found, stat) = walk(path, Some(Mode::from_raw_mode(0o755)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Untrusted::Kind { path: path.to_owned(), wanted: "directory" });
    }
    judge(path, &stat, false)?;
    Ok(found)
}

/// A directory with any owner, below checked components: the beginning of another user's tree.
///
/// # Errors
/// [`Untrusted`] names the component.
pub fn any_directory(path: &Path) -> Result<(OwnedFd, Stat), Untrusted> {
    let (found, stat) = walk(path, None)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Untrusted::Kind { path: path.to_owned(), wanted: "directory" });
    }
    Ok((found, stat))
}

/// Checks every component except the last.
fn walk(path: &Path, make: Option<Mode>) -> Result<(OwnedFd, Stat), Untrusted> {
    if !path.is_absolute() {
        return Err(Untrusted::Relative(path.to_owned()));
    }
    let fault = |at: &Path| {
        let path = at.to_owned();
        move |error: rustix::io::Errno| Untrusted::Io { path, source: error.into() }
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = || openat(CWD, "/", flags | OFlags::DIRECTORY, Mode::empty()).map_err(fault(Path::new("/")));
    let (mut todo, mut links, mut at) = (names(path), 0, PathBuf::from("/"));
    let mut chain = vec![root()?];
    while let Some(name) = todo.pop_front() {
        let Some(here) = chain.last() else { return Err(Untrusted::Relative(path.to_owned())) };
        let stat = fstat(here).map_err(fault(&at))?;
        judge(&at, &stat, true)?;
        if name == ".." {
            if chain.len() > 1 {
                chain.pop();
                at.pop();
            }
            continue;
        }
        let below = at.join(&name);
        let mut opened = openat(here, &name, flags, Mode::empty());
        if let (Err(rustix::io::Errno::NOENT), Some(mode)) = (&opened, make) {
            opened = made(here, &name, mode).and_then(|()| openat(here, &name, flags, Mode::empty()));
        }
        let opened = opened.map_err(fault(&below))?;
        let stat = fstat(&opened).map_err(fault(&below))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Untrusted::Links(path.to_owned()));
            }
            // A link's mode has no meaning; its owner is checked.
            if stat.st_uid != 0 && judges() {
                return Err(Untrusted::Owner { path: below, uid: stat.st_uid });
            }
            let target = readlinkat(&opened, "", Vec::new()).map_err(fault(&below))?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                chain = vec![root()?];
                at = PathBuf::from("/");
            }
            let mut names = names(&target);
            names.append(&mut todo);
            todo = names;
            continue;
        }
        chain.push(opened);
        at = below;
    }
    let end = chain.pop().ok_or_else(|| Untrusted::Relative(path.to_owned()))?;
    let stat = fstat(&end).map_err(fault(&at))?;
    Ok((end, stat))
}

/// Creates a directory with exactly this mode, independent of the umask.
fn made(here: impl AsFd, name: &OsStr, mode: Mode) -> rustix::io::Result<()> {
    match mkdirat(&here, name, mode) {
        Ok(()) => {}
        // Created by another process; it is checked like any other.
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(&here, name, flags, Mode::empty())?;
    if judges() && fstat(&made)?.st_uid != 0 {
        return Ok(());
    }
    rustix::fs::fchmod(&made, mode)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn judges() -> bool {
    rustix::process::geteuid().is_root()
}

fn judge(path: &Path, stat: &Stat, sticky_will_do: bool) -> Result<(), Untrusted> {
    if !judges() {
        return Ok(());
    }
    if stat.st_uid != 0 {
        return Err(Untrusted::Owner { path: path.to_owned(), uid: stat.st_uid });
    }
    let sticky = sticky_will_do && stat.st_mode & STICKY != 0;
    if stat.st_mode & OTHERS_WRITE != 0 && !sticky {
        return Err(Untrusted::Writable { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    const OTHER: u32 = 65_534;

    fn word<T>(result: Result<T, Untrusted>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(Untrusted::Owner { .. }) => "owner",
            Err(Untrusted::Writable { .. }) => "writable",
            Err(Untrusted::Kind { .. }) => "kind",
            Err(Untrusted::Links(_)) => "links",
            Err(Untrusted::Relative(_)) => "relative",
            Err(Untrusted::Io { .. }) => "io",
        }
    }

    #[test]
    fn the_owner_of_every_component_decides() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        let mode = |name: &str, mode| std::fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        for dir in ["good/deep", "theirs/deep", "open/deep", "sticky/deep"] {
            std::fs::create_dir_all(at(dir)).unwrap();
            std::fs::write(at(dir).join("program"), "x").unwrap();
        }
        chown(at("theirs"), Some(OTHER), None).unwrap();
        mode("open", 0o777);
        mode("sticky", 0o1777);
        for (name, owner) in [("good/own", 0), ("good/others", OTHER), ("sticky/others", OTHER)] {
            symlink("/bin", at(name)).unwrap();
            lchown(at(name), Some(owner), None).unwrap();
        }
        symlink("../good/deep", at("good/up")).unwrap();
        symlink("loop", at("good/loop")).unwrap();
        std::fs::write(at("good/writable"), "x").unwrap();
        mode("good/writable", 0o775);
        std::fs::write(at("good/foreign"), "x").unwrap();
        chown(at("good/foreign"), Some(OTHER), None).unwrap();
        for (name, as_file, as_directory) in [
            ("good/deep/program", "ok", "kind"),
            ("good/deep", "kind", "ok"),
            ("good/up/program", "ok", "kind"),
            ("good/../good/deep/program", "ok", "kind"),
            ("theirs/deep/program", "owner", "owner"),
            ("theirs", "kind", "owner"),
            ("open/deep/program", "writable", "writable"),
            ("open", "kind", "writable"),
            ("sticky/deep/program", "ok", "kind"),
            ("sticky", "kind", "writable"),
            ("good/own/sh", "ok", "kind"),
            ("good/others/sh", "owner", "owner"),
            ("sticky/others/sh", "owner", "owner"),
            ("good/loop", "links", "links"),
            ("good/writable", "writable", "kind"),
            ("good/foreign", "owner", "kind"),
            ("good/none", "io", "io"),
        ] {
            assert_eq!(word(file(&at(name))), as_file, "{name} as a file");
            assert_eq!(word(directory(&at(name))), as_directory, "{name} as a directory");
        }
        assert_eq!(word(file(Path::new("bin/sh"))), "relative");
        assert_eq!(word(sticky_directory(&at("sticky"))), "ok");
        assert_eq!(word(any_directory(&at("theirs"))), "ok");
        assert_eq!(word(any_directory(&at("theirs/deep"))), "owner");
        assert!(file(&at("theirs/deep/program")).unwrap_err().remedy().unwrap().starts_with("chown root: "));
    }

    #[test]
    fn missing_directories_are_made_but_not_below_those_of_others() {
        let top = tempfile::tempdir().unwrap();
        make_directory(&top.path().join("a/b")).unwrap();
        let mode = std::fs::metadata(top.path().join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        make_directory(&top.path().join("a/b")).unwrap();
        chown(top.path().join("a"), Some(OTHER), None).unwrap();
        assert_eq!(word(make_directory(&top.path().join("a/c"))), "owner");
        assert!(!top.path().join("a/c").exists());
        assert!(directory(&top.path().join("none")).unwrap_err().is_missing());
    }
}
