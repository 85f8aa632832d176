//! Self-confinement of the serving ashd: docs/decisions/self-confinement.md.

use std::path::Path;

use ash_kernel::confine::calls::{self, COMMON, Sockets};
use ash_kernel::confine::{Calls, Domain, Plan, Unconfined, apply};
use ash_kernel::landlock::Right;
use ash_kernel::sanitize;
use ash_kernel::single::require_single_thread;
use ash_kernel::syscalls;

/// Increased with every change of the plan.
const MARK: u16 = 3301;

/// Runs before the first thread. Listeners are already bound; sockets to launcher and gateway are
/// unix sockets.
pub(super) fn confine(data_dir: &Path) -> Result<(), Unconfined> {
    let failed = |source| Unconfined { program: "ashd", layer: "one thread", source };
    let one = require_single_thread().map_err(failed)?;
    // SQLite's default, /var/tmp, becomes unwritable for ashd.
    sanitize::set_variable(&one, "SQLITE_TMPDIR", data_dir).map_err(failed)?;
    apply(&one, &plan(data_dir))
}

/// File modes decide what it reads: the admin may put agents' directories and a configuration file
/// anywhere, also later.
fn plan(data_dir: &Path) -> Plan {
    Plan {
        program: "ashd",
        mark: MARK,
        domain: Some(Domain {
            paths: vec![
                ("/".into(), Right::Read),
                ("/dev/null".into(), Right::Device),
                (data_dir.to_owned(), Right::Full),
            ],
            connect: Vec::new(),
        }),
        calls: Calls::Only { allowed: syscalls::of(COMMON), refused: calls::refused(Sockets::Unix) },
    }
}
