//! Created and ended sessions: what they leave in memory, descriptors and on the host.

use std::time::Duration;

use super::{Daemon, leftovers};

/// Sessions that live at the same time.
const AT_ONCE: usize = 5;
/// Time for late releases: the task of an ended session rests after a second.
const SETTLE: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Bytes of private memory.
    pub bytes: u64,
    pub descriptors: usize,
}

impl Size {
    fn of(pid: i32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("smaps_rollup has it");
            line.trim().strip_suffix(" kB").expect("in kB").trim().parse().expect("a number")
        };
        // Clean pages of the program are private or shared depending on other running daemons.
        let bytes = (field("Private_Dirty:") + field("Swap:")) * 1024;
        Self { bytes, descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).expect("as root").count() }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Growth {
    pub ashd: [Size; 2],
    pub launcher: [Size; 2],
}

impl Growth {
    pub fn bytes([before, after]: [Size; 2]) -> i64 {
        after.bytes as i64 - before.bytes as i64
    }

    pub fn descriptors([before, after]: [Size; 2]) -> i64 {
        after.descriptors as i64 - before.descriptors as i64
    }
}

/// Creates and ends this many sessions of agent `a`, after `first` sessions that fill caches.
///
/// # Panics
/// A process or a group of a session is left.
pub async fn churn(daemon: &Daemon, first: usize, sessions: usize) -> Growth {
    let launcher = launcher(daemon);
    rounds(daemon, first).await;
    let ashd = i32::try_from(daemon.pid()).expect("a pid");
    let before = [Size::of(ashd), Size::of(launcher)];
    rounds(daemon, sessions).await;
    let after = [Size::of(ashd), Size::of(launcher)];
    Growth { ashd: [before[0], after[0]], launcher: [before[1], after[1]] }
}

async fn rounds(daemon: &Daemon, sessions: usize) {
    let api = daemon.api();
    let one = || async {
        let id = api.session("a").await;
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    };
    for _ in 0..sessions.div_ceil(AT_ONCE) {
        futures_util::future::join_all((0..AT_ONCE).map(|_| one())).await;
    }
    tokio::time::sleep(SETTLE).await;
    let left: Vec<_> = leftovers::cgroups(&daemon.cgroup)
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "tenants") && !path.ends_with("tenants"))
        .collect();
    assert!(left.is_empty(), "groups are left: {left:?}");
    let ours = leftovers::processes(daemon);
    let payload: Vec<_> = ours.iter().filter(|(_, name)| !name.contains("ash")).collect();
    assert!(payload.is_empty(), "processes are left: {payload:?}");
    let runs = std::fs::read_dir(daemon.run().join("sandboxes")).expect("the run directory").count();
    assert_eq!(runs, 0, "run directories are left");
}

/// The serving one of the two processes of that name.
fn launcher(daemon: &Daemon) -> i32 {
    let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let found = leftovers::processes(daemon).into_iter().map(|(pid, _)| pid);
    found
        .filter(|pid| of(*pid).split('\0').next().is_some_and(|program| program.ends_with("ash-launcher")))
        .max()
        .expect("a launcher")
}
