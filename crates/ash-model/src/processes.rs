//! Reserves part of a session's process limit for claude: at the limit `pids`, a command or a tool
//! fails, never claude.
//!
//! ```text
//!   0                              pids - reserve            pids
//!   |  claude, its tools, commands  |  claude's threads, init, |
//!   |                               |  keepers of commands     |
//!                                   ^ RLIMIT_NPROC of commands and tools
//! ```
//!
//! On fork, the kernel compares the RLIMIT_NPROC of the caller with the number of processes and
//! threads of its user in its user namespace (getrlimit(2), user_namespaces(7)), which is the
//! sandbox. Claude has no such limit and can start threads when its tools cannot. Claude starts
//! with 8 or 9 threads.
//!
//! init sets the limit for commands. Tools are started by claude and would inherit no limit, so the
//! Bash tool runs [`SHELL`], which sets the limit and becomes bash.

/// `pids.max` of the sandbox's cgroup, mounted read-only: always the limit in force.
pub const LIMIT: &str = "/opt/ashd/pids.max";

/// The shell of claude's Bash tool (`CLAUDE_CODE_SHELL`). claude requires "bash" in the path.
pub const SHELL: &str = "/opt/ashd/bash";

/// The reserve for claude is the limit divided by this.
const PART: u64 = 4;
const MOST: u64 = 128;

/// The content of [`SHELL`]: [`for_commands`] as shell code.
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

/// The number of processes and threads up to which a command or a tool can start another one.
#[must_use]
pub fn for_commands(limit: u64) -> u64 {
    limit - reserve(limit)
}

/// Most commands at the same time. Each has a keeper, which runs as init's user and is not counted
/// by the kernel's limit. The keepers use at most half of the reserve.
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
