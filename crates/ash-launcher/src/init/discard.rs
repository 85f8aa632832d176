//! Discards the output of background processes of commands that have ended and were answered.
//!
//! Without a reader, the next line would kill such a process (SIGPIPE, signal(7)): a development
//! server started with `&` would die at its first request. So init keeps the reading ends and
//! discards the data. This uses CPU time of the sandbox, and one buffer for all pipes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::requests::Refusal;

/// Most pipes. Further ones are refused, and closed by their owner.
pub const MAX_PIPES: usize = 256;

#[derive(Debug, Default)]
pub struct Discards {
    pipes: Vec<OwnedFd>,
}

impl Discards {
    /// # Errors
    /// There are no descriptors, one is not a pipe, or the limit is reached. None is taken then.
    pub fn take(&mut self, pipes: Vec<OwnedFd>) -> Result<(), Refusal> {
        let refused = |why: String| Err(Refusal::new("discard", why));
        if pipes.is_empty() {
            return refused("at least 1 descriptor is required, got 0".to_owned());
        }
        if self.pipes.len() + pipes.len() > MAX_PIPES {
            return refused(format!("{MAX_PIPES} outputs of background jobs are read already"));
        }
        for pipe in &pipes {
            // Other file types could be readable forever.
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

    /// Reads at most one buffer from each of `ready`. Closes pipes without a writer.
    pub fn read(&mut self, ready: &[usize], buffer: &mut [u8]) {
        // In descending order: removing a closed one does not move the remaining ones.
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
