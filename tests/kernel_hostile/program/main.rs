//! The hostile payload. Inside a sandbox it tries to do harm. As root outside, it shows that the
//! same attempts would succeed without a sandbox.
//!
//! ```text
//!   hostile inside            every attempt, each in its own process           name \t expected \t outcome \t control
//!   hostile outside           those that can be shown, in scratch namespaces   the same
//!   hostile victim NAME       offers objects that must not be reached, until it is killed
//!   hostile clean             removes what a victim leaves on the host
//! ```
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

mod act;
mod files;
mod kernel;
mod network;
mod processes;

use std::io::Write;

use act::{Attempt, Context, Control, call};

/// Seconds for one attempt.
const PATIENCE: u32 = 10;
/// Exit status of an attempt that panicked, which is a fault of this program.
const BROKEN: i32 = 254;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match (arguments.get(1).map(String::as_str), arguments.get(2)) {
        (Some("inside"), only) => all(&Context { outside: false }, only),
        (Some("outside"), only) => all(&Context { outside: true }, only),
        (Some("victim"), Some(name)) => {
            let held = network::serve(name).expect("served");
            println!("ready");
            std::io::stdout().flush().expect("told");
            loop {
                std::thread::sleep(std::time::Duration::from_secs(3600));
                assert!(held.0.local_addr().is_ok());
            }
        }
        (Some("clean"), _) => {
            let key: i64 = std::env::var("H_KEY").expect("H_KEY").parse().expect("a number");
            let id = call(libc::SYS_shmget, &[key, 1, 0]).expect("the segment");
            call(libc::SYS_shmctl, &[id, 0, 0]).expect("removed");
        }
        _ => panic!("inside, outside, victim NAME or clean"),
    }
}

fn all(context: &Context, only: Option<&String>) {
    let groups: [(&str, &[Attempt]); 4] = [
        ("files", files::ATTEMPTS),
        ("kernel", kernel::ATTEMPTS),
        ("processes", processes::ATTEMPTS),
        ("network", network::ATTEMPTS),
    ];
    let mut out = std::io::stdout();
    for (group, attempts) in groups {
        for attempt in attempts {
            if only.is_some_and(|only| !attempt.act.name().contains(only.as_str())) {
                continue;
            }
            let control = match attempt.control {
                Control::Shown => "shown".to_owned(),
                Control::IfThere => "if there".to_owned(),
                Control::Not(why) => format!("not: {why}"),
            };
            if context.outside && matches!(attempt.control, Control::Not(_)) {
                continue;
            }
            let expected: Vec<String> = attempt.expect.iter().map(|number| number.to_string()).collect();
            let outcome = try_it(attempt, context);
            writeln!(out, "{group}\t{}\t{}\t{outcome}\t{control}", attempt.act.name(), expected.join(" "))
                .expect("told");
            out.flush().expect("told");
        }
    }
}

/// Runs in a child, so that an attempt does not affect the next one. `0`: the harm was done; else
/// an errno, or how it died.
fn try_it(attempt: &Attempt, context: &Context) -> String {
    let pid = call(FORK, &FORK_ARGS).expect("fork");
    if pid == 0 {
        // SAFETY: alarm(2) takes a number, and ends this child if it hangs.
        unsafe { libc::alarm(PATIENCE) };
        if context.outside {
            // Mounts and names that an attempt changes belong to this child, and end with it.
            call(libc::SYS_unshare, &[i64::from(libc::CLONE_NEWNS | libc::CLONE_NEWUTS)]).expect("root");
            act::mount("none", "/", "none", libc::MS_REC | libc::MS_PRIVATE).expect("private mounts");
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attempt.act.run(context)));
        let status = match outcome {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => error.raw_os_error().unwrap_or(BROKEN),
            Err(_) => BROKEN,
        };
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    let status = 0_i32;
    call(libc::SYS_wait4, &[pid, act::at(&status), 0, 0]).expect("waited");
    if libc::WIFSIGNALED(status) {
        format!("signal {}", libc::WTERMSIG(status))
    } else {
        libc::WEXITSTATUS(status).to_string()
    }
}

/// clone(2) as fork, which exists on every machine.
const FORK: i64 = libc::SYS_clone;
const FORK_ARGS: [i64; 5] = [libc::SIGCHLD as i64, 0, 0, 0, 0];
