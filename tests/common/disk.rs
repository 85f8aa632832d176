//! A disk for one daemon that a test can break: ext4 in a file. When it fails, the kernel turns it
//! read-only for all users, and unwritten data is lost: a failing disk and a power failure at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Creates a disk of this size (`64m`) in the file `image`, and mounts it at `at`.
    pub fn make(image: PathBuf, at: PathBuf, size: &str) -> Self {
        let disk = Self { image, at };
        run(Command::new("truncate").args(["-s", size]).arg(&disk.image));
        run(Command::new("mkfs.ext4").arg("-q").arg(&disk.image));
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(&self.image).arg(&self.at));
    }

    /// From now on nothing reaches the disk.
    pub fn fail(&self) {
        let said = Command::new("losetup").arg("-j").arg(&self.image).output().unwrap();
        let line = String::from_utf8_lossy(&said.stdout).into_owned();
        let device = line.split(':').next().and_then(|path| path.strip_prefix("/dev/")).expect("its loop device");
        fs::write(Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error"), "1").unwrap();
    }

    /// Repairs it as an admin would, once it is unused.
    pub fn repair(&self) {
        let start = Instant::now();
        while nix::mount::umount(&self.at).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "{} is still in use", self.at.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        // 1: errors were corrected (e2fsck(8)).
        let said = Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image).output().unwrap();
        assert!(matches!(said.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&said.stdout));
        self.mount();
    }
}

fn run(command: &mut Command) {
    let said = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(said.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said.stderr));
}
