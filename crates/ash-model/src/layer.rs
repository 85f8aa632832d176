//! The layers of a sandbox, by the names used in session reports, `[confinement] floor`, errors and
//! doctor.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One layer of confinement. `docs/sandbox.md` describes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    UserNamespace,
    MountNamespace,
    PidNamespace,
    IpcNamespace,
    UtsNamespace,
    CgroupNamespace,
    NetworkNamespace,
    Landlock,
    Seccomp,
    Capabilities,
    NoNewPrivs,
    MemoryLimit,
    CpuLimit,
    PidsLimit,
}

impl Layer {
    pub const ALL: [Self; 14] = [
        Self::UserNamespace,
        Self::MountNamespace,
        Self::PidNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::NetworkNamespace,
        Self::Landlock,
        Self::Seccomp,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::MemoryLimit,
        Self::CpuLimit,
        Self::PidsLimit,
    ];

    /// The name on the wire and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserNamespace => "user_namespace",
            Self::MountNamespace => "mount_namespace",
            Self::PidNamespace => "pid_namespace",
            Self::IpcNamespace => "ipc_namespace",
            Self::UtsNamespace => "uts_namespace",
            Self::CgroupNamespace => "cgroup_namespace",
            Self::NetworkNamespace => "network_namespace",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivs => "no_new_privs",
            Self::MemoryLimit => "memory_limit",
            Self::CpuLimit => "cpu_limit",
            Self::PidsLimit => "pids_limit",
        }
    }

    /// What an administrator can do if the host lacks this layer.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::UserNamespace => {
                "allow user namespaces: sysctl user.max_user_namespaces (not 0) and kernel.apparmor_restrict_unprivileged_userns"
            }
            Self::Landlock => "add landlock to the lsm= line of the kernel's command line, or boot a newer kernel",
            Self::Seccomp => "boot a kernel with CONFIG_SECCOMP_FILTER",
            Self::MemoryLimit | Self::CpuLimit | Self::PidsLimit => {
                "enable the controller: systemd delegates it with Delegate=yes; in a container mount /sys/fs/cgroup writable"
            }
            _ => "this is a fault of ashd or of its host: run `ashctl doctor` and report its output",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Layer {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|layer| layer.as_str() == word)
            .ok_or_else(|| format!("no layer is named \"{word}\""))
    }
}

/// Parses a floor: layer names, `all`, and `-name` to remove a layer.
///
/// # Errors
/// The unknown layer name.
pub fn floor<S: AsRef<str>>(words: &[S]) -> Result<Vec<Layer>, String> {
    let mut layers = Vec::new();
    for word in words.iter().map(AsRef::as_ref) {
        match (word, word.strip_prefix('-')) {
            ("all", _) => layers = Layer::ALL.to_vec(),
            (_, Some(without)) => {
                let without: Layer = without.parse()?;
                layers.retain(|layer| *layer != without);
            }
            (name, None) => {
                let layer = name.parse()?;
                if !layers.contains(&layer) {
                    layers.push(layer);
                }
            }
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_wire() {
        for layer in Layer::ALL {
            assert_eq!(serde_json::to_string(&layer).unwrap(), format!("\"{layer}\""));
            assert_eq!(layer.as_str().parse::<Layer>(), Ok(layer));
        }
    }

    #[test]
    fn a_floor_is_lowered_by_name() {
        assert_eq!(floor(&["all"]).unwrap(), Layer::ALL);
        let lowered = floor(&["all", "-landlock"]).unwrap();
        assert_eq!((lowered.len(), lowered.contains(&Layer::Landlock)), (13, false));
        assert_eq!(floor(&["seccomp", "seccomp"]).unwrap(), [Layer::Seccomp]);
        assert!(floor(&["all", "-landlok"]).unwrap_err().contains("landlok"));
        assert!(floor::<&str>(&[]).unwrap().is_empty());
    }
}
