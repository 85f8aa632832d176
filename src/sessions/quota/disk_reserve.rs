//! Reserve of free space on the data directory's disk. Below it new work is refused, so that the
//! database can still write.

use crate::sessions::SessionError;
use crate::sessions::context::Shared;
use ash_observe::events::{self, OncePerMinute, event};

/// Default reserve: this, or 5 % of the file system if that is less.
const RESERVE_BYTES: u64 = 1 << 30;

/// At most one log entry per minute, for all callers.
static RESERVE: OncePerMinute = OncePerMinute::new();

impl Shared {
    /// # Errors
    /// `Full` when free space of the data directory's file system is below the reserve. Running
    /// work continues.
    pub fn check_reserve(&self) -> Result<(), SessionError> {
        self.has_reserve().map_err(|why| {
            if RESERVE.now() {
                event!(&events::DISK_RESERVE, "{why}");
            }
            SessionError::Full(why)
        })
    }

    /// # Errors
    /// Text with the free space and the reserve.
    pub fn has_reserve(&self) -> Result<(), String> {
        let Some(free) = self.warden.free() else { return Ok(()) };
        let reserve = self.config.now().disk.reserve_bytes.unwrap_or(RESERVE_BYTES.min(free.total_bytes / 20));
        if free.bytes >= reserve {
            return Ok(());
        }
        Err(format!(
            "free disk space of the data directory ({} MiB) is below the reserve of {} MiB (disk.reserve_bytes): new work is \
             refused; end sessions or add disk space",
            free.bytes >> 20,
            reserve >> 20
        ))
    }
}
