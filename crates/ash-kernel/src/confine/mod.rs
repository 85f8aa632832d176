//! Self-confinement of ashd, ash-gateway and ash-launcher, with or without systemd.
//!
//! ```text
//!   startup (sockets, users, capabilities), one thread
//!        |  apply(plan)
//!        v
//!   not dumpable -> no cores -> no_new_privs -> landlock -> seccomp -> verified
//!        |                                      if a step fails, the program ends and names it
//!        v
//!   threads and requests inherit the confinement
//! ```
//!
//! A program that replaces itself (the gateway's successor, a restarted launcher) inherits it. It
//! detects this by the filter's mark, an answer of prctl(2) that only the filter gives, and does
//! not apply the same plan again: the kernel allows 16 landlock domains. A new revision of a plan
//! has a new mark and is applied in addition.

pub mod calls;
mod judge;

use std::io;
use std::path::PathBuf;

pub use judge::{Facts, Missing, facts_of, missing};

use crate::landlock::{self, Right, Rules};
use crate::process;
use crate::seccomp::{OwnFilter, Refusal, marked};
use crate::single::SingleThreaded;

#[derive(Debug)]
pub struct Plan {
    pub program: &'static str,
    /// Number of this plan, unique among all programs and revisions, 3000 to 4000.
    pub mark: u16,
    /// `None`: no landlock domain, for the reason in docs/decisions/self-confinement.md.
    pub domain: Option<Domain>,
    pub calls: Calls,
}

/// The permissions of landlock. Other files and TCP ports are refused.
#[derive(Debug)]
pub struct Domain {
    /// A missing path is ignored.
    pub paths: Vec<(PathBuf, Right)>,
    /// TCP ports for outgoing connections. No port can be bound.
    pub connect: Vec<u16>,
}

#[derive(Debug)]
pub enum Calls {
    /// Other calls fail with `ENOSYS`, the refused cases of the allowed ones with `EPERM`.
    Only { allowed: Vec<i64>, refused: Vec<Refusal<'static>> },
    /// All but these (`EPERM`).
    AllBut(Vec<i64>),
}

/// A layer that could not be applied. The program must not serve.
#[derive(Debug, thiserror::Error)]
#[error("{program} cannot confine itself: {layer}: {source}")]
pub struct Unconfined {
    pub program: &'static str,
    pub layer: &'static str,
    pub source: io::Error,
}

/// Applies a plan to this process and its future threads, and verifies it with the kernel.
///
/// A kernel without landlock is logged as an error. The floor of the sandboxes decides whether
/// sessions start on it.
///
/// # Errors
/// Names the missing layer.
pub fn apply(one: &SingleThreaded, plan: &Plan) -> Result<(), Unconfined> {
    let failed = |layer| move |source| Unconfined { program: plan.program, layer, source };
    one.check().map_err(failed("one thread"))?;
    process::not_dumpable().map_err(failed("not dumpable"))?;
    process::no_cores().map_err(failed("RLIMIT_CORE"))?;
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from).map_err(failed("no_new_privs"))?;
    let inherited = marked() == Some(plan.mark);
    let mut domain = "none of its own".to_owned();
    if !inherited {
        if let Some(wanted) = &plan.domain {
            domain = enforce(plan.program, wanted).map_err(failed("landlock"))?;
        }
        filter(plan).and_then(|filter| filter.install()).map_err(failed("seccomp"))?;
        if marked() != Some(plan.mark) {
            return Err(failed("seccomp")(io::Error::other("the filter is not in force")));
        }
    }
    let missing = facts_of(std::process::id()).map(|facts| missing(&facts)).map_err(failed("/proc/self"))?;
    if let Some(missing) = missing.first() {
        return Err(failed(missing.layer)(io::Error::other(missing.found.clone())));
    }
    tracing::info!(landlock = domain, inherited, mark = plan.mark, "confined itself");
    Ok(())
}

fn enforce(program: &str, wanted: &Domain) -> io::Result<String> {
    let abi = match landlock::abi() {
        Ok(abi) => abi,
        Err(error) => {
            tracing::error!(
                ASH_EVENT = "self-confinement",
                %error,
                "this kernel has no landlock, so {program} runs without a landlock domain: add landlock to lsm= on the kernel's command line"
            );
            return Ok("not in this kernel".to_owned());
        }
    };
    if abi < 4 {
        tracing::warn!(
            ASH_EVENT = "self-confinement",
            "landlock ABI {abi} does not restrict TCP (Linux 6.7 does): only the other layers restrict it for {program}"
        );
    }
    let rules = Rules::of_daemon(&wanted.paths, &wanted.connect)?;
    rules.enforce()?;
    Ok(format!("ABI {}", rules.abi()))
}

fn filter(plan: &Plan) -> io::Result<OwnFilter> {
    match &plan.calls {
        Calls::Only { allowed, refused } => OwnFilter::only(allowed, refused, plan.mark),
        Calls::AllBut(refused) => Ok(OwnFilter::all_but(refused, plan.mark)),
    }
}
