//! The C library's heap (mallopt(3), malloc_trim(3)).

use std::io;

/// Bytes from which a block is a mapping of its own, which the kernel gets back the moment it is freed. Without a value of
/// its own the C library raises it to the size of the largest block that was freed (at most 32 MiB), and bodies stay.
const MAPPED: libc::c_int = 1 << 20;
/// Bytes at the end of the main heap that may stay free.
const SPARE: libc::c_int = 2 << 20;

/// Keeps the heap near what is in use. Threads share `arenas` heaps: by default there are eight for each core, and each keeps
/// what its busiest moment needed. To be called before there are threads, since each picks its heap when it begins.
pub fn configure(arenas: usize) {
    let arenas = libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX);
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, arenas), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, SPARE)]
    {
        // SAFETY: sets a number of the allocator, under its own lock.
        let set = unsafe { libc::mallopt(parameter, value) };
        // It fails for an unknown parameter only, and the heap is larger then.
        debug_assert_eq!(set, 1, "mallopt({parameter})");
    }
}

/// Gives pages of the heap that nothing uses back to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of memory that this process has and no file backs (`RssAnon`, proc_pid_statm(5)).
///
/// # Errors
/// When `/proc` is not there.
pub fn resident() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match pages[..] {
        [_, resident, shared, ..] => Ok(resident.saturating_sub(shared) * page_size()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("/proc/self/statm: {text}"))),
    }
}

fn page_size() -> u64 {
    // SAFETY: reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_goes_back() {
        configure(2);
        let before = resident().unwrap();
        // Small blocks, of which the last stays: what is free is in the middle of the heap.
        let mut blocks: Vec<Box<[u8; 1000]>> = (0..40_000).map(|_| Box::new([1; 1000])).collect();
        let last = blocks.pop();
        let full = resident().unwrap();
        drop(blocks);
        trim();
        let after = resident().unwrap();
        assert!(full > before + (30 << 20), "{before} {full}");
        assert!(after < before + (8 << 20), "{before} {full} {after}");
        drop(last);
    }
}
