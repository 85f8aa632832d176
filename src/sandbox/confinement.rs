//! The verdict on a sandbox: which layers are in force, from measurements inside and outside. Pure.
//!
//! ```text
//!   Measured (from within) --+
//!   Outside (namespaces of   +--> judge --> one verdict per layer --> Report
//!     ashd, cgroup files) ---+                    |
//!   Floor (configuration) ------------------------+--> missing: no session starts
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use ash_kernel::cgroup::LimitInForce;
use ash_kernel::probe::Measured;
use ash_model::Layer;

/// What is known of a sandbox from without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConfinementOutside)]
pub struct Outside {
    /// Inode numbers of ashd's own namespaces: none of the sandbox's may be among them.
    pub host_namespaces: BTreeMap<String, u64>,
    /// Directories of the sandbox's cgroups on the host.
    pub cgroups: Vec<String>,
    pub limits: Vec<LimitInForce>,
}

/// A layer, and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConfinementLayer)]
pub struct Verdict {
    pub layer: Layer,
    pub in_force: bool,
    /// Whether the floor asks for it.
    pub required: bool,
    /// What shows it, or what is wrong.
    pub evidence: String,
}

/// The minimum confinement of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    pub layers: Vec<Layer>,
    pub landlock_abi: u32,
}

/// The confinement of one sandbox, as it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Confinement)]
pub struct Report {
    /// Every layer that the floor asks for is in force.
    pub confined: bool,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub measured_at: String,
    /// Microseconds from the request to the answer of the probe, the start of its process included.
    pub took_micros: u64,
    pub layers: Vec<Verdict>,
    pub outside: Outside,
    pub inside: Measured,
}

impl Report {
    pub fn new(inside: Measured, outside: Outside, floor: &Floor, measured_at: String, took_micros: u64) -> Self {
        let layers = judge(&inside, &outside, floor);
        let confined = layers.iter().all(|verdict| verdict.in_force || !verdict.required);
        Self { confined, measured_at, took_micros, layers, outside, inside }
    }

    /// Why the session cannot start: each missing layer with its reason and the fix.
    pub fn missing(&self) -> Option<String> {
        let lacking = self.layers.iter().filter(|verdict| verdict.required && !verdict.in_force);
        let texts: Vec<String> =
            lacking.map(|v| format!("{} is not in force ({}); {}", v.layer, v.evidence, v.layer.way_out())).collect();
        (!texts.is_empty()).then(|| {
            format!(
                "{}. An admin can lower the floor by name: [confinement] floor = [\"all\", \"-<layer>\"] in ashd.toml",
                texts.join("; ")
            )
        })
    }

    /// Workloads that should work inside and do not.
    pub fn broken(&self) -> Vec<String> {
        let failed = self.inside.probes.iter().filter(|probe| probe.layer.is_none() && !probe.ok);
        failed.map(|probe| format!("{}: {}", probe.name, probe.observed)).collect()
    }
}

/// One verdict per layer: first the facts, then every probe of the layer.
pub fn judge(inside: &Measured, outside: &Outside, floor: &Floor) -> Vec<Verdict> {
    let verdict = |layer: Layer| {
        let facts = fact(layer, inside, outside, floor);
        let failed = inside.probes.iter().find(|probe| probe.layer == Some(layer) && !probe.ok);
        let (in_force, evidence) = match (facts, failed) {
            (Err(why), _) => (false, why),
            (Ok(_), Some(probe)) => {
                (false, format!("\"{}\": expected {}, got {}", probe.name, probe.expected, probe.observed))
            }
            (Ok(evidence), None) => (true, evidence),
        };
        Verdict { layer, in_force, required: floor.layers.contains(&layer), evidence }
    };
    Layer::ALL.into_iter().map(verdict).collect()
}

fn fact(layer: Layer, inside: &Measured, outside: &Outside, floor: &Floor) -> Result<String, String> {
    let check = |holds: bool, evidence: String| if holds { Ok(evidence) } else { Err(evidence) };
    match layer {
        Layer::UserNamespace => {
            let own = own_namespace("user", inside, outside)?;
            let root = [&inside.uid_map, &inside.gid_map]
                .iter()
                .any(|map| map.is_empty() || map.iter().any(|[in_, out, count]| *in_ == 0 || *out == 0 || *count > 2));
            check(!root && inside.uid != 0 && inside.gid != 0, format!("{own}, uid map {:?}", inside.uid_map))
        }
        Layer::MountNamespace => {
            let own = own_namespace("mnt", inside, outside)?;
            if let Some(mount) = inside.mounts.iter().find(|mount| !mount.has("nosuid")) {
                return Err(format!("the mount {} is not nosuid", mount.path));
            }
            let system = inside.mounts.iter().find(|mount| mount.path == "/usr");
            check(system.is_some_and(|mount| mount.has("ro")), format!("{own}, {} mounts", inside.mounts.len()))
        }
        Layer::PidNamespace => own_namespace("pid", inside, outside),
        Layer::IpcNamespace => own_namespace("ipc", inside, outside),
        Layer::UtsNamespace => own_namespace("uts", inside, outside),
        Layer::CgroupNamespace => {
            let own = own_namespace("cgroup", inside, outside)?;
            let leaks =
                inside.cgroups.iter().find(|line| line.rsplit(':').next().is_some_and(|path| path.contains("..")));
            leaks.map_or(Ok(own), |line| Err(format!("a group outside the namespace: {line}")))
        }
        Layer::NetworkNamespace => {
            let own = own_namespace("net", inside, outside)?;
            check(inside.interfaces == ["lo"], format!("{own}, interfaces {:?}", inside.interfaces))
        }
        Layer::Landlock => {
            let found = inside.landlock_abi;
            check(found >= floor.landlock_abi.max(1), format!("ABI {found}, the floor is {}", floor.landlock_abi))
        }
        Layer::Seccomp => check(
            inside.seccomp_mode == 2 && inside.seccomp_filters > 0,
            format!("mode {}, {} filters", inside.seccomp_mode, inside.seccomp_filters),
        ),
        Layer::Capabilities if inside.capabilities.none() => Ok("none in any of the five sets".to_owned()),
        Layer::Capabilities => Err(format!("{:?}", inside.capabilities)),
        Layer::NoNewPrivs => check(inside.no_new_privs, format!("no_new_privs {}", u8::from(inside.no_new_privs))),
        Layer::MemoryLimit => limit("memoryBytes", outside),
        Layer::CpuLimit => limit("cpuMillis", outside),
        Layer::PidsLimit => limit("pids", outside),
    }
}

fn own_namespace(name: &str, inside: &Measured, outside: &Outside) -> Result<String, String> {
    match (inside.namespaces.get(name), outside.host_namespaces.get(name)) {
        (Some(own), Some(host)) if own != host => Ok(format!("{name}:[{own}], the host's is {host}")),
        (Some(_), Some(_)) => Err(format!("the {name} namespace is the host's")),
        _ => Err(format!("the {name} namespace could not be read")),
    }
}

fn limit(name: &str, outside: &Outside) -> Result<String, String> {
    match outside.limits.iter().find(|limit| limit.name == name) {
        Some(limit) if limit.enforced => Ok(format!("{} in {}", limit.value.unwrap_or(0), limit.source)),
        Some(limit) => Err(limit.source.clone()),
        None => Err("not read".to_owned()),
    }
}

#[cfg(test)]
#[path = "confinement_tests.rs"]
mod tests;
