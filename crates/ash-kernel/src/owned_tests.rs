use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

use super::*;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const OTHER: u32 = 65_534;

/// Runs `work` in a thread as another user without capabilities, like ashd.
fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let id = rustix::process::Uid::from_raw(OTHER);
            rustix::thread::set_thread_res_uid(id, id, id).unwrap();
            work()
        });
        run.join().unwrap()
    })
}

fn tree() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let top = temp.path().join("top");
    std::fs::create_dir_all(top.join("closed/inner")).unwrap();
    std::fs::write(top.join("closed/inner/file"), "content").unwrap();
    std::fs::write(top.join("foreign"), "secret").unwrap();
    symlink("foreign", top.join("link")).unwrap();
    for (name, mode) in [("closed/inner/file", 0o000), ("closed/inner", 0o400), ("closed", 0o000), ("", 0o700)] {
        let path = top.join(name);
        chown(&path, Some(OTHER), Some(OTHER)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    std::fs::set_permissions(top.join("foreign"), PermissionsExt::from_mode(0o600)).unwrap();
    (temp, top)
}

fn mode(path: PathBuf) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn read(root: &std::fs::File, path: &str) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = open(root, Path::new(path), flags, Mode::empty(), RESOLVE)?.into_fd();
    Ok(std::io::read_to_string(std::fs::File::from(file)).unwrap())
}

#[test]
fn what_is_closed_to_its_owner_is_opened_and_keeps_its_mode() {
    let (_temp, top) = tree();
    unprivileged(|| {
        let root = std::fs::File::open(&top).unwrap();
        assert_eq!(read(&root, "closed/inner/file").as_deref(), Ok("content"));
        assert_eq!(read(&root, "foreign"), Err(Errno::ACCESS), "another user's stays closed");
        assert_eq!(read(&root, "link"), Err(Errno::LOOP));
        assert_eq!(read(&root, "closed/none"), Err(Errno::NOENT));
        assert_eq!(read(&root, "../top/foreign"), Err(Errno::XDEV));
    });
    assert_eq!(mode(top.join("closed")), 0o000);
    assert_eq!(mode(top.join("closed/inner")), 0o400);
    assert_eq!(mode(top.join("closed/inner/file")), 0o000);
    assert!(changes().is_empty() || !changes().values().any(|change| change.users == 0));
}

#[test]
fn several_users_of_a_directory_share_the_change_and_the_last_one_ends_it() {
    let (_temp, top) = tree();
    unprivileged(|| {
        let root = std::fs::File::open(&top).unwrap();
        let directory = || open(&root, Path::new("closed"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), RESOLVE);
        let (one, two) = (directory().unwrap(), directory().unwrap());
        let stat = fstat(one.as_fd()).unwrap();
        assert_eq!((stat.st_mode & 0o7777, mode_of(&stat)), (0o700, 0o000));
        drop(one);
        assert_eq!(
            read(&std::fs::File::from(two.as_fd().try_clone_to_owned().unwrap()), "inner/file").as_deref(),
            Ok("content")
        );
        drop(two);
    });
    assert_eq!(mode(top.join("closed")), 0o000);
}

#[test]
fn a_mode_that_its_owner_sets_meanwhile_stays() {
    let (_temp, top) = tree();
    unprivileged(|| {
        let root = std::fs::File::open(&top).unwrap();
        let held =
            open(&root, Path::new("closed"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), RESOLVE).unwrap();
        std::fs::set_permissions(top.join("closed"), PermissionsExt::from_mode(0o750)).unwrap();
        drop(held);
    });
    assert_eq!(mode(top.join("closed")), 0o750);
}

#[test]
fn a_root_that_is_closed_is_opened() {
    let (_temp, top) = tree();
    std::fs::set_permissions(&top, PermissionsExt::from_mode(0o000)).unwrap();
    unprivileged(|| {
        let at = rustix::fs::open(&top, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = open(&at, Path::new("."), flags, Mode::empty(), RESOLVE).unwrap();
        assert!(rustix::fs::Dir::read_from(root.as_fd()).unwrap().count() >= 4);
    });
    assert_eq!(mode(top), 0o000);
}
