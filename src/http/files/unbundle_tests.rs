use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::beneath;
use super::*;

/// (kind, path, content or target)
fn archive(entries: &[(char, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (kind, path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(if path.ends_with(".sh") { 0o755 } else { 0o644 });
        // Written by hand: the tar crate refuses the paths tested here.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(0);
        header.set_entry_type(match kind {
            'd' => EntryType::Directory,
            'l' => EntryType::Symlink,
            'h' => EntryType::Link,
            'p' => EntryType::Fifo,
            _ => EntryType::Regular,
        });
        if matches!(kind, 'l' | 'h') {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        } else {
            header.set_size(content.len() as u64);
        }
        header.set_cksum();
        let data = if matches!(kind, 'l' | 'h') { "" } else { content };
        tar.append(&header, data.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn room(bytes: u64) -> Room {
    Room { most: bytes, left: bytes }
}

fn space() -> (tempfile::TempDir, File) {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("workspace")).unwrap();
    let root = beneath::root(&temp.path().join("workspace")).unwrap();
    (temp, root)
}

#[test]
fn files_modes_and_links_of_every_kind() {
    use std::os::unix::fs::PermissionsExt;
    let (temp, root) = space();
    let bundle = archive(&[
        ('d', "./a/", ""),
        ('f', "./a/run.sh", "#!/bin/sh"),
        ('f', "b/c.txt", "hi"),
        ('l', "a/link", "../b/c.txt"),
        ('l', "a/out", "../../secret"),
        ('l', "abs", "/etc/passwd"),
        ('h', "hard", "b/c.txt"),
        ('p', "fifo", ""),
    ]);
    let report = unpack(&root, || &bundle[..], room(1 << 20)).unwrap();
    assert_eq!(report.files, 3);
    let skipped: Vec<_> = report.skipped.entries.iter().map(|e| (e.path.as_str(), e.reason.as_str())).collect();
    assert_eq!(skipped, [("fifo", "a named pipe")]);
    let space = temp.path().join("workspace");
    assert_eq!(std::fs::read_to_string(space.join("a/link")).unwrap(), "hi");
    assert_eq!(std::fs::metadata(space.join("a/run.sh")).unwrap().permissions().mode() & 0o777, 0o755);
    // Targets are unchanged: in the sandbox they lead to its own /etc, and ashd follows none.
    assert_eq!(std::fs::read_link(space.join("abs")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(std::fs::read_link(space.join("a/out")).unwrap(), Path::new("../../secret"));
    use std::os::unix::fs::MetadataExt;
    let ino = |name: &str| std::fs::symlink_metadata(space.join(name)).unwrap().ino();
    assert_eq!(ino("hard"), ino("b/c.txt"));
    assert!(!space.join("fifo").exists());
    assert_eq!(report.in_words(), "Workspace restored: 3 files; skipped or changed: 1");
}

#[test]
fn nothing_is_written_when_anything_is_wrong() {
    let (temp, root) = space();
    for (entries, status, text) in [
        (vec![('f', "ok", "x"), ('f', "../evil", "x")], 400, "bundle: \"../evil\" must not contain \"..\""),
        (vec![('f', "ok", "x"), ('f', "/evil", "x")], 400, "bundle: \"/evil\" must be relative"),
        (
            vec![('f', "ok", "x"), ('f', "big", "12345678901")],
            413,
            "bundle unpacks to more than the session's disk limit",
        ),
    ] {
        let bundle = archive(&entries);
        let error = unpack(&root, || &bundle[..], room(10)).unwrap_err();
        assert!(error.status() == status && error.text().starts_with(text), "{}", error.text());
    }
    for garbage in [&b"not a gzip"[..], &archive(&[('f', "ok", "x")])[..20]] {
        assert!(
            unpack(&root, || garbage, room(10)).unwrap_err().text().starts_with("bundle is not a readable tar archive")
        );
    }
    assert_eq!(std::fs::read_dir(temp.path().join("workspace")).unwrap().count(), 0);
    assert!(!temp.path().join("evil").exists());
}

#[test]
fn a_link_of_the_archive_is_no_way_out_for_its_files() {
    let (temp, root) = space();
    std::fs::create_dir(temp.path().join("workspace/inner")).unwrap();
    let bundle = archive(&[('l', "door", "inner"), ('f', "door/x", "x")]);
    let error = unpack(&root, || &bundle[..], room(1 << 20)).unwrap_err();
    assert!(error.text().contains("symbolic link"), "{}", error.text());
    assert!(!temp.path().join("workspace/inner/x").exists());
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut gz, tar).unwrap();
    gz.finish().unwrap()
}

/// An entry of any kind that claims `size` bytes and has `content`.
fn entry(kind: u8, name: &str, size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_size(size);
    header.set_entry_type(EntryType::new(kind));
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn headers_are_held_up_to_a_bound_whatever_they_say() {
    let (temp, root) = space();
    let file = entry(b'0', "ok", 1, b"x");
    let many = entry(b'x', "pax", 6, b"6 a=b\n").repeat(17);
    for (kind, text) in [(b'L', "a header of"), (b'K', "a header of"), (b'x', "a header of"), (b'g', "a header of")] {
        let bundle = gzip(&[file.clone(), entry(kind, "long", 1 << 40, b"")].concat());
        let error = unpack(&root, || &bundle[..], room(1 << 50)).unwrap_err();
        assert!(error.text().contains(text), "{}: {}", kind as char, error.text());
    }
    let bundle = gzip(&[file, many].concat());
    let error = unpack(&root, || &bundle[..], room(1 << 20)).unwrap_err();
    assert!(error.text().contains("more than 16 headers"), "{}", error.text());
    assert_eq!(std::fs::read_dir(temp.path().join("workspace")).unwrap().count(), 0);
}

proptest::proptest! {
    /// Reading any archive ends, with an error or a report.
    #[test]
    fn no_archive_breaks_the_reader(mut blocks in proptest::collection::vec(proptest::num::u8::ANY, 0..4096), kind in "[0-9LKxgS]", flip in 0_usize..512) {
        let mut tar = entry(kind.as_bytes()[0], "name", 700, &blocks[..blocks.len().min(700)]);
        let at = flip % tar.len();
        tar[at] = tar[at].wrapping_add(1);
        tar.append(&mut blocks);
        let bundle = gzip(&tar);
        let mut to = tempfile::tempfile().unwrap();
        let _ = each(&bundle[..], 1 << 20, |_, _, content| {
            let _ = content.write_to(&mut to);
            Ok(())
        });
    }
}

#[test]
fn directories_get_their_modes_and_times_when_they_are_left() {
    use std::os::unix::fs::MetadataExt;
    let (temp, root) = space();
    let mut tar = ash_archive::write::Writer::new(Vec::new());
    let meta = |mode, seconds| ash_archive::write::Meta { mode, modified: Time { seconds, nanoseconds: 5 } };
    tar.directory(Path::new("closed"), meta(0o500, 1_000)).unwrap();
    tar.bytes(Path::new("closed/file"), meta(0o000, 2_000), b"x").unwrap();
    tar.directory(Path::new("closed/empty"), meta(0o755, 3_000)).unwrap();
    tar.symlink(Path::new("link"), b"/nowhere", meta(0o777, 4_000)).unwrap();
    tar.hard_link(Path::new("second"), Path::new("closed/file"), meta(0o000, 0)).unwrap();
    let bundle = tar.finish().unwrap();
    for _ in 0..2 {
        // The second time over the existing files.
        assert_eq!(unpack(&root, || &bundle[..], room(1 << 20)).unwrap().files, 2);
        for (name, mode, seconds) in [
            ("closed", 0o500, 1_000),
            ("closed/file", 0, 2_000),
            ("closed/empty", 0o755, 3_000),
            ("link", 0o777, 4_000),
        ] {
            let meta = std::fs::symlink_metadata(temp.path().join("workspace").join(name)).unwrap();
            assert_eq!((meta.mode() & 0o777, meta.mtime(), meta.mtime_nsec()), (mode, seconds, 5), "{name}");
        }
        assert_eq!(std::fs::metadata(temp.path().join("workspace/second")).unwrap().nlink(), 2);
        assert_eq!(std::fs::read_dir(temp.path().join("workspace")).unwrap().count(), 3, "no staging name stays");
    }
}

#[test]
fn a_hard_link_leads_to_nothing_outside() {
    let (temp, root) = space();
    std::fs::write(temp.path().join("secret"), "outside").unwrap();
    std::os::unix::fs::symlink("..", temp.path().join("workspace/up")).unwrap();
    for (target, text) in [
        ("../secret", "must not contain"),
        ("/etc/passwd", "must be relative"),
        ("up/secret", "symbolic link"),
        ("none", "not found"),
    ] {
        let bundle = archive(&[('h', "hard", target)]);
        let error = unpack(&root, || &bundle[..], room(1 << 20)).unwrap_err();
        assert!(error.text().to_lowercase().contains(text), "{target}: {}", error.text());
        assert!(!temp.path().join("workspace/hard").exists());
    }
}

#[test]
fn what_is_replaced_makes_room_once() {
    let (temp, root) = space();
    let at = |name: &str| temp.path().join("workspace").join(name);
    std::fs::write(at("a"), vec![1; 40_960]).unwrap();
    std::fs::write(at("linked"), vec![1; 40_960]).unwrap();
    std::fs::hard_link(at("linked"), at("other name")).unwrap();
    let big = "x".repeat(40_960);
    let left = |left| Room { most: 1 << 20, left };
    let same = archive(&[('f', "a", &big)]);
    assert_eq!(unpack(&root, || &same[..], left(0)).unwrap().files, 1, "as large as what it replaces");
    for entries in [
        vec![('f', "a", "1"), ('f', "a", "1"), ('f', "b", big.as_str()), ('f', "c", big.as_str())],
        vec![('f', "linked", big.as_str())],
        vec![('f', "new", "1")],
    ] {
        let bundle = archive(&entries);
        let error = unpack(&root, || &bundle[..], left(0)).unwrap_err();
        assert!(error.text().contains("has left"), "{entries:?}: {}", error.text());
        assert!(!at("b").exists() && !at("new").exists(), "nothing is written");
    }
}
