//! The C library's heap (mallopt(3), malloc_trim(3)).

use std::io;

/// Blocks of this many bytes and more are separate mappings, which return to the kernel when they
/// are freed. By default the C library raises this to the size of the largest freed block (at most
/// 32 MiB), and memory of bodies stays.
const MAPPED: libc::c_int = 1 << 20;
/// Most free bytes at the end of the main heap.
const SPARE: libc::c_int = 2 << 20;

/// Keeps the heap near its used size. Threads share `arenas` heaps. The default is eight per core,
/// and each keeps its peak size. Call it before threads start, because each thread chooses its heap
/// at its start.
pub fn configure(arenas: usize) {
    let arenas = libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX);
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, arenas), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, SPARE)]
    {
        // SAFETY: sets a number of the allocator, under its own lock.
        let set = unsafe { libc::mallopt(parameter, value) };
        // It fails only for an unknown parameter. The heap is then larger.
        debug_assert_eq!(set, 1, "mallopt({parameter})");
    }
}

pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of anonymous memory of this process (`RssAnon`, proc_pid_statm(5)).
///
/// # Errors
/// `/proc` is missing.
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
        // Small blocks, of which the last stays: the free memory is in the middle of the heap.
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
