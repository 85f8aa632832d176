//! The sandbox's `/proc`: writes quotas through it, then covers entries about the host
//! ([`policy::proc`]).

use std::ffi::CString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::steps::Steps;
use crate::policy::{
    proc as policy,
    quotas::{NETWORK, QUOTAS},
};
use ash_kernel::mounts;
use ash_protocol::launcher::Failure;

/// A file with the text of `/proc/version`, and an empty directory. Both are mounted over others,
/// and are in a directory that [`crate::policy::landlock`] only allows to list.
const VERSION: &str = "opt/.version";
const EMPTY: &str = "opt/.empty";

/// Mounts `proc` in the working directory, which is the new root.
pub fn make(steps: &mut Steps) -> Result<(), Failure> {
    steps.run("mount proc", || mounts::proc(c"proc"))?;
    // Here, because this /proc is writable until it is covered, and everything except the cgroup
    // namespace exists.
    steps.run("quotas", quotas)?;
    steps.run("mask proc", mask)
}

/// Limits the users of this namespace. Needs `CAP_SYS_RESOURCE` and `CAP_NET_ADMIN` in it.
fn quotas() -> io::Result<()> {
    let of = |below: &'static str| move |(name, value, _): &(&str, u32, &str)| (format!("{below}/{name}"), *value);
    for (name, value) in QUOTAS.iter().map(of("user")).chain(NETWORK.iter().map(of("net"))) {
        match std::fs::write(format!("proc/sys/{name}"), value.to_string()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io::Error::new(error.kind(), format!("{name}: {error}")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mask() -> io::Result<()> {
    let release = std::fs::read_to_string("proc/sys/kernel/osrelease")?;
    let mut version = std::fs::File::options().write(true).create_new(true).mode(0o444).open(VERSION)?;
    version.write_all(policy::version(release.trim()).as_bytes())?;
    std::fs::DirBuilder::new().mode(0o555).create(EMPTY)?;
    mounts::bind_read_only(c"proc/sys", c"proc/sys")?;
    for entry in std::fs::read_dir("proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.as_bytes().first().is_some_and(u8::is_ascii_digit);
        let kept = policy::KEPT.iter().any(|(kept, _)| name == *kept);
        if !process && !kept && !entry.file_type()?.is_symlink() {
            cover(&entry.path())?;
        }
    }
    for (name, _why) in policy::COVERED {
        cover(&Path::new("proc").join(name))?;
    }
    mounts::bind(&path(Path::new(VERSION))?, c"proc/version")
}

/// Covers with an empty directory, or a file that reads as empty. Each cover is a mount (8 us), so
/// entries of root alone get none.
fn cover(at: &Path) -> io::Result<()> {
    let meta = match at.symlink_metadata() {
        Ok(meta) => meta,
        // An entry that this kernel does not have needs no cover.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let with = if meta.is_dir() { Path::new(EMPTY) } else { Path::new("dev/null") };
    if meta.mode() & 0o006 != 0 {
        mounts::bind(&path(with)?, &path(at)?)?;
    }
    Ok(())
}

fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
