//! The C library's heap.

/// Gives pages of the heap that nothing uses back to the kernel. A start allocates more than what it leaves behind, and
/// the C library would keep it (malloc_trim(3)).
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
