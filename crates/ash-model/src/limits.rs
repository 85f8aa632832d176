//! The resource limits of a sandbox: all of them, one by name, and the subset that one level sets.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The resource limits of a sandbox. `docs/limits.md` describes what happens at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory, including the tmpfs mounts of the sandbox. At the limit: the OOM killer
    /// ends the group.
    pub memory_bytes: u64,
    /// Additional bytes of swap. 0 disables swap for the group.
    pub swap_bytes: u64,
    /// Thousandths of one core (1000 = one core). At the limit: throttled.
    pub cpu_millis: u64,
    /// Relative share when cores are scarce, 1 to 10000, default 100 (`cpu.weight` of cgroup v2).
    pub cpu_weight: u64,
    /// Processes and threads together. At the limit: fork fails with `EAGAIN`.
    pub pids: u64,
    /// Bytes of workspace and home on disk. At the limit: the session is frozen and gets an event.
    pub disk_bytes: u64,
    /// Files and directories of workspace and home. At the limit: the same as for bytes.
    pub disk_files: u64,
    /// Milliseconds one turn may take. At the limit: interrupted.
    pub turn_ms: u64,
    /// Bytes per second read from, and written to, the disk that holds the sessions. At the limit:
    /// throttled. Omitted from JSON when [`UNLIMITED`], so that an older launcher or database
    /// understands it.
    #[serde(default = "unlimited", skip_serializing_if = "is_unlimited")]
    pub io_read_bps: u64,
    #[serde(default = "unlimited", skip_serializing_if = "is_unlimited")]
    pub io_write_bps: u64,
    /// Operations per second, at the limit: the same as for bytes.
    #[serde(default = "unlimited", skip_serializing_if = "is_unlimited")]
    pub io_read_iops: u64,
    #[serde(default = "unlimited", skip_serializing_if = "is_unlimited")]
    pub io_write_iops: u64,
}

/// The value of a disabled limit, `null` in the API. Only limits with [`Limit::may_be_unlimited`]
/// have it.
pub const UNLIMITED: u64 = u64::MAX;

fn unlimited() -> u64 {
    UNLIMITED
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_unlimited(value: &u64) -> bool {
    *value == UNLIMITED
}

impl Default for Limits {
    /// 2 GiB of memory, one core, 512 pids, 1 GiB of disk.
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            swap_bytes: 2 << 30,
            cpu_millis: 1000,
            cpu_weight: 100,
            pids: 512,
            disk_bytes: 1 << 30,
            disk_files: 200_000,
            turn_ms: 3_600_000,
            io_read_bps: UNLIMITED,
            io_write_bps: UNLIMITED,
            io_read_iops: UNLIMITED,
            io_write_iops: UNLIMITED,
        }
    }
}

/// One limit by its name, as used in the API, the database and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    MemoryBytes,
    SwapBytes,
    CpuMillis,
    CpuWeight,
    Pids,
    DiskBytes,
    DiskFiles,
    TurnMs,
    IoReadBps,
    IoWriteBps,
    IoReadIops,
    IoWriteIops,
}

impl Limit {
    pub const ALL: [Self; 12] = [
        Self::MemoryBytes,
        Self::SwapBytes,
        Self::CpuMillis,
        Self::CpuWeight,
        Self::Pids,
        Self::DiskBytes,
        Self::DiskFiles,
        Self::TurnMs,
        Self::IoReadBps,
        Self::IoWriteBps,
        Self::IoReadIops,
        Self::IoWriteIops,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryBytes => "memoryBytes",
            Self::SwapBytes => "swapBytes",
            Self::CpuMillis => "cpuMillis",
            Self::CpuWeight => "cpuWeight",
            Self::Pids => "pids",
            Self::DiskBytes => "diskBytes",
            Self::DiskFiles => "diskFiles",
            Self::TurnMs => "turnMs",
            Self::IoReadBps => "ioReadBps",
            Self::IoWriteBps => "ioWriteBps",
            Self::IoReadIops => "ioReadIops",
            Self::IoWriteIops => "ioWriteIops",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::MemoryBytes | Self::SwapBytes | Self::DiskBytes => "bytes",
            Self::CpuMillis => "thousandths of a core",
            Self::CpuWeight => "share, 1 to 10000",
            Self::Pids => "processes and threads",
            Self::DiskFiles => "files and directories",
            Self::TurnMs => "milliseconds",
            Self::IoReadBps | Self::IoWriteBps => "bytes a second",
            Self::IoReadIops | Self::IoWriteIops => "operations a second",
        }
    }

    /// The smallest usable value. claude needs 64 MiB to start (measured) and about 20 threads. The
    /// kernel accepts no CPU quota below 1 ms in 100 ms and no weight of 0.
    pub fn least(self) -> u64 {
        match self {
            Self::MemoryBytes => 64 << 20,
            Self::SwapBytes => 0,
            Self::CpuMillis => 10,
            Self::CpuWeight => 1,
            Self::Pids => 16,
            Self::DiskBytes => 1 << 20,
            Self::DiskFiles => 64,
            Self::TurnMs => 1000,
            // 1 MiB/s: with less, the start of claude takes minutes.
            Self::IoReadBps | Self::IoWriteBps => 1 << 20,
            Self::IoReadIops | Self::IoWriteIops => 16,
        }
    }

    /// Whether this limit is disabled by default.
    pub fn may_be_unlimited(self) -> bool {
        matches!(self, Self::IoReadBps | Self::IoWriteBps | Self::IoReadIops | Self::IoWriteIops)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Limit {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|limit| limit.as_str() == name).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|limit| limit.as_str()).collect();
            format!("\"{name}\" is not a limit ({})", all.join(", "))
        })
    }
}

/// The limits that one level (a tenant, an agent, a session) sets. Other levels decide the rest.
pub type PartialLimits = BTreeMap<Limit, u64>;

impl Limits {
    pub fn get(&self, limit: Limit) -> u64 {
        match limit {
            Limit::MemoryBytes => self.memory_bytes,
            Limit::SwapBytes => self.swap_bytes,
            Limit::CpuMillis => self.cpu_millis,
            Limit::CpuWeight => self.cpu_weight,
            Limit::Pids => self.pids,
            Limit::DiskBytes => self.disk_bytes,
            Limit::DiskFiles => self.disk_files,
            Limit::TurnMs => self.turn_ms,
            Limit::IoReadBps => self.io_read_bps,
            Limit::IoWriteBps => self.io_write_bps,
            Limit::IoReadIops => self.io_read_iops,
            Limit::IoWriteIops => self.io_write_iops,
        }
    }

    /// These values, limited by `ceiling`.
    #[must_use]
    pub fn at_most(mut self, ceiling: &Self) -> Self {
        for limit in Limit::ALL {
            self.set(limit, self.get(limit).min(ceiling.get(limit)));
        }
        self
    }

    pub fn set(&mut self, limit: Limit, value: u64) {
        *match limit {
            Limit::MemoryBytes => &mut self.memory_bytes,
            Limit::SwapBytes => &mut self.swap_bytes,
            Limit::CpuMillis => &mut self.cpu_millis,
            Limit::CpuWeight => &mut self.cpu_weight,
            Limit::Pids => &mut self.pids,
            Limit::DiskBytes => &mut self.disk_bytes,
            Limit::DiskFiles => &mut self.disk_files,
            Limit::TurnMs => &mut self.turn_ms,
            Limit::IoReadBps => &mut self.io_read_bps,
            Limit::IoWriteBps => &mut self.io_write_bps,
            Limit::IoReadIops => &mut self.io_read_iops,
            Limit::IoWriteIops => &mut self.io_write_iops,
        } = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_everywhere() {
        let mut limits = Limits::default();
        for (n, limit) in Limit::ALL.into_iter().enumerate() {
            limits.set(limit, n as u64);
        }
        let json = serde_json::to_value(limits).unwrap();
        assert_eq!(json.as_object().unwrap().len(), Limit::ALL.len());
        for (n, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limits.get(limit), n as u64);
            assert_eq!(json[limit.as_str()], n, "{limit}");
            assert_eq!(serde_json::to_value(limit).unwrap(), limit.as_str());
            assert_eq!(limit.as_str().parse(), Ok(limit));
        }
        assert!("memory".parse::<Limit>().unwrap_err().contains("memoryBytes"));
    }

    #[test]
    fn what_bounds_nothing_is_not_written() {
        let text = serde_json::to_string(&Limits::default()).unwrap();
        assert!(!text.contains("io"), "{text}");
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), Limits::default());
        let some = Limits { io_write_bps: 5 << 20, ..Limits::default() };
        let text = serde_json::to_string(&some).unwrap();
        assert!(text.contains("ioWriteBps") && !text.contains("ioReadBps"), "{text}");
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), some);
        for limit in Limit::ALL {
            assert_eq!(Limits::default().get(limit) == UNLIMITED, limit.may_be_unlimited(), "{limit}");
        }
    }

    #[test]
    fn the_defaults_are_above_the_least() {
        for limit in Limit::ALL {
            assert!(Limits::default().get(limit) >= limit.least(), "{limit}");
        }
    }
}
