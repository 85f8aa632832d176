//! Reads a command's output. Both the kept and the read bytes are bounded.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::unix::pipe::Receiver;

/// Bytes of one output that are kept.
pub const KEPT: usize = 1 << 20;
/// Bytes of one output that are read. Then the pipe is closed, and the next write ends the writer
/// with SIGPIPE: endless output costs bounded work, whatever the deadline.
pub const READ: u64 = 64 << 20;
/// Bytes kept of an output whose end alone is wanted.
const LAST: usize = 4096;
/// Bytes of one read: the capacity of a pipe.
const PIECE: usize = 64 << 10;

#[derive(Debug)]
pub struct Drain {
    /// `None` at the end, or when no more is wanted.
    pipe: Option<Receiver>,
    kept: Vec<u8>,
    read: u64,
    /// Keeps the end, and reads all of it.
    last: bool,
}

impl Drain {
    /// `pipe` is non-blocking.
    ///
    /// # Errors
    /// When tokio cannot watch it.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { pipe: Some(Receiver::from_owned_fd(pipe)?), kept: Vec::new(), read: 0, last: false })
    }

    /// Keeps the last lines, and reads without limit.
    ///
    /// # Errors
    /// As [`Drain::new`].
    pub fn of_the_end(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { last: true, ..Self::new(pipe)? })
    }

    /// Reads until all writers are gone, or no more is wanted. Cancel safe.
    pub async fn all(&mut self) {
        while let Some(pipe) = &self.pipe {
            if pipe.readable().await.is_err() {
                self.pipe = None;
                return;
            }
            let mut buffer = [0; PIECE];
            let read = pipe.try_read(&mut buffer);
            self.take(read, &buffer);
        }
    }

    /// Takes what is in the pipe now. Later output is not followed: see [`Drain::left`].
    pub fn rest(&mut self) {
        for _ in 0..=KEPT / PIECE {
            let Some(pipe) = &self.pipe else { return };
            let mut buffer = [0; PIECE];
            // Reads directly: tokio may not have noticed the last bytes yet.
            let read = rustix::io::read(pipe, &mut buffer).map_err(io::Error::from);
            if matches!(&read, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
            self.take(read, &buffer);
        }
    }

    /// The pipe, when it still has a writer and was not closed for too much output.
    pub fn left(&mut self) -> Option<OwnedFd> {
        self.pipe.take()?.into_nonblocking_fd().ok()
    }

    fn take(&mut self, read: io::Result<usize>, buffer: &[u8]) {
        match read {
            Ok(0) => self.pipe = None,
            Ok(n) if self.last => {
                self.kept.extend_from_slice(&buffer[..n]);
                let surplus = self.kept.len().saturating_sub(LAST);
                self.kept.drain(..surplus);
                self.read += n as u64;
            }
            Ok(n) => {
                let room = KEPT - self.kept.len();
                self.kept.extend_from_slice(&buffer[..n.min(room)]);
                self.read += n as u64;
                if self.read >= READ {
                    self.pipe = None;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.pipe = None,
        }
    }

    pub fn truncated(&self) -> bool {
        self.read > self.kept.len() as u64
    }

    /// The last whole lines, without control characters.
    pub fn last_lines(self) -> String {
        let cut = self.read > self.kept.len() as u64;
        let from = self.kept.iter().position(|byte| *byte == b'\n').filter(|_| cut).map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&self.kept[from..]);
        text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect::<String>().trim().to_owned()
    }

    /// The kept bytes as text; `name` is for the truncation note.
    pub fn text(self, name: &str) -> String {
        let truncated = self.truncated();
        let mut kept = self.kept;
        if truncated {
            // The cut may split a character.
            while kept.last().is_some_and(|byte| byte & 0xc0 == 0x80) {
                kept.pop();
            }
            if kept.last().is_some_and(|byte| *byte >= 0xc0) {
                kept.pop();
            }
        }
        let mut text = match String::from_utf8(kept) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        if truncated {
            let closed = if self.read >= READ { " and closed" } else { "" };
            text += &format!(
                "\n[ashd: {name} truncated to {KEPT} of {} bytes{closed}; redirect long output to a file]\n",
                self.read
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pair() -> (Drain, std::fs::File) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        (Drain::new(read).unwrap(), write.into())
    }

    fn write(mut to: std::fs::File, what: Vec<u8>) -> tokio::task::JoinHandle<io::Result<()>> {
        tokio::task::spawn_blocking(move || to.write_all(&what))
    }

    #[tokio::test]
    async fn output_is_whole_up_to_the_bound_and_cut_with_a_word_behind_it() {
        for (length, cut) in [(0, false), (1, false), (KEPT, false), (KEPT + 1, true), (3 << 20, true)] {
            let (mut drain, to) = pair();
            let writer = write(to, vec![b'x'; length]);
            drain.all().await;
            writer.await.unwrap().unwrap();
            assert_eq!(drain.truncated(), cut, "{length}");
            let text = drain.text("stdout");
            assert_eq!(text.bytes().filter(|b| *b == b'x').count(), length.min(KEPT), "{length}");
            assert_eq!(text.contains(&format!("stdout truncated to {KEPT} of {length} bytes;")), cut);
        }
    }

    #[tokio::test]
    async fn an_endless_writer_is_hung_up_on() {
        let (mut drain, to) = pair();
        let writer = write(to, vec![b'x'; READ as usize + (1 << 20)]);
        drain.all().await;
        assert_eq!(writer.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(drain.read < READ + PIECE as u64 && drain.kept.len() == KEPT);
        assert!(drain.text("stderr").contains("bytes and closed;"));
    }

    #[tokio::test]
    async fn the_rest_is_what_is_there() {
        let (mut drain, mut to) = pair();
        to.write_all(b"said before").unwrap();
        drain.rest();
        to.write_all(b"said after").unwrap();
        let left = drain.left().expect("it has a writer");
        let mut buffer = [0; 64];
        assert_eq!(rustix::io::read(&left, &mut buffer), Ok(10), "later output stays in the pipe");
        assert_eq!(drain.text("stdout"), "said before");
    }

    #[tokio::test]
    async fn a_pipe_at_its_end_or_closed_for_too_much_is_not_left() {
        let (mut drain, mut to) = pair();
        to.write_all(b"all").unwrap();
        drop(to);
        drain.rest();
        assert!(drain.left().is_none());
        assert_eq!(drain.text("stdout"), "all");
    }

    #[tokio::test]
    async fn the_last_lines_of_much_output() {
        let (read, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        let mut drain = Drain::of_the_end(read).unwrap();
        let mut said: Vec<u8> = (0..2_000_000).flat_map(|n| format!("line {n:040}\n").into_bytes()).collect();
        said.extend_from_slice(b"\x1b[31mred\x07\n");
        let writer = write(write_end.into(), said);
        drain.all().await;
        writer.await.unwrap().unwrap();
        let last = drain.last_lines();
        assert!(last.len() <= LAST && last.len() > LAST / 2, "{}", last.len());
        assert!(last.lines().rev().skip(1).all(|line| line.len() == 45), "{last}");
        assert!(last.ends_with("1999999\n[31mred"), "{last}");
    }

    #[tokio::test]
    async fn a_cut_does_not_break_a_character() {
        let (mut drain, to) = pair();
        // The bound splits the last character.
        let mut bytes = vec![b'x'; KEPT - 1];
        bytes.extend_from_slice("éé".as_bytes());
        let writer = write(to, bytes);
        drain.all().await;
        writer.await.unwrap().unwrap();
        let text = drain.text("stdout");
        assert!(text.starts_with('x') && !text.contains(['é', '\u{fffd}']));
        let (mut drain, to) = pair();
        let writer = write(to, vec![b'a', 0xff, b'b']);
        drain.all().await;
        writer.await.unwrap().unwrap();
        assert_eq!(drain.text("stdout"), "a\u{fffd}b");
    }
}
