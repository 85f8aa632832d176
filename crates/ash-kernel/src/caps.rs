//! Capabilities: what init keeps, and nothing for the payload.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Drops every capability from the bounding set, so that no file can give one back. Needs `CAP_SETPCAP`.
pub fn empty_bounding_set() -> io::Result<()> {
    limit_bounding_set(CapabilitySet::empty())
}

/// Drops every capability but these from the bounding set. Needs `CAP_SETPCAP` unless all of them are gone already.
pub fn limit_bounding_set(keep: CapabilitySet) -> io::Result<()> {
    for cap in 0..=last() {
        let cap = CapabilitySet::from_bits_retain(1 << cap);
        if keep.contains(cap) || matches!(rustix::thread::capability_is_in_bounding_set(cap), Ok(false)) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(cap) {
            Ok(()) => {}
            // Past the newest one this kernel has.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sets the permitted and effective sets to `keep`, and empties the inheritable and ambient ones.
pub fn keep_only(keep: CapabilitySet) -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Puts every permitted capability into effect.
pub fn use_all_permitted() -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective: now.permitted, ..now })?)
}

/// Runs `work` with these capabilities in effect besides those that are, where they are permitted.
///
/// # Errors
/// What capset(2) answers. A set that cannot be put back afterwards is an error too.
pub fn with<T>(more: CapabilitySet, work: impl FnOnce() -> T) -> io::Result<T> {
    let now = rustix::thread::capabilities(None)?;
    let effective = now.effective | (more & now.permitted);
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..now })?;
    let done = work();
    rustix::thread::set_capabilities(None, now)?;
    Ok(done)
}

/// The number of the newest capability of this kernel; 63 where it does not say, which [`empty_bounding_set`] cuts off.
fn last() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap");
    text.ok().and_then(|text| text.trim().parse().ok()).filter(|cap| *cap < 64).unwrap_or(63)
}
