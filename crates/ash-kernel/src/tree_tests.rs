use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::private::Private;

const OTHER: Owner = Owner { uid: 65_534, gid: 65_534 };

/// A directory of another user with links of every kind, and a directory of root as their target.
fn planted() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    let (theirs, secret) = (top.path().join("theirs"), top.path().join("roots"));
    for dir in [&theirs, &secret] {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::write(secret.join("file"), "secret").unwrap();
    chown(&theirs, Some(OTHER.uid), Some(OTHER.gid)).unwrap();
    symlink(&secret, theirs.join("dir")).unwrap();
    symlink(secret.join("file"), theirs.join("link")).unwrap();
    symlink(secret.join("new"), theirs.join("dangling")).unwrap();
    std::fs::hard_link(secret.join("file"), theirs.join("hard")).unwrap();
    nix::unistd::mkfifo(&theirs.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    (top, theirs, secret)
}

#[test]
fn no_operation_leaves_the_tree_by_a_planted_link() {
    let (_top, theirs, secret) = planted();
    let before = |path: &Path| std::fs::metadata(path).map(|m| (m.uid(), m.mode(), m.len())).unwrap();
    let (file, dir) = (before(&secret.join("file")), before(&secret));
    let tree = Tree::open(&theirs).unwrap();
    assert_eq!(tree.owner(), OTHER);
    for name in ["link", "dangling", "dir/file", "pipe", "none", "../roots/file", "/etc/passwd"] {
        assert!(tree.open_file(name).is_err(), "open {name}");
        assert!(tree.read(name, 100).is_err(), "read {name}");
    }
    for name in ["link", "dangling", "dir/new", "../roots/new", "pipe", "hard", "dir"] {
        assert!(tree.create_file(name).is_err(), "create {name}");
        assert!(tree.make_dir(name, 0o777, Some(OTHER)).is_err(), "make {name}");
        assert!(tree.symlink(OsStr::new("x"), name, Some(OTHER)).is_err(), "link {name}");
    }
    for name in ["link", "dangling", "dir/new", "../roots/new", "pipe", "dir"] {
        assert!(tree.open_or_create(name).is_err(), "open or create {name}");
    }
    assert!(matches!(tree.read("hard", 100), Err(Refused::Owner { found: 0, .. })), "a hard link to root's file");
    assert!(tree.directory("dir").is_err());
    tree.remove("dir").unwrap();
    tree.remove("link").unwrap();
    assert_eq!((before(&secret.join("file")), before(&secret)), (file, dir));
    assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1, "nothing was made there");
}

#[test]
fn what_is_made_has_its_owner_and_mode_and_replaces_nothing() {
    let (_top, theirs, _) = planted();
    let tree = Tree::open(&theirs).unwrap();
    let made = tree.make_dir("made", 0o750, Some(OTHER)).unwrap();
    assert_eq!(made.owner(), OTHER);
    let meta = std::fs::metadata(theirs.join("made")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (OTHER.uid, 0o750));
    assert!(tree.make_dir("made", 0o700, None).is_err());
    tree.symlink(OsStr::new("/nowhere"), "made/link", Some(OTHER)).unwrap();
    assert_eq!(std::fs::symlink_metadata(theirs.join("made/link")).unwrap().uid(), OTHER.uid);
    drop(tree.open_or_create("lock").unwrap());
    let meta = std::fs::metadata(theirs.join("lock")).unwrap();
    assert_eq!((meta.uid(), meta.permissions().mode() & 0o777), (OTHER.uid, 0o600));
    tree.rename("lock", &made, "moved").unwrap();
    assert!(tree.rename("hard", &made, "moved").is_err(), "nothing is replaced");
    assert_eq!(made.names().unwrap(), ["link", "moved"]);
    assert!(tree.remove_dir("made").is_err(), "it is not empty");
    tree.remove("made").unwrap();
    tree.remove("made").unwrap();
    assert!(!tree.has("made"));
}

/// The owner of the tree constantly exchanges a new directory with a link or another directory.
#[test]
fn an_exchange_just_after_mkdir_changes_nothing_elsewhere() {
    let (_top, theirs, secret) = planted();
    let tree = Tree::open(&theirs).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Each of them fails if the other side was faster.
                let _ = std::fs::rename(theirs.join("fresh"), theirs.join("away"));
                let _ = symlink(&secret, theirs.join("fresh"));
                let _ = std::fs::remove_file(theirs.join("fresh"));
                let _ = std::fs::remove_dir(theirs.join("away"));
            }
        });
        for _ in 0..3000 {
            let _ = tree.make_dir("fresh", 0o777, Some(OTHER));
            let _ = tree.remove("fresh");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let meta = std::fs::metadata(&secret).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o022), (0, 0));
    assert!(secret.join("file").exists());
}

#[test]
fn a_private_directory_goes_with_its_value() {
    let top = tempfile::tempdir().unwrap();
    let private = Private::new(Some(top.path()), "x", 0o711).unwrap();
    drop(private.tree().create_file("a").unwrap());
    let path = private.path().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o711);
    drop(private);
    assert!(!path.exists());
    chown(top.path(), Some(OTHER.uid), None).unwrap();
    assert!(Private::new(Some(top.path()), "x", 0o700).is_err(), "its owner could exchange it");
}
