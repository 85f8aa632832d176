//! `GET /metrics`: a pure function from a snapshot to the Prometheus text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::Write;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All reported values at one moment. Counters start at 0 when the daemon starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub uptime_seconds: f64,
    pub active_sessions: usize,
    pub active_sandboxes: usize,
    pub cold: usize,
    pub warming: usize,
    pub warm: usize,
    pub waiting: usize,
    pub running: usize,
    pub max_capacity: usize,
    pub resume_warm: u64,
    pub resume_cold: u64,
    pub resume_prewarm: u64,
    /// Sessions created, by starting point.
    pub created: Vec<(&'static str, u64)>,
    /// Sessions that were killed or stopped, by cause: a limit, or a signal from outside.
    pub limited: Vec<(&'static str, u64)>,
    /// Requests that the gateway refused or delayed, since its start.
    pub gateway_refused: Vec<(&'static str, u64)>,
    /// Memory of all sandboxes, from their common parent cgroup. `None`: not accounted there.
    pub memory_bytes: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    pub cpu_us: Option<u64>,
    pub throttled_us: u64,
    pub pids: Option<u64>,
    /// Microseconds in which some process waited, by resource (psi(7)).
    pub stalled_us: Vec<(&'static str, u64)>,
    pub disk_free_bytes: Option<u64>,
}

/// The text; every family has HELP and TYPE.
pub fn render(now: &Snapshot) -> String {
    let mut out = String::with_capacity(2048);
    family(&mut out, "ash_up", "gauge", "1 while the daemon serves.", &[("", 1.0)]);
    family(&mut out, "ash_uptime_seconds", "gauge", "Seconds since the daemon started.", &[("", now.uptime_seconds)]);
    let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    family(&mut out, "ash_build_info", "gauge", "1, with the version as its label.", &[(&version, 1.0)]);
    family(&mut out, "ash_active_sessions", "gauge", "Sessions in state active.", &[("", count(now.active_sessions))]);
    family(
        &mut out,
        "ash_active_sandboxes",
        "gauge",
        "Sandboxes that have processes.",
        &[("", count(now.active_sandboxes))],
    );
    family(
        &mut out,
        "ash_pool_sandboxes",
        "gauge",
        "Sandboxes by state.",
        &[
            ("{state=\"cold\"}", count(now.cold)),
            ("{state=\"warming\"}", count(now.warming)),
            ("{state=\"warm\"}", count(now.warm)),
            ("{state=\"waiting\"}", count(now.waiting)),
            ("{state=\"running\"}", count(now.running)),
        ],
    );
    family(
        &mut out,
        "ash_pool_max_capacity",
        "gauge",
        "Most live sandboxes (pool.max_sandboxes).",
        &[("", count(now.max_capacity))],
    );
    family(
        &mut out,
        "ash_resume_total",
        "counter",
        "Resumes by path: warm continues existing processes, cold starts new ones, prewarm uses a ready claude.",
        &[
            ("{path=\"warm\"}", total(now.resume_warm)),
            ("{path=\"cold\"}", total(now.resume_cold)),
            ("{path=\"prewarm\"}", total(now.resume_prewarm)),
        ],
    );
    // ashd keeps every workspace on this host, so all cold resumes are local.
    family(
        &mut out,
        "ash_resume_cold_total",
        "counter",
        "Cold resumes by where the workspace came from.",
        &[("{source=\"local\"}", total(now.resume_cold)), ("{source=\"cloud\"}", 0.0), ("{source=\"fresh\"}", 0.0)],
    );
    let help = "Sessions created by path: prewarm uses a ready claude, parked an empty sandbox, cold starts both.";
    labelled(&mut out, "ash_created_total", help, "path", &now.created, total);
    let help = "How often a session was killed or stopped, by cause.";
    labelled(&mut out, "ash_limited_total", help, "reason", &now.limited, total);
    let help =
        "Requests to the model that were refused (outside a turn or command, usage cannot be recorded) or slowed.";
    labelled(&mut out, "ash_gateway_refused_total", help, "reason", &now.gateway_refused, total);
    let help = "Time in which sessions were throttled by their CPU limit.";
    family(&mut out, "ash_cpu_throttled_seconds_total", "counter", help, &[("", now.throttled_us as f64 / 1e6)]);
    let cpu = now.cpu_us.map(|us| us as f64 / 1e6);
    for (name, kind, help, value) in [
        ("ash_sandboxes_memory_bytes", "gauge", "Memory of all sandboxes.", now.memory_bytes.map(total)),
        (
            "ash_sandboxes_memory_peak_bytes",
            "gauge",
            "Peak memory of all sandboxes since the host started.",
            now.memory_peak_bytes.map(total),
        ),
        ("ash_sandboxes_cpu_seconds_total", "counter", "CPU time of all sandboxes.", cpu),
        ("ash_sandboxes_pids", "gauge", "Processes and threads of all sandboxes.", now.pids.map(total)),
        ("ash_disk_free_bytes", "gauge", "Free space on the data directory's disk.", now.disk_free_bytes.map(total)),
    ] {
        // Values that this host does not account are omitted, not 0.
        if let Some(value) = value {
            family(&mut out, name, kind, help, &[("", value)]);
        }
    }
    if !now.stalled_us.is_empty() {
        let help = "Time in which some process of a sandbox waited, by what it waited for.";
        labelled(&mut out, "ash_sandboxes_stalled_seconds_total", help, "resource", &now.stalled_us, |us| {
            us as f64 / 1e6
        });
    }
    out
}

/// One family of samples, each with its labels (`{a="b"}` or empty).
fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: &[(&str, f64)]) {
    let mut put = |line: std::fmt::Arguments<'_>| out.write_fmt(line).expect("a String takes all that is written");
    put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    for (labels, value) in samples {
        put(format_args!("{name}{labels} {value}\n"));
    }
}

/// A family of counters, one per label value.
fn labelled(
    out: &mut String,
    name: &str,
    help: &str,
    label: &str,
    counts: &[(&'static str, u64)],
    unit: impl Fn(u64) -> f64,
) {
    let samples: Vec<(String, f64)> =
        counts.iter().map(|(value, n)| (format!("{{{label}=\"{value}\"}}"), unit(*n))).collect();
    let samples: Vec<(&str, f64)> = samples.iter().map(|(labels, n)| (labels.as_str(), *n)).collect();
    family(out, name, "counter", help, &samples);
}

fn count(n: usize) -> f64 {
    total(n as u64)
}

/// Exact up to 2^53. No counter here reaches it.
fn total(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_contract_is_there_in_the_text_format() {
        let now = Snapshot {
            uptime_seconds: 1.5,
            waiting: 3,
            max_capacity: 1000,
            resume_cold: 2,
            created: vec![("prewarm", 0), ("parked", 4)],
            limited: vec![("disk", 3)],
            gateway_refused: vec![("outside", 6)],
            memory_bytes: Some(7),
            memory_peak_bytes: Some(9),
            throttled_us: 250_000,
            stalled_us: vec![("io", 1_500_000)],
            ..Snapshot::default()
        };
        let text = render(&now);
        for line in [
            "ash_up 1",
            "ash_uptime_seconds 1.5",
            "ash_active_sessions 0",
            "ash_active_sandboxes 0",
            "ash_pool_sandboxes{state=\"waiting\"} 3",
            "ash_pool_max_capacity 1000",
            "ash_resume_total{path=\"warm\"} 0",
            "ash_resume_total{path=\"cold\"} 2",
            "ash_resume_total{path=\"prewarm\"} 0",
            "ash_resume_cold_total{source=\"local\"} 2",
            "ash_created_total{path=\"parked\"} 4",
            "ash_limited_total{reason=\"disk\"} 3",
            "ash_gateway_refused_total{reason=\"outside\"} 6",
            "ash_cpu_throttled_seconds_total 0.25",
            "ash_sandboxes_memory_bytes 7",
            "ash_sandboxes_memory_peak_bytes 9",
            "ash_sandboxes_stalled_seconds_total{resource=\"io\"} 1.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let families = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(families, text.lines().filter(|line| line.starts_with("# HELP ")).count());
        assert!(text.ends_with('\n') && !text.contains("\n\n"));
    }
}
