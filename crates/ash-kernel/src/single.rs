//! Proofs about a process as types: it has one thread, or it is the child of a fork.
//!
//! ```text
//!   require_single_thread() -> SingleThreaded -> clone_into, fork, clear_environment, close_strays
//!                                                    |
//!                                                    +-> in the child: Forked -> close_all_but
//! ```
//!
//! A fork copies locks held by other threads, and the environment must not change while another
//! thread reads it. Functions with such a precondition take a proof as an argument and check it
//! again with the kernel, which detects threads started later.

use std::io;
use std::marker::PhantomData;

use super::clone::exit_now;

/// Exit status of a forked child that returned or panicked. Rust uses the same status after a
/// panic.
const LEFT: i32 = 101;

/// Proof that this process had one thread when [`require_single_thread`] looked.
///
/// It stays in its thread and cannot be created otherwise:
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
/// This process has more than one thread, or /proc is missing.
pub fn require_single_thread() -> io::Result<SingleThreaded> {
    let one = SingleThreaded(PhantomData);
    one.check()?;
    Ok(one)
}

impl SingleThreaded {
    /// Checks again with the kernel: one directory of /proc, about 5 microseconds.
    ///
    /// # Errors
    /// As for [`require_single_thread`].
    pub fn check(&self) -> io::Result<()> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 { Ok(()) } else { Err(io::Error::other(format!("{threads} threads where only one is sound"))) }
    }
}

/// Proof that this process is the child of a fork, whose memory is a copy. Dropping it (by a return
/// or a panic) ends the process at once, so copied code of the parent never runs in the child.
#[derive(Debug)]
pub struct Forked(PhantomData<*const ()>);

impl Forked {
    pub(super) fn here() -> Self {
        Self(PhantomData)
    }

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

    /// The test runner has at least two threads.
    #[test]
    fn a_process_with_threads_gets_no_proof() {
        let (tell, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let refused = require_single_thread().unwrap_err().to_string();
        assert!(refused.contains("threads where only one is sound"), "{refused}");
        drop(tell);
        assert!(other.join().unwrap().is_err());
    }

    /// A proof from before the thread started is useless afterwards.
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
