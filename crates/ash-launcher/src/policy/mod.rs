//! What a payload may do, as data: each entry with the reason it is there.

pub mod etc;
pub mod landlock;
pub mod proc;
pub mod quotas;
pub mod rlimits;
pub mod seccomp;

pub use ash_model::processes;

use ash_kernel::seccomp::Filters;
use ash_protocol::launcher::Failure;

/// What is worked out once, when the launcher starts, and used by every set-up.
#[derive(Clone, Debug)]
pub struct Policies {
    pub seccomp: Filters,
    pub landlock: Vec<landlock::Rule>,
    /// Landlock's ABI on this host; 0 where there is none.
    pub landlock_abi: u32,
}

impl Policies {
    /// # Errors
    /// When the seccomp filters cannot be built for this machine.
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

/// The least a host must offer; below it no sandbox starts. An admin lowers it by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Version of landlock's ABI (landlock(7)); 0 allows sandboxes without landlock.
    pub landlock_abi: u32,
}

impl Default for Floor {
    /// ABI 2 is what Debian 12's own kernel (6.1) has. What later ABIs add (truncation, devices' ioctls, scoped signals and
    /// abstract sockets) is asked for where it exists; below, file modes, the read-only mounts, the pid namespace with
    /// two uids, and the network namespace hold the same lines.
    fn default() -> Self {
        Self { landlock_abi: 2 }
    }
}

impl Floor {
    /// # Errors
    /// Which layer this host lacks, and the way out.
    pub fn check(&self, policies: &Policies) -> Result<(), Failure> {
        if policies.landlock_abi >= self.landlock_abi {
            return Ok(());
        }
        let wanted = self.landlock_abi;
        let (message, hint) = match policies.landlock_abi {
            0 => (
                format!("this kernel has no landlock, the floor is ABI {wanted}"),
                "add landlock to the lsm= line of the kernel's command line, or lower the floor by name (docs/sandbox.md)",
            ),
            found => (
                format!("this kernel has landlock ABI {found}, the floor is ABI {wanted}"),
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
