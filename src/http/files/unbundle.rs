//! A tar.gz into a workspace. It is read twice: once to judge all of it, and only then to write.
//!
//! Every entry is written by [`super::write`], beneath the root and through no link, so that an archive which first
//! makes a link and then a file below it gets an error instead of a way out.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use super::super::error::ApiError;
use super::{path, write};

/// Most entries of an archive.
const MAX_ENTRIES: usize = 200_000;

/// What became of an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub files: usize,
    /// Links that lead out of the workspace, hard links, devices: left out.
    pub left_out: usize,
}

impl Report {
    pub fn in_words(&self) -> String {
        let files = match self.files {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        match self.left_out {
            0 => format!("Workspace restored: {files}"),
            n => format!(
                "Workspace restored: {files}; {n} left out (links that leave the workspace, hard links, devices)"
            ),
        }
    }
}

enum Item {
    Directory(PathBuf),
    File(PathBuf, u32),
    Link(PathBuf, PathBuf),
    LeftOut,
    /// Extended headers of the format itself.
    Nothing,
}

/// Unpacks `archive` beneath `root`; its files may hold `max_bytes` together.
pub fn unpack(root: &File, archive: &[u8], max_bytes: u64) -> Result<Report, ApiError> {
    each(archive, max_bytes, |_, _| Ok(()))?;
    let mut report = Report::default();
    each(archive, max_bytes, |item, content| {
        let (path, result) = match item {
            Item::Directory(path) => {
                let made = write::make_directory(root, &path).map(drop);
                (path, made)
            }
            Item::File(path, mode) => {
                report.files += 1;
                let written = write::put(root, &path, content, mode);
                (path, written)
            }
            Item::Link(path, target) => {
                let made = write::link(root, &path, &target);
                (path, made)
            }
            Item::LeftOut => {
                report.left_out += 1;
                return Ok(());
            }
            Item::Nothing => return Ok(()),
        };
        result.map_err(|why| why.for_client(&path.display().to_string()))
    })?;
    Ok(report)
}

/// Walks the archive with all its checks.
fn each(
    archive: &[u8],
    max_bytes: u64,
    mut visit: impl FnMut(Item, &mut dyn Read) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let broken = |why: io::Error| ApiError::bad_request(format!("bundle is not a readable tar.gz: {why}"));
    // Headers and padding cost bytes too; without a bound a small bomb would keep us unpacking for hours.
    let bound = max_bytes.saturating_add(MAX_ENTRIES as u64 * 2048);
    let mut tar = Archive::new(GzDecoder::new(archive).take(bound));
    let (mut entries, mut bytes) = (0, 0_u64);
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if entries > MAX_ENTRIES {
            return Err(ApiError::too_large(format!("bundle has more than {MAX_ENTRIES} entries")));
        }
        if bytes > max_bytes {
            return Err(ApiError::too_large(format!(
                "bundle unpacks to more than the session's {max_bytes} bytes of disk"
            )));
        }
        let item = judge(&entry)?;
        visit(item, &mut entry)?;
    }
    Ok(())
}

fn judge<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Item, ApiError> {
    let name = entry.path_bytes();
    let name =
        std::str::from_utf8(&name).map_err(|_| ApiError::bad_request("bundle holds a path that is not UTF-8"))?;
    let wrong = |why: String| ApiError::bad_request(format!("bundle: {why}"));
    let mode = entry.header().mode().unwrap_or(0o644);
    Ok(match entry.header().entry_type() {
        EntryType::Directory => Item::Directory(path::directory(name).map_err(wrong)?),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mode = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
            Item::File(path::relative(name).map_err(wrong)?, mode)
        }
        EntryType::Symlink => {
            let path = path::relative(name).map_err(wrong)?;
            match entry.link_name() {
                Ok(Some(target)) if stays_inside(&path, &target) => Item::Link(path, target.into_owned()),
                _ => Item::LeftOut,
            }
        }
        EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
            Item::Nothing
        }
        _ => Item::LeftOut,
    })
}

/// Whether a link at `path` to `target` ends in the workspace, by its words.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() - 1;
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    !target.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
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
            // Written by hand: the crate itself refuses the paths that are tested here.
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

    fn space() -> (tempfile::TempDir, File) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("workspace")).unwrap();
        let root = beneath::root(&temp.path().join("workspace")).unwrap();
        (temp, root)
    }

    #[test]
    fn files_modes_and_links_that_stay() {
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
        let report = unpack(&root, &bundle, 1 << 20).unwrap();
        assert_eq!(report, Report { files: 2, left_out: 4 });
        let space = temp.path().join("workspace");
        assert_eq!(std::fs::read_to_string(space.join("a/link")).unwrap(), "hi");
        assert_eq!(std::fs::metadata(space.join("a/run.sh")).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(!space.join("abs").is_symlink() && !space.join("a/out").is_symlink() && !space.join("fifo").exists());
        assert!(report.in_words().starts_with("Workspace restored: 2 files; 4 left out"));
    }

    #[test]
    fn nothing_is_written_when_anything_is_wrong() {
        let (temp, root) = space();
        for (entries, status, text) in [
            (vec![('f', "ok", "x"), ('f', "../evil", "x")], 400, "bundle: \"../evil\" must not contain \"..\""),
            (vec![('f', "ok", "x"), ('f', "/evil", "x")], 400, "bundle: \"/evil\" must be relative"),
            (vec![('f', "ok", "x"), ('f', "big", "12345678901")], 413, "bundle unpacks to more than the session's 10"),
        ] {
            let error = unpack(&root, &archive(&entries), 10).unwrap_err();
            assert!(error.status() == status && error.text().starts_with(text), "{}", error.text());
        }
        for garbage in [&b"not a gzip"[..], &archive(&[('f', "ok", "x")])[..20]] {
            assert!(unpack(&root, garbage, 10).unwrap_err().text().starts_with("bundle is not a readable tar.gz"));
        }
        assert_eq!(std::fs::read_dir(temp.path().join("workspace")).unwrap().count(), 0);
        assert!(!temp.path().join("evil").exists());
    }

    #[test]
    fn a_link_of_the_archive_is_no_way_out_for_its_files() {
        let (temp, root) = space();
        std::fs::create_dir(temp.path().join("workspace/inner")).unwrap();
        let bundle = archive(&[('l', "door", "inner"), ('f', "door/x", "x")]);
        let error = unpack(&root, &bundle, 1 << 20).unwrap_err();
        assert!(error.text().contains("symbolic link"), "{}", error.text());
        assert!(!temp.path().join("workspace/inner/x").exists());
    }
}
