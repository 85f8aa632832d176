//! What a restarted ashd must know about a running claude: `<session>/process.json`.

use std::io;

use serde::{Deserialize, Serialize};

use crate::sessions::claude::ProcessFlags;
use crate::sessions::workspace::layout::{SessionDir, write_whole};

/// Children of init below this number are claude processes; from it on, commands of `POST /exec`.
pub const FIRST_EXEC_CHILD: u32 = 1 << 24;

/// Written before each process starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessRecord {
    /// The session's token for the gateway, in place of a key. It never changes: claude has it in
    /// its environment, which a restarted ashd cannot read.
    pub token: String,
    /// init's number of the newest claude.
    pub child: u32,
    /// What that claude was started with, beyond the session's own options.
    pub flags: ProcessFlags,
    /// Whether it last reported agents that work in the background.
    pub background: bool,
    /// Whether it reports on its messages (`command_lifecycle`).
    pub reports: bool,
}

impl ProcessRecord {
    /// `None` when the session never had a process.
    pub fn read(dir: &SessionDir) -> io::Result<Option<Self>> {
        match std::fs::read(dir.process()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn write(&self, dir: &SessionDir) -> io::Result<()> {
        write_whole(&dir.process(), &serde_json::to_vec(self)?)
    }

    /// An unguessable token: 32 random bytes, base64url.
    pub fn new_token() -> String {
        use base64::Engine;
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("getrandom works once the kernel has booted");
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
    }
}

/// Numbers of messages for claude's stdin. They only grow, so that init recognises a message it
/// already has. `turn << 32` is the message of that turn; the numbers after it are the lines around
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageNumbers {
    last: u64,
}

impl MessageNumbers {
    /// `accepted` is the newest number that init has, `turn` the session's newest turn.
    pub fn after(turn: i64, accepted: Option<u64>) -> Self {
        Self { last: accepted.unwrap_or(0).max(of_turn(turn)) }
    }

    /// For a line that is not a turn's message.
    pub fn line(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// For the message of a turn.
    pub fn turn(&mut self, turn: i64) -> u64 {
        self.last = self.last.max(of_turn(turn));
        of_turn(turn)
    }
}

/// The number of a turn's message.
pub fn of_turn(turn: i64) -> u64 {
    u64::try_from(turn).unwrap_or(0) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_only_grow_and_a_turns_number_is_known_beforehand() {
        let mut numbers = MessageNumbers::after(0, None);
        assert_eq!(numbers.line(), 1, "initialize");
        assert_eq!(numbers.turn(1), 1 << 32);
        assert_eq!(numbers.line(), (1 << 32) + 1, "a line within turn 1");
        assert_eq!(numbers.turn(2), 2 << 32);
        // A restarted ashd continues after init's newest number.
        let mut again = MessageNumbers::after(2, Some((2 << 32) + 5));
        assert_eq!(again.line(), (2 << 32) + 6);
        // The turn's message was committed and not delivered: its number is still free.
        let again = MessageNumbers::after(3, Some((2 << 32) + 5));
        assert!(again.last >= of_turn(3));
    }

    #[test]
    fn the_record_survives_and_its_absence_is_no_error() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SessionDir::new(temp.path(), uuid::Uuid::new_v4());
        dir.make().unwrap();
        assert_eq!(ProcessRecord::read(&dir).unwrap(), None);
        let record = ProcessRecord { token: ProcessRecord::new_token(), child: 7, ..Default::default() };
        record.write(&dir).unwrap();
        assert_eq!(ProcessRecord::read(&dir).unwrap(), Some(record));
        std::fs::write(dir.process(), "{").unwrap();
        assert!(ProcessRecord::read(&dir).is_err());
    }
}
