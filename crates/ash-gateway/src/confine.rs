//! What the gateway may still do when it serves: docs/decisions/self-confinement.md.

use std::path::{Path, PathBuf};

use super::settings::Upstream;
use super::successor;
use ash_kernel::confine::calls::{self, COMMON, SUCCESSOR, Sockets};
use ash_kernel::confine::{Calls, Domain, Plan};
use ash_kernel::landlock::Right;
use ash_kernel::syscalls;

/// Raised with every change of the plan.
const MARK: u16 = 3201;
/// Answers of a name server that do not fit a datagram come over TCP.
const DNS: u16 = 53;

/// The plan of a gateway that makes its socket in `run_dir` and writes nothing but `state`, directories of its own.
///
/// It reads what the files' modes allow: the resolver, the user database and certificates may be anywhere an admin says. It executes
/// its own program, which may be another file by then, and so the dynamic loader.
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
