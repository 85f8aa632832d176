//! The pages of the running program's code (madvise(2), proc_pid_maps(5)).

use std::io;

/// Unmaps the code that ran so far from this process. Code that runs again is mapped again from the
/// page cache, 64 KiB at a time. A daemon that has started needs a small part of what its start
/// needed.
///
/// # Errors
/// `/proc` is missing.
pub fn release() -> io::Result<()> {
    let here = release as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some((start, end)) = maps.lines().filter_map(code).find(|(start, end)| (*start..*end).contains(&here)) else {
        return Ok(());
    };
    // SAFETY: a private mapping of a file that is never written (`r-xp`), so each of its pages is read
    // again from the file when it is used next.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
    }
    Ok(())
}

/// The range of a mapping of code, `start-end r-xp ...`.
fn code(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    rest.starts_with("r-xp ").then_some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_unmapped() {
        let line = "55d0c8a00000-55d0c8c00000 r-xp 00020000 fe:00 1234 /usr/bin/ashd";
        assert_eq!(code(line), Some((0x55d0_c8a0_0000, 0x55d0_c8c0_0000)));
        for other in [
            "55d0c8a00000-55d0c8c00000 r--p 00020000 fe:00 1234 /usr/bin/ashd",
            "55d0c8a00000-55d0c8c00000 rwxp 00020000 fe:00 1234 /usr/bin/ashd",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    /// Kilobytes of this program's code in memory.
    fn mapped() -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| {
            code(line).is_none_or(|(start, end)| !(start..end).contains(&(release as *const () as usize)))
        });
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn a_program_continues_without_its_code_in_memory() {
        let before = mapped();
        for _ in 0..3 {
            release().unwrap();
            assert_eq!((1..=10).product::<u64>(), std::hint::black_box(3_628_800));
        }
        let after = mapped();
        assert!(after < before, "{before} KiB, then {after} KiB");
    }
}
