//! Number of parked sandboxes of a test's daemon: none by default, so that a test can count its
//! own. `ASH_TEST_PARKED=1` sets the default.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Daemon;

pub(super) fn configure(dir: &Path, count: Option<u32>) {
    let asked = || match std::env::var("ASH_TEST_PARKED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("ASH_TEST_PARKED={text} is no whole number")),
        Err(_) => 0,
    };
    write(dir, count.unwrap_or_else(asked));
}

/// Written as a drop-in: a test's own lines may already have a section `[pool]`.
fn write(dir: &Path, count: u32) {
    let drop_ins = dir.join("ashd.toml.d");
    fs::create_dir_all(&drop_ins).unwrap();
    fs::write(drop_ins.join("parked.toml"), format!("[pool]\nparked = {count}\n")).unwrap();
}

impl Daemon {
    pub fn park(&self, count: u32) {
        write(&self.dir, count);
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGHUP).unwrap();
    }
}
