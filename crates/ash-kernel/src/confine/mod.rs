//! The confinement that ashd, ash-gateway and ash-launcher put on themselves, under systemd or not.
//!
//! ```text
//!   start-up work (sockets, users, capabilities), one thread
//!        |  apply(plan)
//!        v
//!   not dumpable -> no cores -> no_new_privs -> landlock -> seccomp -> verified      any step fails: the program ends, named
//!        |
//!        v
//!   threads, requests: all of them are born with it
//! ```
//!
//! A program that replaces itself (the gateway's successor, a launcher executed anew) inherits all of it. It knows by the filter's
//! mark, an answer of prctl(2) that only the filter gives, and does not put the same once more on top: the kernel has room for 16
//! landlock domains. A new revision of a plan has a new mark, and goes on top of the old.

pub mod calls;
mod judge;

use std::io;
use std::path::PathBuf;

pub use judge::{Facts, Missing, facts_of, missing};

use crate::landlock::{self, Right, Rules};
use crate::process;
use crate::seccomp::{OwnFilter, Refusal, marked};
use crate::single::SingleThreaded;

/// What a program may still do.
#[derive(Debug)]
pub struct Plan {
    pub program: &'static str,
    /// Number of this plan among all programs' and revisions, 3000 to 4000.
    pub mark: u16,
    /// `None`: no landlock domain, with the reason in docs/decisions/self-confinement.md.
    pub domain: Option<Domain>,
    pub calls: Calls,
}

/// What landlock allows; the rest of the file system and of TCP is refused.
#[derive(Debug)]
pub struct Domain {
    /// A path that is not there is left out.
    pub paths: Vec<(PathBuf, Right)>,
    /// TCP ports that may be connected to. None may be bound.
    pub connect: Vec<u16>,
}

#[derive(Debug)]
pub enum Calls {
    /// These and no others (`ENOSYS`), and of these not what is refused (`EPERM`).
    Only { allowed: Vec<i64>, refused: Vec<Refusal<'static>> },
    /// All but these (`EPERM`).
    AllBut(Vec<i64>),
}

/// A layer that could not be put in force. The program must not serve.
#[derive(Debug, thiserror::Error)]
#[error("{program} cannot confine itself: {layer}: {source}")]
pub struct Unconfined {
    pub program: &'static str,
    pub layer: &'static str,
    pub source: io::Error,
}

/// Puts a plan in force for this process and all its threads to come, and has the kernel say that it is.
///
/// A kernel without landlock is told in the log, as an error; the sandboxes' own floor decides whether sessions start on it.
///
/// # Errors
/// The layer that is missing.
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
                "this kernel has no landlock: {program} runs without a domain of its own; add landlock to lsm= on the kernel's command line"
            );
            return Ok("not in this kernel".to_owned());
        }
    };
    if abi < 4 {
        tracing::warn!(
            ASH_EVENT = "self-confinement",
            "landlock ABI {abi} does not restrict TCP (Linux 6.7 does): {program} is kept from it by other layers alone"
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
