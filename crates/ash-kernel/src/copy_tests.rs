use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;

use super::*;

fn trees() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::create_dir(&to).unwrap();
    (temp, from, to)
}

fn copy(from: &Path, to: &Path, bounds: Bounds, links: Links) -> Result<Copied, CopyError> {
    copy_tree(directory(from).unwrap().as_fd(), to, bounds, links, everything)
}

fn set_mode(path: PathBuf, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn raw(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

#[test]
fn a_copy_is_what_the_source_is() {
    let (_temp, from, to) = trees();
    std::fs::create_dir_all(from.join("d/empty")).unwrap();
    std::fs::write(from.join("d/run.sh"), "#!/bin/sh\n").unwrap();
    set_mode(from.join("d/run.sh"), 0o4755);
    std::fs::hard_link(from.join("d/run.sh"), from.join("second")).unwrap();
    for (name, target) in
        [("inside", "d/run.sh"), ("absolute", "/usr/bin/python3"), ("up", "../../x"), ("dead", "none")]
    {
        symlink(target, from.join(name)).unwrap();
    }
    std::fs::write(from.join(raw(b"caf\xe9")), "bytes").unwrap();
    std::fs::write(from.join("closed"), "x").unwrap();
    set_mode(from.join("closed"), 0o000);
    let sparse = File::create(from.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"middle", 1 << 39).unwrap();
    set_mode(from.join("d"), 0o555);
    rustix::fs::mknodat(CWD, from.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    for name in ["d", "sparse", "closed"] {
        File::open(from.join(name)).unwrap().set_modified(old).unwrap();
    }

    let copied = copy(&from, &to, Bounds::default(), Links::All).unwrap();
    let named: Vec<_> = copied.skipped.entries.iter().map(|e| (e.path.as_str(), e.reason.as_str())).collect();
    assert_eq!(named.len(), 2, "{named:?}");
    assert!(named.contains(&("fifo", "a named pipe")), "{named:?}");
    assert!(copied.bytes < 1 << 20, "{}", copied.bytes);
    for (name, target) in
        [("inside", "d/run.sh"), ("absolute", "/usr/bin/python3"), ("up", "../../x"), ("dead", "none")]
    {
        assert_eq!(std::fs::read_link(to.join(name)).unwrap(), Path::new(target));
    }
    let meta = |name: &str| std::fs::metadata(to.join(name)).unwrap();
    assert_eq!(meta("d/run.sh").mode() & 0o7777, 0o755, "no setuid bit");
    assert_eq!((meta("d/run.sh").ino(), meta("d/run.sh").nlink()), (meta("second").ino(), 2));
    assert_eq!((meta("d").mode() & 0o7777, meta("closed").mode() & 0o7777), (0o555, 0));
    assert_eq!(std::fs::read_dir(to.join("d/empty")).unwrap().count(), 0);
    assert_eq!(std::fs::read(to.join(raw(b"caf\xe9"))).unwrap(), b"bytes");
    assert_eq!((meta("sparse").len(), meta("sparse").blocks() < 2048), (1 << 40, true));
    let mut middle = [0; 6];
    File::open(to.join("sparse")).unwrap().read_exact_at(&mut middle, 1 << 39).unwrap();
    assert_eq!(&middle, b"middle");
    for name in ["d", "sparse", "closed"] {
        assert_eq!(meta(name).modified().unwrap(), old, "{name}");
    }
}

#[test]
fn links_out_of_an_agents_directory_are_named() {
    let (_temp, from, to) = trees();
    std::fs::create_dir(from.join("d")).unwrap();
    std::fs::write(from.join("file"), "x").unwrap();
    symlink("../file", from.join("d/inside")).unwrap();
    symlink("/etc/passwd", from.join("outside")).unwrap();
    let copied = copy(&from, &to, Bounds::default(), Links::Inside).unwrap();
    assert_eq!(std::fs::read_to_string(to.join("d/inside")).unwrap(), "x");
    assert!(!to.join("outside").is_symlink());
    let entry = &copied.skipped.entries[0];
    assert_eq!((&*entry.path, &*entry.reason), ("outside", "a link that leads out of the directory, to /etc/passwd"));
    let source = directory(&from).unwrap();
    let would = would_skip(source.as_fd(), Bounds::default(), Links::Inside, everything).unwrap();
    assert_eq!(would, copied.skipped, "what is said beforehand is what happens");
}

#[test]
fn links_are_judged_by_where_they_lead() {
    for (at, target, want) in [
        ("l", "a", true),
        ("l", "../a", false),
        ("d/l", "../a", true),
        ("d/l", "../../a", false),
        ("d/e/l", "../../a/./b", true),
        ("l", "/etc/passwd", false),
        ("l", "a/../../b", false),
    ] {
        assert_eq!(stays_inside(Path::new(at), OsStr::new(target)), want, "{at} -> {target}");
    }
}

#[test]
fn bounds_are_errors_that_say_so() {
    let (_temp, from, to) = trees();
    std::fs::write(from.join("a"), [1; 100]).unwrap();
    let small = Bounds { bytes: 99, entries: 9 };
    assert!(matches!(copy(&from, &to, small, Links::All), Err(CopyError::TooLarge(99))));
    std::fs::remove_file(to.join("a")).unwrap();
    std::fs::write(from.join("b"), "").unwrap();
    assert!(matches!(copy(&from, &to, Bounds { bytes: 100, entries: 1 }, Links::All), Err(CopyError::TooMany(1))));
}

#[test]
fn a_missing_target_is_named_and_no_link_is_a_place() {
    let (temp, from, to) = trees();
    let text = copy(&from, &to.join("none"), Bounds::default(), Links::All).unwrap_err().to_string();
    assert!(text.contains("to/none") && text.contains("No such file"), "{text}");
    symlink(&to, temp.path().join("link")).unwrap();
    assert!(directory(&temp.path().join("link")).is_err());
    assert!(copy(&from, &temp.path().join("link"), Bounds::default(), Links::All).is_err());
}

#[test]
fn what_is_not_taken_is_skipped() {
    let (_temp, from, to) = trees();
    std::fs::write(from.join("one"), "1").unwrap();
    std::fs::write(from.join("two"), "2").unwrap();
    std::fs::hard_link(from.join("two"), from.join("second")).unwrap();
    let source = directory(&from).unwrap();
    let copied = copy_tree(source.as_fd(), &to, Bounds::default(), Links::All, |stat| stat.st_nlink == 1).unwrap();
    assert_eq!((copied.bytes, copied.entries, copied.skipped.count()), (1, 3, 2));
    assert!(to.join("one").exists() && !to.join("two").exists() && !to.join("second").exists());
}

/// Constantly exchanging a directory with a link never brings files from outside into a copy.
#[test]
fn a_directory_that_is_swapped_for_a_link_is_never_left() {
    let (temp, from, _) = trees();
    std::fs::create_dir_all(from.join("d/e")).unwrap();
    std::fs::write(from.join("d/e/f"), "inside").unwrap();
    std::fs::create_dir_all(temp.path().join("out/e")).unwrap();
    std::fs::write(temp.path().join("out/e/f"), "secret").unwrap();
    symlink("../out", from.join("l")).unwrap();
    let (stop, mut seen) = (AtomicBool::new(false), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, from.join("d"), CWD, from.join("l"), flags).unwrap();
            }
        });
        for round in 0..300 {
            let to = temp.path().join(format!("to{round}"));
            std::fs::create_dir(&to).unwrap();
            copy(&from, &to, Bounds::default(), Links::All).unwrap();
            for name in ["d", "l"] {
                let at = to.join(name);
                if at.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                    seen += 1;
                    assert!(
                        std::fs::read_to_string(at.join("e/f")).map_or(true, |text| text == "inside"),
                        "left the tree"
                    );
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(seen > 0, "the race did not happen");
}
