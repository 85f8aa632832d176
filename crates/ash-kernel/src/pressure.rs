//! The memory pressure of the host, as reported by the kernel.

use std::fs;

/// The host's memory. Unknown values count as plenty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Bytes available without swapping (`MemAvailable`, proc_meminfo(5)).
    pub available: u64,
    /// Percent of the last 10 s in which all runnable processes waited for memory (`full avg10` of
    /// /proc/pressure/memory).
    pub stalled: f64,
}

pub fn memory() -> Memory {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Memory {
        available: available(&text("/proc/meminfo")).unwrap_or(u64::MAX),
        // Missing if the kernel has PSI disabled.
        stalled: stalled(&text("/proc/pressure/memory")).unwrap_or(0.0),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(rest.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn stalled(pressure: &str) -> Option<f64> {
    let rest = pressure.lines().find_map(|line| line.strip_prefix("full avg10="))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_numbers_are_found() {
        let meminfo = "MemTotal:  100 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available(meminfo), Some(2 << 20));
        let pressure =
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(stalled(pressure), Some(0.75));
        assert_eq!((available(""), stalled("")), (None, None));
        assert!(memory().available > 0);
    }
}
