//! The permissions of the launcher while it serves: docs/decisions/self-confinement.md.

use ash_kernel::confine::calls::NEVER;
use ash_kernel::confine::{Calls, Plan};
use ash_kernel::syscalls;

/// Increased with every change of the plan.
const MARK: u16 = 3101;

/// No landlock domain: the kernel refuses mount(2), pivot_root(2) and move_mount(2) in a domain,
/// and a domain cannot be left, so no sandbox could be set up. The filter is a deny-list, because
/// sandboxes and the next program inherit it.
pub fn plan() -> Plan {
    Plan { program: "ash-launcher", mark: MARK, domain: None, calls: Calls::AllBut(syscalls::of(&[NEVER])) }
}
