//! Converts [`Limits`] to the values of the cgroup files. `docs/cgroups.md` has the table.

use std::path::Path;

use super::{CgroupError, CgroupPaths};
use ash_model::{Limits, UNLIMITED};

/// Microseconds of the CPU quota's period: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// Thousandths of a core. The kernel refuses a quota below 1 ms per period.
const MIN_CPU_MILLIS: u64 = 10;
/// Bytes. With less, not even init starts.
const MIN_MEMORY: u64 = 4 << 20;
/// init, the payload and one child of it.
const MIN_PIDS: u64 = 3;

/// Most bytes of socket buffers on cgroup v1. The kernel's own limit for the whole host
/// (net.ipv4.tcp_mem) is about a tenth of its memory.
const MAX_SOCKETS: u64 = 64 << 20;

/// The values to write. They are the same for both cgroup versions where the files mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Values {
    pub memory_bytes: i64,
    pub swap_bytes: i64,
    /// Bytes of TCP and UDP buffers: an eighth of the memory, at most 64 MiB. v1 counts them
    /// separately, v2 as memory.
    pub socket_bytes: u64,
    /// Microseconds of CPU time per period of 100 ms.
    pub quota_us: i64,
    /// `cpu.weight` of cgroup v2.
    pub weight: u64,
    /// `cpu.shares` of cgroup v1. Its default of 1024 equals the default weight of 100.
    pub shares: u64,
    pub pids: i64,
    /// Bytes read and written, operations read and written, per second. `None`: no limit.
    pub io: [Option<u64>; 4],
}

/// The v1 files, in the order of [`Values::io`].
pub const V1_IO: [&str; 4] = [
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
];
/// The keys of v2's `io.max`, in the same order.
pub const V2_IO: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// Checks that the kernel accepts the limits, and converts them.
///
/// # Errors
/// [`CgroupError::Limit`] names the field, its value and the allowed values.
pub fn values(limits: &Limits) -> Result<Values, CgroupError> {
    let at_least = |field, value: u64, min: u64| {
        if value >= min {
            return Ok(());
        }
        Err(CgroupError::Limit { field, value, why: format!("the minimum is {min}") })
    };
    at_least("memoryBytes", limits.memory_bytes, MIN_MEMORY)?;
    at_least("cpuMillis", limits.cpu_millis, MIN_CPU_MILLIS)?;
    at_least("pids", limits.pids, MIN_PIDS)?;
    if !(1..=10_000).contains(&limits.cpu_weight) {
        let why = "must be 1 to 10000".to_owned();
        return Err(CgroupError::Limit { field: "cpuWeight", value: limits.cpu_weight, why });
    }
    for (field, value) in [
        ("ioReadBps", limits.io_read_bps),
        ("ioWriteBps", limits.io_write_bps),
        ("ioReadIops", limits.io_read_iops),
        ("ioWriteIops", limits.io_write_iops),
    ] {
        at_least(field, value, 1)?;
    }
    let bounded = |value: u64| (value != UNLIMITED).then_some(value);
    // Larger values mean "no limit" for the kernel. The cap also prevents an overflow of memory +
    // swap.
    let cap = |value: u64, max: u64| i64::try_from(value.min(max)).unwrap_or(i64::MAX);
    Ok(Values {
        memory_bytes: cap(limits.memory_bytes, 1 << 60),
        swap_bytes: cap(limits.swap_bytes, 1 << 60),
        socket_bytes: (limits.memory_bytes / 8).min(MAX_SOCKETS),
        quota_us: cap(limits.cpu_millis.saturating_mul(PERIOD_US / 1000), 1 << 40),
        weight: limits.cpu_weight,
        shares: (limits.cpu_weight * 1024 / 100).clamp(2, 262_144),
        // PID_MAX_LIMIT of 64-bit kernels.
        pids: cap(limits.pids, 4_194_304),
        // Operations are 32 bits wide in the kernel, and v1 truncates larger values.
        io: [
            bounded(limits.io_read_bps),
            bounded(limits.io_write_bps),
            bounded(limits.io_read_iops).map(|n| n.min(u64::from(u32::MAX - 1))),
            bounded(limits.io_write_iops).map(|n| n.min(u64::from(u32::MAX - 1))),
        ],
    })
}

/// Writes the limits to every controller of the sandbox.
///
/// Returns the limits that this host cannot enforce, as text for the journal.
///
/// # Errors
/// The first file that refused its value. Values written before stay: the caller removes the leaf,
/// or writes the old limits again.
pub fn apply(paths: &CgroupPaths, limits: &Limits) -> Result<Vec<String>, CgroupError> {
    let values = values(limits)?;
    let mut missing = Vec::new();
    match &paths.memory {
        Some(dir) => memory(dir, &values, paths.v1, &mut missing)?,
        None => missing.push("memory: this host has no memory controller for sandboxes".to_owned()),
    }
    match &paths.cpu {
        Some(dir) => cpu(dir, &values, paths.v1)?,
        None => missing.push("cpu: the host has no cpu controller for sandboxes".to_owned()),
    }
    match &paths.pids {
        Some(dir) => super::write(&dir.join("pids.max"), &values.pids.to_string())?,
        None => missing.push("pids: the host has no pids controller for sandboxes".to_owned()),
    }
    match (&paths.io, &paths.io_device) {
        (Some(dir), Some(device)) => io(dir, device, values.io, paths.v1)?,
        (None, _) => missing.push("io: this host has no io controller for sandboxes".to_owned()),
        (_, None) => missing.push("io: the data directory is not on a disk with I/O limits".to_owned()),
    }
    Ok(missing)
}

/// Removes the CPU and I/O limits of a group that is about to end. They would slow down the release
/// of its memory.
///
/// # Errors
/// Names the file that refused.
pub fn lift(paths: &CgroupPaths) -> Result<(), CgroupError> {
    if let Some(dir) = &paths.cpu {
        let (file, none) = if paths.v1 { ("cpu.cfs_quota_us", "-1") } else { ("cpu.max", "max") };
        super::write(&dir.join(file), none)?;
    }
    match (&paths.io, &paths.io_device) {
        (Some(dir), Some(device)) => io(dir, device, [None; 4], paths.v1),
        _ => Ok(()),
    }
}

/// Reads and writes of the disk, bytes and operations.
fn io(dir: &Path, device: &str, values: [Option<u64>; 4], v1: bool) -> Result<(), CgroupError> {
    // The first value for a disk makes the kernel stop the disk's queue for a moment, so
    // "no limit" is written only if there was one.
    let said = |file: &str| {
        let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.lines().any(|line| line.split(' ').next() == Some(device))
    };
    if v1 {
        for (file, value) in V1_IO.into_iter().zip(values) {
            if value.is_some() || said(file) {
                // 0 removes the limit.
                super::write(&dir.join(file), &format!("{device} {}", value.unwrap_or(0)))?;
            }
        }
        return Ok(());
    }
    if values == [None; 4] && !said("io.max") {
        return Ok(());
    }
    let words = V2_IO.into_iter().zip(values);
    let words: String =
        words.map(|(word, value)| format!(" {word}={}", value.map_or("max".to_owned(), |n| n.to_string()))).collect();
    super::write(&dir.join("io.max"), &format!("{device}{words}"))
}

fn cpu(dir: &Path, values: &Values, v1: bool) -> Result<(), CgroupError> {
    let put = |file: &str, value: &str| super::write(&dir.join(file), value);
    if v1 {
        put("cpu.cfs_period_us", &PERIOD_US.to_string())?;
        put("cpu.cfs_quota_us", &values.quota_us.to_string())?;
        return put("cpu.shares", &values.shares.to_string());
    }
    put("cpu.max", &format!("{} {PERIOD_US}", values.quota_us))?;
    put("cpu.weight", &values.weight.to_string())
}

fn memory(dir: &Path, values: &Values, v1: bool, missing: &mut Vec<String>) -> Result<(), CgroupError> {
    let put = |file: &str, value: &str| super::write(&dir.join(file), value);
    let bytes = values.memory_bytes.to_string();
    if v1 {
        let both = values.memory_bytes.saturating_add(values.swap_bytes).to_string();
        let has_swap = dir.join("memory.memsw.limit_in_bytes").exists();
        // The kernel requires memory <= memory+swap at every moment: raise the sum first, lower it
        // last.
        if has_swap && put("memory.limit_in_bytes", &bytes).is_err() {
            put("memory.memsw.limit_in_bytes", &both)?;
        }
        put("memory.limit_in_bytes", &bytes)?;
        if has_swap {
            put("memory.memsw.limit_in_bytes", &both)?;
        } else {
            missing.push("swap: this kernel does not account swap".to_owned());
        }
        if dir.join("memory.kmem.tcp.limit_in_bytes").exists() {
            put("memory.kmem.tcp.limit_in_bytes", &values.socket_bytes.to_string())?;
        } else {
            missing.push("memory: this kernel does not account buffers of sockets".to_owned());
        }
        // v1 has no memory.oom.group: one process of the group dies at the limit, not all.
        return Ok(());
    }
    // No memory.high below the maximum: beyond it the kernel delays every allocation, and a stalled
    // agent is worse than one that is killed with a cause the client can read.
    put("memory.high", "max")?;
    put("memory.max", &bytes)?;
    if dir.join("memory.swap.max").exists() {
        put("memory.swap.max", &values.swap_bytes.to_string())?;
    } else {
        missing.push("swap: this kernel does not account swap".to_owned());
    }
    // All of the sandbox dies together, never half of it.
    put("memory.oom.group", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_translate() {
        let got = values(&Limits::default()).expect("the defaults are fit");
        assert_eq!((got.quota_us, got.weight, got.shares, got.pids), (100_000, 100, 1024, 512));
        assert_eq!((got.memory_bytes, got.swap_bytes), (2 << 30, 2 << 30));
        let small = values(&Limits { memory_bytes: 256 << 20, ..Limits::default() }).expect("fit");
        assert_eq!((got.socket_bytes, small.socket_bytes), (64 << 20, 32 << 20));
    }

    #[test]
    fn io_is_written_as_each_version_wants_it_and_taken_away_again() {
        let bounded = Limits { io_read_bps: 5 << 20, io_write_iops: u64::MAX - 1, ..Limits::default() };
        for v1 in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            for name in V1_IO.into_iter().chain(["io.max"]) {
                std::fs::write(at(name), "").unwrap();
            }
            let put = |limits: &Limits| io(dir.path(), "8:0", values(limits).unwrap().io, v1).unwrap();
            let read = |name: &str| std::fs::read_to_string(at(name)).unwrap();
            put(&Limits::default());
            assert_eq!((read(V1_IO[0]), read("io.max")), (String::new(), String::new()), "nothing to say");
            put(&bounded);
            match v1 {
                true => {
                    assert_eq!((read(V1_IO[0]), read(V1_IO[1])), ("8:0 5242880".into(), String::new()));
                    assert_eq!(read(V1_IO[3]), "8:0 4294967294");
                }
                false => assert_eq!(read("io.max"), "8:0 rbps=5242880 wbps=max riops=max wiops=4294967294"),
            }
            // Unlike the kernel's files, these keep their old content.
            let clear = |name: &str| std::fs::write(at(name), "8:0 x\n").unwrap();
            V1_IO.into_iter().chain(["io.max"]).for_each(clear);
            put(&Limits::default());
            match v1 {
                true => assert!(V1_IO.iter().all(|name| read(name).starts_with("8:0 0"))),
                false => assert!(read("io.max").starts_with("8:0 rbps=max wbps=max")),
            }
        }
    }

    #[test]
    fn bounds() {
        let with = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            values(&limits)
        };
        for (change, field) in [
            ((|l| l.memory_bytes = 0) as fn(&mut Limits), "memoryBytes"),
            (|l| l.cpu_millis = 9, "cpuMillis"),
            (|l| l.cpu_weight = 0, "cpuWeight"),
            (|l| l.cpu_weight = 10_001, "cpuWeight"),
            (|l| l.pids = 2, "pids"),
            (|l| l.io_read_bps = 0, "ioReadBps"),
        ] {
            let error = with(change).expect_err(field);
            assert!(matches!(&error, CgroupError::Limit { field: f, .. } if *f == field), "{error}");
        }
        let huge = with(|l| {
            (l.memory_bytes, l.swap_bytes, l.cpu_millis, l.pids) = (u64::MAX, u64::MAX, u64::MAX, u64::MAX);
        })
        .expect("no limit is fit");
        assert!(huge.memory_bytes.checked_add(huge.swap_bytes).is_some());
        assert_eq!(huge.pids, 4_194_304);
        assert_eq!(with(|l| l.cpu_weight = 1).map(|v| v.shares).ok(), Some(10));
        assert_eq!(with(|l| l.cpu_weight = 10_000).map(|v| v.shares).ok(), Some(102_400));
    }
}
