//! Claude's own share of a session's processes: at the limit `pids`, what fails is a command or a tool, and never claude.
//!
//! ```text
//!   0                              pids - reserve            pids
//!   |  claude, its tools, commands  |  claude's threads, init, |
//!   |                               |  keepers of commands     |
//!                                   ^ RLIMIT_NPROC of commands and tools
//! ```
//!
//! The kernel compares RLIMIT_NPROC of the process that forks with the number of processes and threads that its user has in its user
//! namespace (getrlimit(2), user_namespaces(7)), which are those of the sandbox. Claude itself has no such limit, and so can start
//! threads when its tools cannot. Claude starts with 8 or 9 threads.
//!
//! A command is started with it by init. A tool is started by claude and would inherit claude's lack of one, so the Bash tool is
//! given [`SHELL`], which sets it and becomes bash.

/// `pids.max` of the sandbox's cgroup, mounted read-only: always the limit that is in force.
pub const LIMIT: &str = "/opt/ashd/pids.max";

/// The shell of claude's Bash tool (`CLAUDE_CODE_SHELL`; claude takes a path with "bash" in it).
pub const SHELL: &str = "/opt/ashd/bash";

/// One part in so many of the limit is claude's.
const PART: u64 = 4;
/// More is never set aside.
const MOST: u64 = 128;

/// What [`SHELL`] holds: [`for_commands`] in the language of the shell.
#[must_use]
pub fn shell() -> String {
    format!(
        "#!/bin/bash\n\
         # Tools leave a part of the session's processes to claude itself: docs/limits.md of ashd.\n\
         if read -r max <{LIMIT} && [[ $max != max ]]; then\n\
         \tlet 'share = max / {PART}' 'share = share < {MOST} ? share : {MOST}'\n\
         \tulimit -u $((max - share))\n\
         fi 2>/dev/null\n\
         exec /bin/bash \"$@\"\n"
    )
}

/// How many processes and threads of the sandbox there may be for a command or a tool to start one more.
#[must_use]
pub fn for_commands(limit: u64) -> u64 {
    limit - reserve(limit)
}

/// Commands that may run at the same time. Each has a keeper, which is of init's user and so beside what the kernel counts; the
/// keepers take at most half of the reserve.
#[must_use]
pub fn commands(limit: u64) -> usize {
    usize::try_from(reserve(limit) / 2).unwrap_or(usize::MAX).max(1)
}

fn reserve(limit: u64) -> u64 {
    (limit / PART).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_limit_is_claudes() {
        for (limit, rest, at_once) in [(512, 384, 64), (64, 48, 8), (32, 24, 4), (4096, 3968, 64), (3, 3, 1), (0, 0, 1)]
        {
            assert_eq!((for_commands(limit), commands(limit)), (rest, at_once), "{limit}");
        }
    }

    #[test]
    fn the_shell_comes_to_the_same_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids.max");
        let program = dir.path().join("bash");
        std::fs::write(&program, shell().replace(LIMIT, file.to_str().unwrap())).unwrap();
        let said = |command: &str| {
            let ran =
                std::process::Command::new("/bin/bash").arg(&program).args(["-c", command, "zero", "a b"]).output();
            String::from_utf8(ran.unwrap().stdout).unwrap()
        };
        for limit in [512_u64, 64, 100, 4096] {
            std::fs::write(&file, format!("{limit}\n")).unwrap();
            assert_eq!(said("ulimit -u; echo $0 $1"), format!("{}\nzero a b\n", for_commands(limit)));
        }
        let own = said("ulimit -u");
        std::fs::write(&file, "max\n").unwrap();
        assert_ne!(said("ulimit -u"), own, "no limit");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(said("echo works"), "works\n");
    }
}
