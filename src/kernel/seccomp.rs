//! Seccomp filters (seccomp(2)): compiled once in the launcher, installed in every sandbox.
//!
//! Two filters are stacked. The outer one is the allow-list: whatever is not on it answers `ENOSYS`, as on a kernel that
//! lacks it, so that programs take their fallback. The inner one refuses with `EPERM` what an administrator would
//! expect to be *refused*, and checks arguments. Where both refuse, the one installed last (`EPERM`) wins.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// A comparison of one argument, by its low 32 bits: the kernel itself looks at no more of those compared here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Argument `.0` is `.1`.
    Is(u8, u32),
    /// Argument `.0` is not `.1`.
    Not(u8, u32),
    /// Argument `.0` has all the bits of `.1`.
    Has(u8, u32),
}

/// A refusal: the system call, and the comparisons that must all hold (none: always).
pub type Refusal<'a> = (i64, &'a [Arg]);

/// Both filters, ready to install.
#[derive(Clone, Debug)]
pub struct Filters {
    allow: BpfProgram,
    refuse: BpfProgram,
}

impl Filters {
    /// # Errors
    /// When the filters cannot be built, as on a machine that seccompiler does not know.
    pub fn compile(allowed: &[i64], refused: &[Refusal<'_>]) -> Result<Self, seccompiler::BackendError> {
        let arch = || std::env::consts::ARCH.try_into();
        let allow = allowed.iter().map(|call| (*call, Vec::new())).collect();
        let allow =
            SeccompFilter::new(allow, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow, arch()?)?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for (call, args) in refused {
            let chain = rules.entry(*call).or_default();
            if !args.is_empty() {
                let conditions = args.iter().map(condition).collect::<Result<_, _>>()?;
                chain.push(SeccompRule::new(conditions)?);
            }
        }
        let refuse =
            SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch()?)?;
        Ok(Self { allow: allow.try_into()?, refuse: refuse.try_into()? })
    }

    /// Puts both in force for this process and all it starts. Sets `no_new_privs` as well.
    pub fn install(&self) -> io::Result<()> {
        seccompiler::apply_filter(&self.allow).map_err(io::Error::other)?;
        seccompiler::apply_filter(&self.refuse).map_err(io::Error::other)
    }

    /// Instructions of both filters together; the kernel takes at most 4096 for each.
    pub fn instructions(&self) -> usize {
        self.allow.len() + self.refuse.len()
    }
}

fn condition(arg: &Arg) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (index, op, value) = match *arg {
        Arg::Is(index, value) => (index, SeccompCmpOp::Eq, value),
        Arg::Not(index, value) => (index, SeccompCmpOp::Ne, value),
        Arg::Has(index, bits) => (index, SeccompCmpOp::MaskedEq(bits.into()), bits),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value.into())
}
