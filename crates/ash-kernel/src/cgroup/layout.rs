//! Detects the cgroup hierarchies of this host from `/proc/self/mountinfo` and `/proc/self/cgroup`.
//!
//! ```text
//!   cgroup2 mounted, no v1 limits       -> Unified  everything in one tree
//!   cgroup2 mounted beside v1 limits    -> Hybrid   limits from v1, everything else from v2
//!   no cgroup2                          -> refused  no kill, and no freeze that reports its end
//! ```
//!
//! Pure, without I/O, so that tests can use samples from other hosts.

use std::path::{Component, Path, PathBuf};

/// The v1 controllers with a limit of [`ash_model::Limits`].
pub const V1_CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "blkio"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    Unified {
        mount: PathBuf,
        /// Directory of the cgroup this process is in.
        own: PathBuf,
    },
    /// cgroup v1 controllers and a v2 hierarchy.
    Hybrid {
        unified: PathBuf,
        /// Mount of each existing v1 controller.
        memory: Option<PathBuf>,
        cpu: Option<PathBuf>,
        pids: Option<PathBuf>,
        blkio: Option<PathBuf>,
    },
}

/// Why no layout was detected. The text names cause and remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error(
        "no cgroup2 file system is mounted (only cgroup v1: {v1}); pausing and ending sandboxes needs cgroup v2: boot \
         with systemd.unified_cgroup_hierarchy=1, or mount it beside v1: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
    )]
    NoV2 {
        /// The v1 controllers found, or `none`.
        v1: String,
    },
    #[error("/proc/self/cgroup has no line that starts with \"0::\": this process is not in a v2 cgroup")]
    NotInV2,
    #[error(
        "this process's cgroup {path} is not below the part of the hierarchy mounted here ({root}): start it where its \
         own cgroup is visible (in a container: with --cgroupns=private)"
    )]
    Invisible { path: String, root: String },
}

/// One line of mountinfo, with the fields that cgroups need (proc_pid_mountinfo(5)).
struct Mount {
    /// The mounted directory of the file system (field 4).
    root: PathBuf,
    point: PathBuf,
    kind: String,
    options: String,
}

/// Decodes the octal escapes of mountinfo (`\040` is a space).
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let raw = field.as_bytes();
    let mut at = 0;
    while at < raw.len() {
        let octal = raw
            .get(at + 1..at + 4)
            .filter(|_| raw[at] == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()));
        match octal {
            Some(byte) => {
                bytes.push(byte);
                at += 4;
            }
            None => {
                bytes.push(raw[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes))
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (unescape(left.next()?), unescape(left.next()?));
        let mut right = right.split(' ');
        let kind = right.next()?.to_owned();
        let options = right.nth(1)?.to_owned();
        Some(Mount { root, point, kind, options })
    };
    mountinfo.lines().filter_map(parse).collect()
}

/// Detects the layout from the text of both files.
///
/// # Errors
/// See [`LayoutError`].
pub fn detect(mountinfo: &str, self_cgroup: &str) -> Result<Layout, LayoutError> {
    let mounts = mounts(mountinfo);
    // The last mount on a mount point hides the others, so the last match wins.
    let v1 = |controller: &str| {
        let has = |m: &&Mount| m.kind == "cgroup" && m.options.split(',').any(|option| option == controller);
        mounts.iter().rfind(has).map(|m| m.point.clone())
    };
    let [memory, cpu, pids, blkio] = V1_CONTROLLERS.map(v1);
    let Some(v2) = mounts.iter().rfind(|m| m.kind == "cgroup2") else {
        let found: Vec<&str> = V1_CONTROLLERS.into_iter().filter(|c| v1(c).is_some()).collect();
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        return Err(LayoutError::NoV2 { v1: found });
    };
    if memory.is_some() || cpu.is_some() || pids.is_some() {
        return Ok(Layout::Hybrid { unified: v2.point.clone(), memory, cpu, pids, blkio });
    }
    let own = self_cgroup.lines().find_map(|line| line.strip_prefix("0::")).ok_or(LayoutError::NotInV2)?;
    let below = Path::new(own).strip_prefix(&v2.root).ok().filter(|below| {
        // A cgroup outside of the namespace's root is shown as "/../x".
        below.components().all(|part| matches!(part, Component::Normal(_)))
    });
    match below {
        Some(below) if below.as_os_str().is_empty() => {
            Ok(Layout::Unified { mount: v2.point.clone(), own: v2.point.clone() })
        }
        Some(below) => Ok(Layout::Unified { mount: v2.point.clone(), own: v2.point.join(below) }),
        None => Err(LayoutError::Invisible { path: own.to_owned(), root: v2.root.display().to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE: &str = "24 30 0:22 / /proc rw - proc proc rw\n\
        30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        36 31 0:33 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const JOINED: &str = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_ONLY: &str = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    const CONTAINER: &str = "30 23 0:26 /machine/c1 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";
    const SPACE: &str = "30 23 0:26 / /run/my\\040cgroup rw - cgroup2 cgroup2 rw\n";

    fn unified(mount: &str, own: &str) -> Layout {
        Layout::Unified { mount: mount.into(), own: own.into() }
    }

    #[test]
    fn layouts() {
        let service = "0::/ash.slice/ash-launcher.service\n";
        let cases: [(&str, &str, &str, Layout); 6] = [
            ("pure v2", PURE, service, unified("/sys/fs/cgroup", "/sys/fs/cgroup/ash.slice/ash-launcher.service")),
            ("pure v2, at the root", PURE, "0::/\n", unified("/sys/fs/cgroup", "/sys/fs/cgroup")),
            (
                "v1 and v2, v1 lines first",
                HYBRID,
                "8:pids:/\n4:memory:/a/b\n0::/\n",
                Layout::Hybrid {
                    unified: "/sys/fs/cgroup/unified".into(),
                    memory: Some("/sys/fs/cgroup/memory".into()),
                    cpu: Some("/sys/fs/cgroup/cpu".into()),
                    pids: Some("/sys/fs/cgroup/pids".into()),
                    blkio: Some("/sys/fs/cgroup/blkio".into()),
                },
            ),
            (
                "cpu and cpuacct joined, no memory",
                JOINED,
                "0::/\n",
                Layout::Hybrid {
                    unified: "/sys/fs/cgroup/unified".into(),
                    memory: None,
                    cpu: Some("/sys/fs/cgroup/cpu,cpuacct".into()),
                    pids: None,
                    blkio: None,
                },
            ),
            ("a container's part", CONTAINER, "0::/machine/c1/x\n", unified("/sys/fs/cgroup", "/sys/fs/cgroup/x")),
            ("a space in the path", SPACE, "0::/\n", unified("/run/my cgroup", "/run/my cgroup")),
        ];
        for (name, mountinfo, own, want) in cases {
            assert_eq!(detect(mountinfo, own), Ok(want), "{name}");
        }
    }

    #[test]
    fn refusals_name_the_cause() {
        let v1 = detect(V1_ONLY, "4:memory:/\n").expect_err("no v2").to_string();
        assert!(v1.contains("memory, cpu") && v1.contains("cgroup2"), "{v1}");
        assert_eq!(detect("", ""), Err(LayoutError::NoV2 { v1: "none".into() }));
        assert_eq!(detect(PURE, "4:memory:/\n"), Err(LayoutError::NotInV2));
        let outside = detect(PURE, "0::/../other\n");
        assert!(matches!(outside, Err(LayoutError::Invisible { .. })), "{outside:?}");
        let elsewhere = detect(CONTAINER, "0::/user.slice\n");
        assert!(matches!(elsewhere, Err(LayoutError::Invisible { .. })), "{elsewhere:?}");
    }
}
