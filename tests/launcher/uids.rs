//! Uids are not reused while anything of their last owner may exist, nor soon after.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ash_launcher::uids::SHARED;
use ash_model::Limits;
use ashd::sandbox::Launcher;
use nix::sys::signal::Signal;

use crate::host::{Host, request, wait_for};

/// Pairs of uids of a test's launcher.
const PAIRS: usize = 32;

async fn one(host: &Host, launcher: &Launcher) -> u32 {
    let sandbox = host.sandbox(launcher, Limits::default()).await;
    launcher.destroy(sandbox.id()).await.expect("destroyed");
    sandbox.info.uid
}

/// The uids of a whole round of the range, plus one.
async fn round(host: &Host, launcher: &Launcher) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for _ in 0..=PAIRS {
        all.insert(one(host, launcher).await);
    }
    all
}

fn taken(uid: u32) -> bool {
    let there = |uid: u32| Path::new(SHARED).join(uid.to_string()).exists();
    assert_eq!(there(uid), there(uid + 1), "one of a pair");
    there(uid)
}

/// Groups nested deeper than a removal searches: they keep the sandbox's own group from being
/// removed.
struct Busy(PathBuf);

impl Busy {
    fn in_group(group: &Path) -> Self {
        let deepest = group.join("a/b/c/d/e/f/g/h/i/j/k/l");
        std::fs::create_dir_all(&deepest).expect("groups");
        Self(group.join("a"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut all: Vec<PathBuf> = walkdir::WalkDir::new(&self.0)
            .into_iter()
            .flatten()
            .filter(|entry| entry.file_type().is_dir())
            .map(|entry| entry.path().to_owned())
            .collect();
        all.reverse();
        for dir in all {
            std::fs::remove_dir(dir).ok();
        }
    }
}

#[tokio::test]
async fn uids_go_round_the_range_over_every_kind_of_restart() {
    let mut host = Host::start("round");
    let mut launcher = host.client().await;
    let mut seen = BTreeSet::new();
    for what in ["first", "again", "killed", "anew", "ended"] {
        match what {
            "killed" => {
                host.signal(Signal::SIGKILL);
                assert!(!host.ended());
                host.launch();
                launcher = host.client().await;
            }
            "anew" => {
                let before = host.log().matches("ready").count();
                host.signal(Signal::SIGUSR2);
                wait_for("the new program", || host.log().matches("ready").count() > before);
            }
            "ended" => {
                host.signal(Signal::SIGTERM);
                assert!(host.ended());
                host.launch();
                launcher = host.client().await;
            }
            _ => {}
        }
        for _ in 0..2 {
            let uid = one(&host, &launcher).await;
            assert!(
                seen.insert(uid),
                "{what}: uid {uid} is given again although others were free for longer: {seen:?}"
            );
            assert!(!taken(uid));
        }
    }
    assert_eq!(round(&host, &launcher).await.len(), PAIRS, "in the end each is given again");
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_removed_keeps_its_uids() {
    let host = Host::start("keeps");
    let launcher = host.client().await;
    let stuck = host.sandbox(&launcher, Limits::default()).await;
    let (id, uid) = (stuck.id(), stuck.info.uid);
    let busy = Busy::in_group(&stuck.info.cgroup.unified);
    let refused = launcher.destroy(id).await.expect_err("its group is busy").to_string();
    assert!(refused.contains("remove cgroups"), "{refused}");
    assert!(taken(uid), "its uids are not given back");
    let others = round(&host, &launcher).await;
    assert!(!others.contains(&uid) && others.len() == PAIRS - 1, "{uid} was given to another: {others:?}");
    drop(busy);
    launcher.destroy(id).await.expect("asked again");
    assert!(!taken(uid));
}

#[tokio::test]
async fn a_creation_that_cannot_be_undone_keeps_its_uids_over_a_restart() {
    let mut host = Host::start("undone");
    let mut launcher = host.client().await;
    let id = host.session();
    let group = host.groups().into_iter().find(|group| group.join("cgroup.kill").exists()).expect("a v2 group");
    let own = group.join("tenants/default").join(id.to_string());
    std::fs::create_dir_all(&own).expect("a group of that name");
    let busy = Busy::in_group(&own);
    let failed = launcher.create(request(id, Limits::default())).await.expect_err("the group is in use").to_string();
    assert!(failed.contains("make cgroups"), "{failed}");
    let dead = launcher.list().await.expect("listed");
    assert_eq!(dead.iter().map(|info| (info.id, info.pid)).collect::<Vec<_>>(), [(id, 0)], "it is told");
    let uid = dead[0].uid;
    assert!(taken(uid));
    // Also for the next launcher.
    host.signal(Signal::SIGKILL);
    assert!(!host.ended());
    host.launch();
    launcher = host.client().await;
    let others = round(&host, &launcher).await;
    assert!(!others.contains(&uid) && others.len() == PAIRS - 1, "{uid} was given to another: {others:?}");
    drop(busy);
    launcher.destroy(id).await.expect("destroyed");
    assert!(!taken(uid) && host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[tokio::test]
async fn processes_without_a_record_keep_their_uids() {
    let mut host = Host::start("unrecorded");
    let mut launcher = host.client().await;
    let lost = host.sandbox(&launcher, Limits::default()).await;
    let (id, uid) = (lost.id(), lost.info.uid);
    host.signal(Signal::SIGKILL);
    assert!(!host.ended());
    // As left by an earlier launcher, and by an admin who cleaned up by hand.
    std::fs::remove_dir_all(host.run_dir().join("sandboxes").join(id.to_string())).expect("removed");
    for name in [uid, uid + 1] {
        std::fs::remove_file(Path::new(SHARED).join(name.to_string())).expect("removed");
    }
    // The search would try it first.
    let pointer = format!("next-{}-{}", host.uids().start, host.uids().len());
    std::fs::write(Path::new(SHARED).join(pointer), format!("{}\n", (uid - host.uids().start) / 2)).expect("written");
    host.launch();
    launcher = host.client().await;
    let others = round(&host, &launcher).await;
    assert!(!others.contains(&uid) && others.len() == PAIRS - 1, "{uid} was given to another: {others:?}");
    launcher.destroy(id).await.expect("by its id");
    assert!(!taken(uid));
}

#[tokio::test]
async fn two_launchers_with_one_range_share_no_uid() {
    let host = Host::start("range-a");
    let other = Host::start_sharing("range-b", &host);
    let (launcher, second) = (host.client().await, other.client().await);
    let mut used = BTreeSet::new();
    let mut all = Vec::new();
    for _ in 0..4 {
        for (host, launcher) in [(&host, &launcher), (&other, &second)] {
            let sandbox = host.sandbox(launcher, Limits::default()).await;
            assert!(used.insert(sandbox.info.uid), "{} is given twice: {used:?}", sandbox.info.uid);
            assert_eq!(sandbox.info.init_uid, sandbox.info.uid + 1);
            all.push((launcher, sandbox));
        }
    }
    for (launcher, sandbox) in all {
        launcher.destroy(sandbox.id()).await.expect("destroyed");
    }
}
