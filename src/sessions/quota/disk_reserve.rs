//! Room that is kept free on the data directory's disk: below it nothing new is stored, and the database can still say so.

use crate::sessions::SessionError;
use crate::sessions::context::Shared;
use ash_observe::events::{self, OncePerMinute, event};

/// The reserve of the disk where the configuration names none: this, or a twentieth of the file system if that is less.
const RESERVE_BYTES: u64 = 1 << 30;

/// Every caller meets it at once.
static RESERVE: OncePerMinute = OncePerMinute::new();

impl Shared {
    /// # Errors
    /// `Full` when the file system of the data directory has no more than its reserve left: what runs goes on, and the
    /// database keeps room to say so.
    pub fn check_reserve(&self) -> Result<(), SessionError> {
        self.has_reserve().map_err(|why| {
            if RESERVE.now() {
                event!(&events::DISK_RESERVE, "{why}");
            }
            SessionError::Full(why)
        })
    }

    /// # Errors
    /// What is left and what is kept in reserve, in words.
    pub fn has_reserve(&self) -> Result<(), String> {
        let Some(free) = self.warden.free() else { return Ok(()) };
        let reserve = self.config.now().disk.reserve_bytes.unwrap_or(RESERVE_BYTES.min(free.total_bytes / 20));
        if free.bytes >= reserve {
            return Ok(());
        }
        Err(format!(
            "the disk that holds ashd's data has {} MiB left, less than its reserve of {} MiB (disk.reserve_bytes): nothing new is \
             begun; end sessions that are not needed, or give it more room",
            free.bytes >> 20,
            reserve >> 20
        ))
    }
}
