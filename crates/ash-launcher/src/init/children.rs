//! The commands of a sandbox: running ones, exit statuses, and data for their stdin.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Events;
use super::payload::Payload;
use super::requests::Refusal;
use ash_model::processes;
use ash_protocol::init::{ChildStat, Exit, InitEvent};

/// Most running commands. With a low process limit it is less ([`processes::commands`]).
pub const MAX_LIVE: usize = 64;
/// Ended commands that `Stat` reports. Older ones are forgotten.
pub const MAX_ENDED: usize = 64;
/// Most accepted messages that are not yet copied, for all commands together.
pub const MAX_QUEUED: usize = 256;
/// Bytes copied to one stdin before the next.
const TURN: usize = 1 << 20;

#[derive(Debug)]
struct Child {
    number: u32,
    pid: i32,
    exited: Option<Exit>,
    /// Writing end, non-blocking. `None` without stdin, or after either side closed it.
    stdin: Option<OwnedFd>,
    close_when_fed: bool,
    queue: VecDeque<Message>,
    accepted: Option<u64>,
    delivered: Option<u64>,
}

#[derive(Debug)]
struct Message {
    number: u64,
    file: OwnedFd,
    copied: u64,
}

#[derive(Debug, Default)]
pub struct Children {
    /// In the order of their start.
    all: Vec<Child>,
}

impl Children {
    /// # Errors
    /// The number is in use, or too many commands run.
    pub fn admit(&self, number: u32) -> Result<(), Refusal> {
        if self.all.iter().any(|child| child.number == number) {
            return Err(Refusal::new("spawn", format!("child {number} exists already")));
        }
        let live = self.all.iter().filter(|child| child.exited.is_none()).count();
        // claude is one more.
        let most = super::process_limit().map_or(MAX_LIVE, |limit| MAX_LIVE.min(processes::commands(limit) + 1));
        if live >= most {
            return Err(Refusal::new("spawn", format!("the limit of {most} running commands is reached")));
        }
        Ok(())
    }

    pub fn add(&mut self, number: u32, payload: Payload) {
        let Payload { pid, stdin } = payload;
        self.all.push(Child {
            number,
            pid,
            exited: None,
            stdin,
            close_when_fed: false,
            queue: VecDeque::new(),
            accepted: None,
            delivered: None,
        });
    }

    /// Signals a command or, also after its end, the rest of its process group. No process is no
    /// error.
    pub fn signal(&self, number: u32, signal: i32, group: bool) -> Result<(), Refusal> {
        let child = self.all.iter().find(|child| child.number == number).ok_or_else(|| unknown("signal", number))?;
        let signal = nix::sys::signal::Signal::try_from(signal)
            .map_err(|_| Refusal::new("signal", format!("{signal} is not a signal")))?;
        let target = match (group, child.exited) {
            (true, _) => Pid::from_raw(-child.pid),
            (false, None) => Pid::from_raw(child.pid),
            (false, Some(_)) => return Ok(()),
        };
        match nix::sys::signal::kill(target, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(Refusal::new("signal", error)),
        }
    }

    /// Queues a file. An already accepted number needs no action.
    pub fn deliver(&mut self, number: u32, message: u64, file: OwnedFd) -> Result<(), Refusal> {
        const STEP: &str = "deliver";
        let queued: usize = self.all.iter().map(|child| child.queue.len()).sum();
        let child = self.find(STEP, number)?;
        if child.accepted.is_some_and(|accepted| message <= accepted) {
            return Ok(());
        }
        if child.stdin.is_none() || child.close_when_fed {
            return Err(Refusal::new(STEP, format!("stdin of child {number} is closed")));
        }
        if queued >= MAX_QUEUED {
            return Err(Refusal::new(STEP, format!("the limit of {MAX_QUEUED} queued messages is reached")));
        }
        // Any other file type could block init, and the whole sandbox with it.
        let stat = rustix::fs::fstat(&file).map_err(|error| Refusal::new(STEP, error))?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(Refusal::new(STEP, "the descriptor is not a regular file"));
        }
        rustix::io::pread(&file, &mut [0; 0], 0).map_err(|error| Refusal::new(STEP, error))?;
        child.accepted = Some(message);
        child.queue.push_back(Message { number: message, file, copied: 0 });
        Ok(())
    }

    pub fn close_stdin(&mut self, number: u32) -> Result<(), Refusal> {
        let child = self.find("close stdin", number)?;
        child.close_when_fed = true;
        child.close_if_fed();
        Ok(())
    }

    pub fn stat(&self) -> Vec<ChildStat> {
        let stat = |child: &Child| ChildStat {
            child: child.number,
            pid: child.pid,
            exited: child.exited,
            accepted: child.accepted,
            delivered: child.delivered,
        };
        self.all.iter().map(stat).collect()
    }

    /// Reaps everything that has ended: commands, and orphans adopted by PID 1.
    pub fn reap(&mut self, events: &mut Events) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => break,
                Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
                // A signal without a name in nix (real-time signals). The process is reaped
                // nevertheless.
                Err(_) => {
                    self.find_vanished(events);
                    continue;
                }
            };
            let running = |child: &&mut Child| child.pid == pid.as_raw() && child.exited.is_none();
            if let Some(child) = self.all.iter_mut().find(running) {
                child.end(status, events);
            }
        }
        self.forget_old();
    }

    /// Ends commands whose process is gone without a readable status.
    fn find_vanished(&mut self, events: &mut Events) {
        for child in self.all.iter_mut().filter(|child| child.exited.is_none()) {
            if nix::sys::signal::kill(Pid::from_raw(child.pid), None) == Err(nix::errno::Errno::ESRCH) {
                child.end(Exit::Signal(libc::SIGRTMIN()), events);
            }
        }
    }

    fn forget_old(&mut self) {
        let ended = self.all.iter().filter(|child| child.exited.is_some()).count();
        let mut surplus = ended.saturating_sub(MAX_ENDED);
        self.all.retain(|child| {
            let forget = surplus > 0 && child.exited.is_some();
            surplus -= usize::from(forget);
            !forget
        });
    }

    pub fn hungry(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.all
            .iter()
            .filter(|child| !child.queue.is_empty())
            .filter_map(|child| child.stdin.as_ref().map(AsFd::as_fd))
    }

    /// Copies as much as the pipes accept.
    pub fn feed(&mut self, buffer: &mut [u8], events: &mut Events) {
        for child in self.all.iter_mut().filter(|child| !child.queue.is_empty()) {
            child.feed(buffer, events);
            child.close_if_fed();
        }
    }

    fn find(&mut self, step: &'static str, number: u32) -> Result<&mut Child, Refusal> {
        self.all.iter_mut().find(|child| child.number == number).ok_or_else(|| unknown(step, number))
    }
}

fn unknown(step: &'static str, number: u32) -> Refusal {
    Refusal::new(step, format!("child {number} does not exist"))
}

impl Child {
    fn end(&mut self, status: Exit, events: &mut Events) {
        self.exited = Some(status);
        self.hang_up();
        events.push(InitEvent::Exited { child: self.number, status });
    }

    /// The reader is gone: waiting data is dropped, and `delivered` stays behind `accepted`.
    fn hang_up(&mut self) {
        self.stdin = None;
        self.queue.clear();
    }

    fn close_if_fed(&mut self) {
        if self.close_when_fed && self.queue.is_empty() {
            self.stdin = None;
        }
    }

    fn feed(&mut self, buffer: &mut [u8], events: &mut Events) {
        let mut left = TURN;
        while let (Some(stdin), Some(message)) = (&self.stdin, self.queue.front_mut()) {
            let read = match rustix::io::pread(&message.file, &mut *buffer, message.copied) {
                Ok(read) => read,
                Err(rustix::io::Errno::INTR) => continue,
                // A partial message must not be followed by another: claude would read both as one
                // line.
                Err(_) => return self.hang_up(),
            };
            if read == 0 {
                let number = message.number;
                self.queue.pop_front();
                self.delivered = Some(number);
                events.push(InitEvent::Delivered { child: self.number, message: number });
                continue;
            }
            match rustix::io::write(stdin, &buffer[..read]) {
                Ok(written) => {
                    message.copied += written as u64;
                    left = left.saturating_sub(written);
                    if left == 0 {
                        return;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => return self.hang_up(),
            }
        }
    }
}
