//! Output that no one reads: a command has ended and was answered, and what it left in the background still prints.
//!
//! With the reading end closed, its next line would end it (SIGPIPE, signal(7)): a development server that was started with `&`
//! dies at its first request. So init keeps the reading ends, reads what comes and throws it away. It costs processor time of the
//! sandbox, and no memory: one buffer for all pipes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::requests::Refusal;

/// Pipes that are read at the same time; more are refused, and closed by whoever has them.
pub const MAX_PIPES: usize = 256;

#[derive(Debug, Default)]
pub struct Discards {
    pipes: Vec<OwnedFd>,
}

impl Discards {
    /// # Errors
    /// None came, one is no pipe, or too many are read already; then none of these is.
    pub fn take(&mut self, pipes: Vec<OwnedFd>) -> Result<(), Refusal> {
        let refused = |why: String| Err(Refusal::new("discard", why));
        if pipes.is_empty() {
            return refused("1 descriptor or more is needed, 0 came".to_owned());
        }
        if self.pipes.len() + pipes.len() > MAX_PIPES {
            return refused(format!("{MAX_PIPES} outputs of background jobs are read already"));
        }
        for pipe in &pipes {
            // Anything else could be readable for ever, and never at its end.
            let stat = rustix::fs::fstat(pipe).map_err(|error| Refusal::new("discard", error))?;
            if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_fifo() {
                return refused("the descriptor is not a pipe".to_owned());
            }
            // Reading must never block init, and the whole sandbox with it.
            rustix::io::ioctl_fionbio(pipe, true).map_err(|error| Refusal::new("discard", error))?;
        }
        self.pipes.extend(pipes);
        Ok(())
    }

    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pipes.iter().map(AsFd::as_fd)
    }

    pub fn len(&self) -> usize {
        self.pipes.len()
    }

    /// Reads each of `ready` once, one buffer at most: others get their turn. A pipe without a writer is closed.
    pub fn read(&mut self, ready: &[usize], buffer: &mut [u8]) {
        // From the last to the first: a closed one is taken out without moving those still to come.
        for index in ready.iter().rev() {
            let over = match rustix::io::read(&self.pipes[*index], &mut *buffer) {
                Ok(read) => read == 0,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
                Err(_) => true,
            };
            if over {
                self.pipes.swap_remove(*index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn what_is_written_vanishes_and_the_end_of_the_writer_is_the_end() {
        let (mut discards, mut buffer) = (Discards::default(), [0; 4096]);
        let (one, other) = (pipe(), pipe());
        discards.take(vec![one.0, other.0]).unwrap();
        for _ in 0..100 {
            assert_eq!(rustix::io::write(&one.1, &[b'x'; 4096]), Ok(4096));
            discards.read(&[0], &mut buffer);
        }
        discards.read(&[0, 1], &mut buffer);
        assert_eq!(discards.len(), 2, "nothing to read is no end");
        drop(one.1);
        discards.read(&[0, 1], &mut buffer);
        assert_eq!(discards.len(), 1);
        assert_eq!(rustix::io::write(&other.1, b"still read"), Ok(10));
    }

    #[test]
    fn there_is_a_bound_and_only_pipes_are_taken() {
        let mut discards = Discards::default();
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(discards.take(vec![file]).unwrap_err().message.contains("not a pipe"));
        assert!(discards.take(vec![]).is_err());
        let pipes: Vec<_> = (0..MAX_PIPES).map(|_| pipe()).collect();
        let (reads, _writes): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        discards.take(reads).unwrap();
        let full = discards.take(vec![pipe().0]).unwrap_err();
        assert!(full.message.contains("256 outputs"), "{}", full.message);
        assert_eq!(discards.len(), MAX_PIPES);
    }
}
