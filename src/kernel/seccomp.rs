//! Seccomp filters (seccomp(2)): compiled once in the launcher, installed in every sandbox.
//!
//! Two filters are stacked. The outer one is the allow-list: whatever is not on it answers `ENOSYS`, as on a kernel that
//! lacks it, so that programs take their fallback. The inner one refuses with `EPERM` what an administrator would
//! expect to be *refused*, and checks arguments. Where both refuse, the one installed last (`EPERM`) wins.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

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
        let calls: Vec<i64> = refused.iter().map(|(call, _)| *call).collect();
        Ok(Self { allow: allow_list(allowed), refuse: only_for(&calls, refuse.try_into()?) })
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

/// The allow-list as a program: a search of the ranges of numbers that are on it.
///
/// seccompiler would compare call by call, and the kernel runs a filter once for every call when it is installed
/// (seccomp_cache_prepare): with it both filters took 1.05 ms of each sandbox's start, with the ranges one after the other 0.36 ms.
fn allow_list(allowed: &[i64]) -> BpfProgram {
    // AUDIT_ARCH differs for 32-bit calls, which have other numbers. The x32 interface has bit 30 set in all of its own.
    let mut program = vec![load(ARCH), jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0), answer(libc::SECCOMP_RET_KILL_PROCESS)];
    program.push(load(NUMBER));
    let absent = answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    program.extend(search(&ranges(allowed), &answer(libc::SECCOMP_RET_ALLOW), &absent));
    program
}

/// A program for the calls it says something of, behind a search that lets all others pass.
fn only_for(calls: &[i64], program: BpfProgram) -> BpfProgram {
    let found = jump(libc::BPF_JA, 0, 0, 0);
    let mut whole = vec![load(NUMBER)];
    whole.extend(search(&ranges(calls), &found, &answer(libc::SECCOMP_RET_ALLOW)));
    let end = whole.len();
    for (at, op) in whole.iter_mut().enumerate().filter(|(_, op)| **op == found) {
        op.k = (end - at - 1) as u32;
    }
    whole.extend(program);
    whole
}

/// Halves the ranges (ascending) until the number that is loaded is in one or in none.
///
/// ```text
///   below first? --> [ those before ]      beyond last? --> [ those behind ]      else: found
/// ```
fn search(ranges: &[(u32, u32)], found: &sock_filter, none: &sock_filter) -> BpfProgram {
    let half = ranges.len() / 2;
    let Some((first, last)) = ranges.get(half) else { return vec![none.clone()] };
    let before = search(&ranges[..half], found, none);
    let behind = search(&ranges[half + 1..], found, none);
    let over =
        u8::try_from(1 + before.len()).expect("some hundred calls make at most 60 ranges, of 4 instructions each");
    let mut program = vec![jump(libc::BPF_JGE, *first, 0, 2), jump(libc::BPF_JGT, *last, over, 0), found.clone()];
    program.extend(before);
    program.extend(behind);
    program
}

/// Offsets in struct seccomp_data (seccomp(2)).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips `jt` instructions where the test holds and `jf` where it does not; `BPF_JA` skips `k`.
fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt, jf, k }
}

fn answer(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

/// The runs of successive numbers, ascending, first and last of each.
fn ranges(numbers: &[i64]) -> Vec<(u32, u32)> {
    let mut sorted: Vec<u32> = numbers.iter().filter_map(|number| u32::try_from(*number).ok()).collect();
    sorted.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

fn condition(arg: &Arg) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (index, op, value) = match *arg {
        Arg::Is(index, value) => (index, SeccompCmpOp::Eq, value),
        Arg::Not(index, value) => (index, SeccompCmpOp::Ne, value),
        Arg::Has(index, bits) => (index, SeccompCmpOp::MaskedEq(bits.into()), bits),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program of these instructions answers, and after how many.
    fn run(program: &[sock_filter], arch: u32, number: u32) -> (u32, usize) {
        let (mut at, mut loaded, mut steps) = (0, 0, 0);
        loop {
            let op = &program[at];
            steps += 1;
            let code = u32::from(op.code);
            let skipped = |holds: bool| usize::from(if holds { op.jt } else { op.jf });
            match (code & 0x07, code & 0xf0) {
                (libc::BPF_LD, _) => loaded = if op.k == NUMBER { number } else { arch },
                (libc::BPF_RET, _) => return (op.k, steps),
                (_, libc::BPF_JA) => at += op.k as usize,
                (_, libc::BPF_JEQ) => at += skipped(loaded == op.k),
                (_, libc::BPF_JGE) => at += skipped(loaded >= op.k),
                (_, libc::BPF_JGT) => at += skipped(loaded > op.k),
                other => panic!("{other:?}"),
            }
            at += 1;
        }
    }

    #[test]
    fn a_filter_is_asked_only_for_the_calls_it_knows() {
        let refused = [3, 4, 5, 77, 300];
        let program = only_for(&refused, vec![answer(7)]);
        for number in (0..600).chain([u32::MAX]) {
            let wanted = if refused.contains(&number.into()) { 7 } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(run(&program, AUDIT_ARCH, number).0, wanted, "{number}");
        }
    }

    #[test]
    fn the_search_is_short() {
        let every_second: Vec<i64> = (0..100).step_by(2).collect();
        let program = allow_list(&every_second);
        let longest = (0..600).map(|number| run(&program, AUDIT_ARCH, number).1).max();
        assert!(longest.is_some_and(|steps| steps <= 3 + 2 * 6 + 1), "{longest:?}");
    }

    #[test]
    fn the_allow_list_is_exactly_the_list() {
        let list = [0, 1, 2, 5, 39, 40, 231, 450];
        assert_eq!(ranges(&[5, 0, 2, 1]), [(0, 2), (5, 5)]);
        let program = allow_list(&list);
        for number in (0..600).chain([0x4000_0000, 0x4000_0027, u32::MAX]) {
            let wanted = if list.contains(&number.into()) {
                libc::SECCOMP_RET_ALLOW
            } else {
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
            };
            assert_eq!(run(&program, AUDIT_ARCH, number).0, wanted, "{number}");
        }
        // AUDIT_ARCH_I386: 32-bit calls have other numbers.
        assert_eq!(run(&program, 0x4000_0003, 0).0, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
