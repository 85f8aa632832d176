//! What holds of a process, as types: that it has one thread, and that it is the child of a fork.
//!
//! ```text
//!   require_single_thread() --> SingleThreaded --> clone_into, fork, clear_environment, close_strays
//!                                                       |
//!                                                       +--> in the child: Forked --> close_all_but
//! ```
//!
//! A fork of a process with several threads copies locks that another thread held; the environment cannot be changed while another
//! thread reads it. A function with such a precondition takes a proof of it as an argument, and
//! asks the kernel once more when it is used: a thread that was started after the proof was made is found.

use std::io;
use std::marker::PhantomData;

use super::clone::exit_now;

/// Exit status of a fork's child that left its own code by a return or a panic. Rust programs end with it after a panic.
const LEFT: i32 = 101;

/// Proof that this process had one thread when [`require_single_thread`] looked.
///
/// It stays in the thread it was made in, and cannot be made otherwise:
///
/// ```compile_fail
/// let forged = ash_kernel::single::SingleThreaded(std::marker::PhantomData);
/// ```
///
/// ```compile_fail
/// let one = ash_kernel::single::require_single_thread().unwrap();
/// std::thread::spawn(move || drop(one));
/// ```
///
/// ```compile_fail
/// ash_kernel::clone::fork();
/// ```
#[derive(Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

/// # Errors
/// When this process has more than one thread, or /proc is not there to say so.
pub fn require_single_thread() -> io::Result<SingleThreaded> {
    let one = SingleThreaded(PhantomData);
    one.check()?;
    Ok(one)
}

impl SingleThreaded {
    /// Asks the kernel again: a directory of /proc, about 5 microseconds.
    ///
    /// # Errors
    /// As [`require_single_thread`].
    pub fn check(&self) -> io::Result<()> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 { Ok(()) } else { Err(io::Error::other(format!("{threads} threads where only one is sound"))) }
    }
}

/// Proof that this process is the child of a fork: all its memory is a copy, and what else lives in it never runs again.
///
/// So its child's code ends here: dropped (by a return or a panic) it ends the process at once. No code of the parent, which the
/// child has a copy of, runs in the child.
#[derive(Debug)]
pub struct Forked(PhantomData<*const ()>);

impl Forked {
    pub(super) fn here() -> Self {
        Self(PhantomData)
    }

    /// The child of a fork has the one thread that called it.
    pub fn single(&self) -> SingleThreaded {
        SingleThreaded(PhantomData)
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        exit_now(LEFT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test runner itself has two threads at least.
    #[test]
    fn a_process_with_threads_gets_no_proof() {
        let (tell, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let refused = require_single_thread().unwrap_err().to_string();
        assert!(refused.contains("threads where only one is sound"), "{refused}");
        drop(tell);
        assert!(other.join().unwrap().is_err());
    }

    /// One that was made before the thread was started is of no use afterwards.
    #[test]
    fn a_proof_is_checked_again_where_it_is_used() {
        let stale = SingleThreaded(PhantomData);
        let (tell, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert!(crate::clone::fork(&stale).is_err());
        assert!(crate::clone::clone_into(&stale, 0, None).is_err());
        assert!(crate::sanitize::clear_environment(&stale, &[]).is_err());
        assert!(std::env::var_os("PATH").is_some(), "a refusal changes nothing");
        assert!(crate::inherited::close_strays(&stale, 3).is_err());
        drop(tell);
        assert!(other.join().unwrap().is_err());
    }
}
