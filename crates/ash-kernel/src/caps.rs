//! Capabilities: the set that init keeps, and none for the payload.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Drops every capability from the bounding set, so that no file can restore one. Needs
/// `CAP_SETPCAP`.
pub fn empty_bounding_set() -> io::Result<()> {
    limit_bounding_set(CapabilitySet::empty())
}

/// Drops every capability but `keep` from the bounding set. Needs `CAP_SETPCAP`, unless nothing has
/// to be dropped.
pub fn limit_bounding_set(keep: CapabilitySet) -> io::Result<()> {
    for cap in 0..=last() {
        let cap = CapabilitySet::from_bits_retain(1 << cap);
        if keep.contains(cap) || matches!(rustix::thread::capability_is_in_bounding_set(cap), Ok(false)) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(cap) {
            Ok(()) => {}
            // Beyond the newest capability of this kernel.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sets the permitted and effective sets to `keep`, and clears the inheritable and ambient sets.
pub fn keep_only(keep: CapabilitySet) -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

pub fn use_all_permitted() -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective: now.permitted, ..now })?)
}

/// Runs `work` with `more` effective in addition, as far as permitted.
///
/// # Errors
/// As for capset(2). Failing to restore the previous set is an error too.
pub fn with<T>(more: CapabilitySet, work: impl FnOnce() -> T) -> io::Result<T> {
    let now = rustix::thread::capabilities(None)?;
    let effective = now.effective | (more & now.permitted);
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..now })?;
    let done = work();
    rustix::thread::set_capabilities(None, now)?;
    Ok(done)
}

/// The newest capability of this kernel. If unknown, 63, and [`empty_bounding_set`] stops at the
/// last valid one.
fn last() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap");
    text.ok().and_then(|text| text.trim().parse().ok()).filter(|cap| *cap < 64).unwrap_or(63)
}
