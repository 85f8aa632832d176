//! Tar archives of directory trees in bounded memory, compatible with GNU tar, bsdtar and Python's
//! tarfile.
//!
//! ```text
//!   pack:  kernel::walk (untrusted tree) --> write (GNU headers, pax subseconds) --> gzip or zstd
//!   read:  gzip, zstd or plain --> read (ustar, GNU, pax, sparse) --> entries with their pieces
//! ```
pub mod coding;
pub mod pack;
pub mod read;
pub mod write;

/// Pieces of a sparse file, each an offset and a length in bytes.
pub type Pieces = Vec<(u64, u64)>;

/// Most pieces of one file: 4 MiB of memory.
pub const MAX_PIECES: usize = 262_144;

/// A time in seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Time {
    /// The modification time of a file.
    pub fn of(stat: &rustix::fs::Stat) -> Self {
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0).min(999_999_999);
        Self { seconds: stat.st_mtime, nanoseconds }
    }

    /// Both times of a file, for [`rustix::fs::futimens`] or [`rustix::fs::utimensat`].
    pub fn stamps(self) -> rustix::fs::Timestamps {
        let time = rustix::fs::Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds.into() };
        rustix::fs::Timestamps { last_access: time, last_modification: time }
    }

    /// As a decimal number for pax, which requires at least the seconds.
    fn decimal(self) -> String {
        let Self { seconds, nanoseconds } = self;
        match (seconds, nanoseconds) {
            (_, 0) => seconds.to_string(),
            (0.., _) => format!("{seconds}.{nanoseconds:09}"),
            _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        }
    }

    /// The reverse. Digits after the ninth are ignored.
    fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_number(whole) || !is_number(part) {
            return None;
        }
        let nine: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
        let (seconds, nanoseconds): (i64, u32) = (whole.parse().ok()?, nine.parse().ok()?);
        Some(match (negative, nanoseconds) {
            (false, _) => Self { seconds, nanoseconds },
            (true, 0) => Self { seconds: -seconds, nanoseconds },
            (true, _) => Self { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal_numbers() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (1_700_000_000, 123_456_789, "1700000000.123456789"),
            (5, 1, "5.000000001"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 250_000_000, "-1.750000000"),
            (-7, 0, "-7"),
        ] {
            let time = Time { seconds, nanoseconds };
            assert_eq!(time.decimal(), text);
            assert_eq!(Time::parse(text), Some(time), "{text}");
        }
        assert_eq!(Time::parse("1.5"), Some(Time { seconds: 1, nanoseconds: 500_000_000 }));
        assert_eq!(Time::parse("1.0000000019"), Some(Time { seconds: 1, nanoseconds: 1 }));
        for text in ["", "-", ".5", "x", "1.x", "1e3", "99999999999999999999"] {
            assert_eq!(Time::parse(text), None, "{text}");
        }
    }
}
