//! Seccomp filters (seccomp(2)): compiled once in the launcher, installed in every sandbox.
//!
//! Two filters are stacked. The outer one is the allow-list: other calls return `ENOSYS`, as on a
//! kernel without them, so that programs use their fallback. The inner one returns `EPERM` for
//! operations that an administrator expects to be *refused*, and checks arguments. If both refuse,
//! the filter installed last (`EPERM`) wins.

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

/// A comparison of the low 32 bits of one argument. The kernel uses no more of the compared
/// arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Argument `.0` is `.1`.
    Is(u8, u32),
    /// Argument `.0` is not `.1`.
    Not(u8, u32),
    /// Argument `.0` has all the bits of `.1`.
    Has(u8, u32),
    /// The bits `.1` of argument `.0` are `.2`.
    Masked(u8, u32, u32),
}

/// A refusal: the system call, and comparisons that must all match (none: always).
pub type Refusal<'a> = (i64, &'a [Arg]);

/// A call that returns an errno without being executed. 0 is success.
pub type Answer = (i64, u16);

#[derive(Clone, Debug)]
pub struct Filters {
    allow: BpfProgram,
    refuse: BpfProgram,
}

impl Filters {
    /// `answered` calls must not be among the `refused` ones. Whether they are `allowed` has no
    /// effect with both filters installed.
    ///
    /// # Errors
    /// The filters cannot be built, such as on an architecture unknown to seccompiler.
    pub fn compile(
        allowed: &[i64],
        answered: &[Answer],
        refused: &[Refusal<'_>],
    ) -> Result<Self, seccompiler::BackendError> {
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
        Ok(Self { allow: allow_list(allowed), refuse: only_for(&calls, answered, refuse.try_into()?) })
    }

    /// Installs both for this process and all its children. Also sets `no_new_privs`.
    pub fn install(&self) -> io::Result<()> {
        seccompiler::apply_filter(&self.allow).map_err(io::Error::other)?;
        seccompiler::apply_filter(&self.refuse).map_err(io::Error::other)
    }

    /// Instructions of both filters together. The kernel accepts at most 4096 for each.
    pub fn instructions(&self) -> usize {
        self.allow.len() + self.refuse.len()
    }
}

/// A first argument of prctl(2) that no kernel knows. A daemon's filter answers it with its mark.
const MARK: u32 = 0x4153_4831;

/// The mark of the filter installed last, if it is an [`OwnFilter`].
pub fn marked() -> Option<u16> {
    // SAFETY: numbers only. Without such a filter the kernel returns EINVAL.
    let done = unsafe { libc::prctl(MARK as libc::c_int, 0, 0, 0, 0) };
    let errno = io::Error::last_os_error().raw_os_error();
    errno.filter(|errno| done == -1 && (3000..4000).contains(errno)).and_then(|errno| u16::try_from(errno).ok())
}

/// The filter that a daemon applies to itself.
#[derive(Clone, Debug)]
pub struct OwnFilter(Vec<BpfProgram>);

impl OwnFilter {
    /// Other calls than `allowed` return `ENOSYS`, `refused` ones `EPERM`. `mark`: 3000 to 3999,
    /// see [`marked`].
    ///
    /// # Errors
    /// The filters cannot be built, such as on an architecture unknown to seccompiler.
    pub fn only(allowed: &[i64], refused: &[Refusal<'_>], mark: u16) -> io::Result<Self> {
        let filters = Filters::compile(allowed, &[], refused).map_err(io::Error::other)?;
        let list = search(
            &ranges(allowed, &answer(libc::SECCOMP_RET_ALLOW)),
            &answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        );
        Ok(Self(vec![filters.refuse, marking(mark, list)]))
    }

    /// `refused` calls return `EPERM`, all others are allowed. 32-bit and x32 calls return
    /// `ENOSYS`.
    pub fn all_but(refused: &[i64], mark: u16) -> Self {
        let list = search(
            &ranges(refused, &answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32)),
            &answer(libc::SECCOMP_RET_ALLOW),
        );
        Self(vec![marking(mark, list)])
    }

    /// Installs it for all threads of this process and all its children. Needs `no_new_privs`.
    ///
    /// # Errors
    /// As for seccomp(2); also if one thread could not be synchronized.
    pub fn install(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|program| seccompiler::apply_filter_all_threads(program).map_err(io::Error::other))
    }
}

/// A program for a loaded number, after the check of the architecture and the answer to [`MARK`].
fn marking(mark: u16, list: BpfProgram) -> BpfProgram {
    /// The bit of x32 call numbers.
    const X32: u32 = 0x4000_0000;
    let mut program = vec![
        load(ARCH),
        jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0),
        foreign(),
        load(NUMBER),
        jump(libc::BPF_JGE, X32, 0, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        jump(libc::BPF_JEQ, libc::SYS_prctl as u32, 0, 4),
        load(FIRST_ARGUMENT),
        jump(libc::BPF_JEQ, MARK, 0, 1),
        answer(libc::SECCOMP_RET_ERRNO | u32::from(mark)),
        load(NUMBER),
    ];
    program.extend(list);
    program
}

/// The answer to 32-bit calls. Not a kill: each would create a record in the host's audit log,
/// which a payload could fill.
fn foreign() -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)
}

/// The allow-list as a program: a binary search in the ranges of allowed numbers.
///
/// seccompiler would compare call by call, and the kernel runs a filter once per call number at
/// installation (seccomp_cache_prepare). That took 1.05 ms of each start with both filters, and
/// 0.36 ms with a linear search of the ranges.
fn allow_list(allowed: &[i64]) -> BpfProgram {
    // AUDIT_ARCH differs for 32-bit calls, which have other numbers. All x32 calls have bit 30 set.
    let mut program = vec![load(ARCH), jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0), foreign()];
    program.push(load(NUMBER));
    let absent = answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    program.extend(search(&ranges(allowed, &answer(libc::SECCOMP_RET_ALLOW)), &absent));
    program
}

/// A program for `calls`, after a search that handles `answered` calls and lets all others pass.
fn only_for(calls: &[i64], answered: &[Answer], program: BpfProgram) -> BpfProgram {
    let found = jump(libc::BPF_JA, 0, 0, 0);
    let mut whole = vec![load(ARCH), jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0), foreign(), load(NUMBER)];
    let with = |errno: u16| answer(libc::SECCOMP_RET_ERRNO | u32::from(errno));
    let mut all = ranges(calls, &found);
    all.extend(answered.iter().flat_map(|(call, errno)| ranges(&[*call], &with(*errno))));
    all.sort_unstable_by_key(|(first, ..)| *first);
    whole.extend(search(&all, &answer(libc::SECCOMP_RET_ALLOW)));
    let end = whole.len();
    for (at, op) in whole.iter_mut().enumerate().filter(|(_, op)| **op == found) {
        op.k = (end - at - 1) as u32;
    }
    whole.extend(program);
    whole
}

/// A binary search for the loaded number in ascending ranges.
///
/// ```text
///   below first? --> [ lower ranges ]      beyond last? --> [ higher ranges ]      else: found
/// ```
fn search(ranges: &[Range], none: &sock_filter) -> BpfProgram {
    let half = ranges.len() / 2;
    let Some((first, last, found)) = ranges.get(half) else { return vec![none.clone()] };
    let before = search(&ranges[..half], none);
    let behind = search(&ranges[half + 1..], none);
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
/// The low half: both architectures are little-endian.
const FIRST_ARGUMENT: u32 = 16;

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips `jt` instructions if the test matches, else `jf`. `BPF_JA` skips `k`.
fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt, jf, k }
}

fn answer(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

/// First and last number, and the instruction for the range.
type Range = (u32, u32, sock_filter);

/// The runs of consecutive numbers, ascending.
fn ranges(numbers: &[i64], found: &sock_filter) -> Vec<Range> {
    let mut sorted: Vec<u32> = numbers.iter().filter_map(|number| u32::try_from(*number).ok()).collect();
    sorted.sort_unstable();
    let mut runs: Vec<Range> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, last, _)) if number <= *last + 1 => *last = number,
            _ => runs.push((number, number, found.clone())),
        }
    }
    runs
}

fn condition(arg: &Arg) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (index, op, value) = match *arg {
        Arg::Is(index, value) => (index, SeccompCmpOp::Eq, value),
        Arg::Not(index, value) => (index, SeccompCmpOp::Ne, value),
        Arg::Has(index, bits) => (index, SeccompCmpOp::MaskedEq(bits.into()), bits),
        Arg::Masked(index, mask, value) => (index, SeccompCmpOp::MaskedEq(mask.into()), value),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a program, and the number of executed instructions.
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
        let program = only_for(&refused, &[(6, 0), (299, 22)], vec![answer(7)]);
        for number in (0..600).chain([u32::MAX]) {
            let wanted = match number {
                6 => libc::SECCOMP_RET_ERRNO,
                299 => libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32,
                number if refused.contains(&number.into()) => 7,
                _ => libc::SECCOMP_RET_ALLOW,
            };
            assert_eq!(run(&program, AUDIT_ARCH, number).0, wanted, "{number}");
        }
    }

    #[test]
    fn a_daemons_filter_refuses_exactly_its_list() {
        let OwnFilter(programs) = OwnFilter::all_but(&[3, 4, 77, 300], 3999);
        for number in (0..600).filter(|number| i64::from(*number) != libc::SYS_prctl) {
            let wanted = if [3, 4, 77, 300].contains(&number) {
                libc::SECCOMP_RET_ERRNO | libc::EPERM as u32
            } else {
                libc::SECCOMP_RET_ALLOW
            };
            assert_eq!(run(&programs[0], AUDIT_ARCH, number).0, wanted, "{number}");
        }
        let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(run(&programs[0], AUDIT_ARCH, 0x4000_0003).0, enosys);
        assert_eq!(run(&programs[0], 0x4000_0003, 0).0, enosys);
        let OwnFilter(programs) = OwnFilter::only(&[5, 6], &[(6, &[])], 3999).unwrap();
        assert_eq!(
            (run(&programs[1], AUDIT_ARCH, 5).0, run(&programs[1], AUDIT_ARCH, 7).0),
            (libc::SECCOMP_RET_ALLOW, enosys)
        );
        assert_eq!(marked(), None, "the tests have no such filter");
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
        let found = answer(7);
        assert_eq!(ranges(&[5, 0, 2, 1], &found), [(0, 2, found.clone()), (5, 5, found)]);
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
        assert_eq!(run(&program, 0x4000_0003, 0).0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }
}
