//! Swap of the host during a test: zram if the kernel has it, otherwise a file. Removed even if the
//! test fails. when the test fails.

use std::path::{Path, PathBuf};
use std::process::Command;

const CONTROL: &str = "/sys/class/zram-control";

/// Dropped after the daemon: otherwise its contents would have to come back into memory.
pub enum Swap {
    Zram(u32),
    File(PathBuf),
}

impl Swap {
    /// Creates swap for this many bytes, before compression.
    pub fn make(bytes: u64) -> Self {
        if !Path::new(CONTROL).exists() {
            // Neither a kernel with built-in zram nor one without it has this module.
            let _ = Command::new("modprobe").arg("zram").output();
        }
        if !Path::new(CONTROL).exists() {
            return Self::in_file(bytes);
        }
        let number = std::fs::read_to_string(format!("{CONTROL}/hot_add")).unwrap().trim().parse().unwrap();
        let swap = Self::Zram(number);
        std::fs::write(format!("/sys/block/zram{number}/disksize"), bytes.to_string()).unwrap();
        swap.on();
        swap
    }

    fn in_file(bytes: u64) -> Self {
        let path = PathBuf::from(format!("/var/tmp/ashd-test-swap-{}", std::process::id()));
        let swap = Self::File(path.clone());
        run("fallocate", &["-l", &bytes.to_string(), path.to_str().unwrap()]);
        run("chmod", &["600", path.to_str().unwrap()]);
        swap.on();
        swap
    }

    fn device(&self) -> String {
        match self {
            Self::Zram(number) => format!("/dev/zram{number}"),
            Self::File(path) => path.display().to_string(),
        }
    }

    fn on(&self) {
        run("mkswap", &[&self.device()]);
        run("swapon", &[&self.device()]);
    }

    /// Bytes held, and the memory that they take compressed (none for a file).
    pub fn held(&self) -> (u64, u64) {
        match self {
            Self::Zram(number) => {
                let text = std::fs::read_to_string(format!("/sys/block/zram{number}/mm_stat")).unwrap();
                let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
                // The third field is the total memory with all overhead.
                (numbers[0], numbers[2])
            }
            Self::File(path) => {
                let text = std::fs::read_to_string("/proc/swaps").unwrap();
                let line = text.lines().find(|line| line.starts_with(&*path.to_string_lossy())).unwrap();
                (line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap() * 1024, 0)
            }
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let said = Command::new(program).args(arguments).output().unwrap();
    assert!(said.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
}

impl Drop for Swap {
    fn drop(&mut self) {
        let off = Command::new("swapoff").arg(self.device()).output();
        match self {
            Self::Zram(number) => drop(std::fs::write(format!("{CONTROL}/hot_remove"), number.to_string())),
            Self::File(path) => drop(std::fs::remove_file(path)),
        }
        assert!(off.unwrap().status.success() || std::thread::panicking(), "swapoff");
    }
}
