use super::*;
use ash_kernel::probe::{Capabilities, Mount, Probe};

fn good() -> (Measured, Outside, Floor) {
    let names = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"];
    let numbered = |from: u64| names.iter().zip(from..).map(|(name, n)| ((*name).to_owned(), n)).collect();
    let zero = || "0".repeat(16);
    let usr = Mount { path: "/usr".into(), kind: "ext4".into(), options: "ro,nosuid,nodev".into() };
    let probe = |layer, name: &str| Probe {
        name: name.into(),
        layer,
        expected: "EPERM".into(),
        observed: "EPERM".into(),
        ok: true,
    };
    let measured = Measured {
        landlock_abi: 7,
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
        uid_map: vec![[1000, 1_900_000_000, 1], [999, 1_900_000_001, 1]],
        gid_map: vec![[1000, 1_900_000_000, 1]],
        capabilities: Capabilities {
            inheritable: zero(),
            permitted: zero(),
            effective: zero(),
            bounding: zero(),
            ambient: zero(),
        },
        no_new_privs: true,
        seccomp_mode: 2,
        seccomp_filters: 2,
        namespaces: numbered(100),
        cgroups: vec!["0::/".into()],
        mounts: vec![usr],
        interfaces: vec!["lo".into()],
        listeners: Vec::new(),
        probes: vec![probe(Some(Layer::Landlock), "write /proc/self/comm"), probe(None, "a thread")],
        micros: 1,
    };
    let limit = |name: &str| LimitInForce { name: name.into(), value: Some(1), enforced: true, source: "f".into() };
    let outside = Outside {
        host_namespaces: numbered(1),
        cgroups: Vec::new(),
        limits: ["memoryBytes", "cpuMillis", "pids"].map(limit).to_vec(),
    };
    (measured, outside, Floor { layers: Layer::ALL.to_vec(), landlock_abi: 2 })
}

fn not_in_force(measured: &Measured, outside: &Outside, floor: &Floor) -> Vec<Layer> {
    judge(measured, outside, floor).into_iter().filter(|v| !v.in_force).map(|v| v.layer).collect()
}

#[test]
fn all_layers_hold() {
    let (measured, outside, floor) = good();
    assert_eq!(not_in_force(&measured, &outside, &floor), []);
    let report = Report::new(measured, outside, &floor, "now".into(), 1);
    assert!(report.confined && report.missing().is_none() && report.broken().is_empty());
}

#[test]
fn each_missing_layer_is_found_by_itself() {
    type Harm = fn(&mut Measured, &mut Outside);
    let table: [(Layer, Harm); 22] = [
        (Layer::UserNamespace, |m, o| {
            m.namespaces.insert("user".into(), o.host_namespaces["user"]);
        }),
        (Layer::UserNamespace, |m, _| m.uid_map = vec![[0, 1_900_000_000, 1]]),
        (Layer::UserNamespace, |m, _| m.gid_map = vec![[1000, 0, 1]]),
        (Layer::UserNamespace, |m, _| m.uid_map = vec![[1000, 5, 65_536]]),
        (Layer::UserNamespace, |m, _| m.uid_map.clear()),
        (Layer::MountNamespace, |m, o| {
            m.namespaces.insert("mnt".into(), o.host_namespaces["mnt"]);
        }),
        (Layer::MountNamespace, |m, _| m.mounts[0].options = "ro,nodev".into()),
        (Layer::MountNamespace, |m, _| m.mounts[0].options = "rw,nosuid".into()),
        (Layer::MountNamespace, |m, _| m.mounts.clear()),
        (Layer::PidNamespace, |m, o| {
            m.namespaces.insert("pid".into(), o.host_namespaces["pid"]);
        }),
        (Layer::IpcNamespace, |m, _| {
            m.namespaces.remove("ipc");
        }),
        (Layer::UtsNamespace, |_, o| {
            o.host_namespaces.remove("uts");
        }),
        (Layer::CgroupNamespace, |m, _| m.cgroups.push("0::/../other".into())),
        (Layer::NetworkNamespace, |m, _| m.interfaces.push("eth0".into())),
        (Layer::Landlock, |m, _| m.landlock_abi = 1),
        (Layer::Landlock, |m, _| m.probes[0].ok = false),
        (Layer::Seccomp, |m, _| m.seccomp_mode = 0),
        (Layer::Capabilities, |m, _| m.capabilities.bounding = "0000000000000020".into()),
        (Layer::NoNewPrivs, |m, _| m.no_new_privs = false),
        (Layer::MemoryLimit, |_, o| o.limits[0].enforced = false),
        (Layer::CpuLimit, |_, o| drop(o.limits.remove(1))),
        (Layer::PidsLimit, |_, o| o.limits[2].enforced = false),
    ];
    for (layer, harm) in table {
        let (mut measured, mut outside, floor) = good();
        harm(&mut measured, &mut outside);
        assert_eq!(not_in_force(&measured, &outside, &floor), [layer]);
        let report = Report::new(measured, outside, &floor, "now".into(), 1);
        let missing = report.missing().expect("below the floor");
        assert!(!report.confined && missing.starts_with(layer.as_str()) && missing.contains("floor"), "{missing}");
    }
}

#[test]
fn a_lowered_floor_lets_the_session_start_and_still_tells() {
    let (mut measured, outside, mut floor) = good();
    measured.landlock_abi = 0;
    floor.layers.retain(|layer| *layer != Layer::Landlock);
    let report = Report::new(measured, outside, &floor, "now".into(), 1);
    assert!(report.confined && report.missing().is_none());
    let landlock = report.layers.iter().find(|v| v.layer == Layer::Landlock).unwrap();
    assert!(!landlock.in_force && !landlock.required);
}

#[test]
fn what_should_work_is_told_and_does_not_stop_the_session() {
    let (mut measured, outside, floor) = good();
    measured.probes[1].ok = false;
    measured.probes[1].observed = "ENOSPC".into();
    let report = Report::new(measured, outside, &floor, "now".into(), 1);
    assert!(report.confined);
    assert_eq!(report.broken(), ["a thread: ENOSPC"]);
}
