//! The permissions of a payload as data: each entry with its reason.

pub mod etc;
pub mod landlock;
pub mod proc;
pub mod quotas;
pub mod rlimits;
pub mod seccomp;

pub use ash_model::processes;

use ash_kernel::seccomp::Filters;
use ash_protocol::launcher::Failure;

/// Computed once when the launcher starts, and used by every setup.
#[derive(Clone, Debug)]
pub struct Policies {
    pub seccomp: Filters,
    pub landlock: Vec<landlock::Rule>,
    /// Landlock ABI of this host. 0: no landlock.
    pub landlock_abi: u32,
}

impl Policies {
    /// # Errors
    /// The seccomp filters cannot be built for this architecture.
    pub fn compile() -> Result<Self, Failure> {
        let allowed = ash_kernel::syscalls::of(seccomp::ALLOWED);
        let refused: Vec<_> = seccomp::REFUSED.iter().flat_map(|group| group.refusals()).collect();
        let answered: Vec<_> = seccomp::ANSWERED.iter().map(|(_, answer)| *answer).collect();
        let seccomp = Filters::compile(&allowed, &answered, &refused).map_err(|error| Failure {
            step: "compile seccomp".into(),
            message: error.to_string(),
            hint: Some("ashd runs on x86_64 and aarch64".into()),
        })?;
        Ok(Self { seccomp, landlock: landlock::RULES.to_vec(), landlock_abi: ash_kernel::landlock::abi().unwrap_or(0) })
    }
}

/// The minimum that a host must offer for sandboxes to start. An administrator can lower it by
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Version of landlock's ABI (landlock(7)); 0 allows sandboxes without landlock.
    pub landlock_abi: u32,
}

impl Default for Floor {
    /// ABI 2 is that of Debian 12's kernel (6.1). Rights of later ABIs (truncation, ioctls of
    /// devices, scopes of signals and abstract sockets) are used if available. Without them, file
    /// modes, read-only mounts, the pid namespace with two uids and the network namespace give the
    /// same protection.
    fn default() -> Self {
        Self { landlock_abi: 2 }
    }
}

impl Floor {
    /// # Errors
    /// The missing layer and the remedy.
    pub fn check(&self, policies: &Policies) -> Result<(), Failure> {
        if policies.landlock_abi >= self.landlock_abi {
            return Ok(());
        }
        let wanted = self.landlock_abi;
        let (message, hint) = match policies.landlock_abi {
            0 => (
                format!("this kernel has no landlock, but the floor requires ABI {wanted}"),
                "add landlock to the lsm= line of the kernel's command line, or lower the floor by name (docs/sandbox.md)",
            ),
            found => (
                format!("this kernel has landlock ABI {found}, but the floor requires ABI {wanted}"),
                "boot a newer kernel, or lower the floor by name (docs/sandbox.md)",
            ),
        };
        Err(Failure { step: "check floor".into(), message, hint: Some(hint.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_names_what_is_missing() {
        let mut policies = Policies::compile().unwrap();
        for (host, floor, word) in [(2, 2, None), (0, 0, None), (0, 2, Some("no landlock")), (2, 6, Some("ABI 2, "))] {
            policies.landlock_abi = host;
            let answer = Floor { landlock_abi: floor }.check(&policies);
            assert_eq!(answer.is_err(), word.is_some(), "{host} {floor}");
            if let (Err(failure), Some(word)) = (answer, word) {
                assert!(failure.message.contains(word) && failure.hint.is_some(), "{failure}");
            }
        }
    }
}
