//! Self-confinement of the serving gateway: docs/decisions/self-confinement.md.

use std::path::{Path, PathBuf};

use super::settings::Upstream;
use super::successor;
use ash_kernel::confine::calls::{self, COMMON, SUCCESSOR, Sockets};
use ash_kernel::confine::{Calls, Domain, Plan};
use ash_kernel::landlock::Right;
use ash_kernel::syscalls;

/// Increased with every change of the plan.
const MARK: u16 = 3201;
/// DNS answers that do not fit a datagram come over TCP.
const DNS: u16 = 53;

/// The plan of a gateway that creates its socket in `run_dir` and writes only `state`, directories
/// of its own.
///
/// It reads what file modes allow: the admin decides where the resolver, the user database and
/// certificates are. It executes its own program, which an upgrade may have replaced, and therefore
/// the dynamic loader.
pub fn plan(run_dir: &Path, upstream: &Upstream, state: &[PathBuf]) -> Plan {
    let program = successor::program();
    let programs = program.parent().map(Path::to_owned);
    let mut paths =
        vec![("/".into(), Right::Read), ("/dev/null".into(), Right::Device), (run_dir.to_owned(), Right::Sockets)];
    let execute = ["/usr", "/lib", "/lib64"].map(PathBuf::from).into_iter().chain(programs);
    paths.extend(execute.map(|path| (path, Right::ReadExecute)));
    paths.extend(state.iter().map(|path| (path.clone(), Right::Full)));
    let connect = match upstream {
        Upstream::Offline => Vec::new(),
        Upstream::Url(base) => vec![base.port(), DNS],
    };
    Plan {
        program: "ash-gateway",
        mark: MARK,
        domain: Some(Domain { paths, connect }),
        calls: Calls::Only {
            allowed: syscalls::of(&[COMMON, &[SUCCESSOR]].concat()),
            refused: calls::refused(Sockets::Internet),
        },
    }
}
