//! Finds the disk of a directory, as the io controllers name it.
//!
//! ```text
//!   stat: device number -- 0:n (btrfs, overlay...) --> the mount's source, if a block device
//!           |
//!           v
//!   /sys/dev/block/<major>:<minor>/partition?  -- yes --> the whole disk
//! ```
//!
//! The kernel refuses limits on a partition (ENODEV).

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// `<major>:<minor>` of the disk that holds `dir`.
///
/// # Errors
/// The reason, as text: the file system is not on a disk of this host (tmpfs, NFS, ZFS).
pub fn disk_of(dir: &Path) -> Result<String, String> {
    let device = std::fs::metadata(dir).map_err(|e| format!("{}: {e}", dir.display()))?.dev();
    let device = if rustix::fs::major(device) == 0 { source_of(dir, device)? } else { device };
    Ok(whole(Path::new("/sys/dev/block"), &text(device)))
}

fn text(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// The block device of a file system with a device number of its own.
fn source_of(dir: &Path, device: u64) -> Result<u64, String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let (kind, source) = parse_source(&mounts, &text(device))
        .ok_or_else(|| format!("the mount that holds {} cannot be found", dir.display()))?;
    let none = || format!("{} is on {kind}, which is not on a disk with I/O limits", dir.display());
    let meta = std::fs::metadata(source).map_err(|_| none())?;
    if meta.file_type().is_block_device() { Ok(meta.rdev()) } else { Err(none()) }
}

/// Type and source of the mount with this device (proc_pid_mountinfo(5)).
fn parse_source<'a>(mounts: &'a str, device: &str) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        (left.split(' ').nth(2)? == device).then_some((right.next()?, right.next()?))
    })
}

/// The disk of a partition. Any other device is a disk itself.
fn whole(sys: &Path, device: &str) -> String {
    let own = sys.join(device);
    if !own.join("partition").exists() {
        return device.to_owned();
    }
    // The directory is a link to .../sda/sda1.
    let above = own.canonicalize().ok().and_then(|path| std::fs::read_to_string(path.parent()?.join("dev")).ok());
    above.map_or_else(|| device.to_owned(), |above| above.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_on_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let devices = dir.path().join("devices/sda/sda1");
        std::fs::create_dir_all(&devices).unwrap();
        std::fs::write(devices.join("partition"), "1\n").unwrap();
        std::fs::write(devices.join("dev"), "8:1\n").unwrap();
        std::fs::write(dir.path().join("devices/sda/dev"), "8:0\n").unwrap();
        let sys = dir.path().join("block");
        std::fs::create_dir(&sys).unwrap();
        std::os::unix::fs::symlink("../devices/sda/sda1", sys.join("8:1")).unwrap();
        std::os::unix::fs::symlink("../devices/sda", sys.join("8:0")).unwrap();
        assert_eq!(
            (whole(&sys, "8:1"), whole(&sys, "8:0"), whole(&sys, "253:2")),
            ("8:0".into(), "8:0".into(), "253:2".into())
        );
    }

    #[test]
    fn the_source_of_a_mount() {
        let mounts =
            "22 1 0:20 /sub /data rw shared:1 - btrfs /dev/sda2 rw,subvol=/sub\n23 1 0:21 / /run rw - tmpfs tmpfs rw\n";
        assert_eq!(parse_source(mounts, "0:20"), Some(("btrfs", "/dev/sda2")));
        assert_eq!(parse_source(mounts, "0:21"), Some(("tmpfs", "tmpfs")));
        assert_eq!(parse_source(mounts, "0:22"), None);
    }

    #[test]
    fn no_disk_is_told_with_its_file_system() {
        let error = disk_of(Path::new("/proc")).unwrap_err();
        assert!(error.contains("/proc is on proc"), "{error}");
    }
}
