//! Refuses configurations that cannot work, before anything starts.

use super::{Config, Upstream};
use ash_model::{Limits, UNLIMITED, sends_in_clear};

/// Maximum bytes of a run directory's path: `<run dir>/sandboxes/<36>/init.sock` must fit the 107
/// of a unix socket's address (unix(7), sun_path).
const RUN_DIR: usize = 107 - "/sandboxes/".len() - 36 - "/init.sock".len();

/// The least memory with which claude starts.
const LEAST_MEMORY: u64 = 64 << 20;

/// Twice the largest body that the API accepts (140 MiB), and what is counted beside it.
const LEAST_REQUEST_MEMORY: u64 = 288 << 20;

pub(super) fn check(config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    let run = config.run_dir.as_os_str().len();
    if run > RUN_DIR {
        wrong.push(format!(
            "run_dir: {} has {run} bytes; the sockets below it allow {RUN_DIR}. Choose a shorter path",
            config.run_dir.display()
        ));
    }
    if let Upstream::Url(url) = &config.gateway.upstream
        && sends_in_clear(url)
        && !config.gateway.allow_insecure_upstream
    {
        wrong.push(format!(
            "gateway.upstream: {url} is http:// on another host, so the model key would be sent in clear. Use https://, or \
             accept it with gateway.allow_insecure_upstream = true (ASH_ALLOW_INSECURE_UPSTREAM=1)"
        ));
    }
    let server = &config.server;
    if server.request_memory_per_tenant < LEAST_REQUEST_MEMORY {
        wrong.push(format!(
            "server.request_memory_per_tenant: {} is too little; the largest request needs {LEAST_REQUEST_MEMORY} (288 MiB)",
            server.request_memory_per_tenant
        ));
    }
    if server.request_memory < server.request_memory_per_tenant {
        wrong.push(format!(
            "server.request_memory: {} is below server.request_memory_per_tenant, which is {}",
            server.request_memory, server.request_memory_per_tenant
        ));
    }
    let launcher = &config.launcher;
    if launcher.uid_count < 2 {
        wrong.push("launcher.uid_count: each sandbox needs 2 user ids".to_owned());
    }
    // 65534 is "nobody", 4294967295 is "no change"; ashd and the gateway use the two ids below the
    // range.
    if launcher.uid_base < 65_537
        || launcher.uid_base.checked_add(launcher.uid_count).is_none_or(|end| end > 4_294_967_294)
    {
        wrong.push(format!(
            "launcher.uid_base, launcher.uid_count: {} ids from {} leave the range 65537 to 4294967293",
            launcher.uid_count, launcher.uid_base
        ));
    }
    for (name, limit, ceiling) in pairs(&config.limits, &launcher.ceiling) {
        // An unlimited value is limited by the ceiling.
        if limit > ceiling && limit != UNLIMITED {
            wrong.push(format!("limits.{name}: {limit} is above launcher.ceiling.{name}, which is {ceiling}"));
        }
    }
    let tenants = &config.tenants;
    if tenants.storage_bytes > tenants.storage_ceiling_bytes {
        wrong.push(format!(
            "tenants.storage_bytes: {} is above tenants.storage_ceiling_bytes, which is {}",
            tenants.storage_bytes, tenants.storage_ceiling_bytes
        ));
    }
    if config.limits.memory_bytes < LEAST_MEMORY {
        wrong.push(format!(
            "limits.memory_bytes: {} is too little; claude needs at least 64 MiB",
            config.limits.memory_bytes
        ));
    }
    for (name, value) in [("cpu_millis", config.limits.cpu_millis), ("pids", config.limits.pids)] {
        if value == 0 {
            wrong.push(format!("limits.{name}: nothing can run with 0"));
        }
    }
    wrong
}

fn pairs(limits: &Limits, ceiling: &Limits) -> [(&'static str, u64, u64); 12] {
    [
        ("memory_bytes", limits.memory_bytes, ceiling.memory_bytes),
        ("swap_bytes", limits.swap_bytes, ceiling.swap_bytes),
        ("cpu_millis", limits.cpu_millis, ceiling.cpu_millis),
        ("cpu_weight", limits.cpu_weight, ceiling.cpu_weight),
        ("pids", limits.pids, ceiling.pids),
        ("disk_bytes", limits.disk_bytes, ceiling.disk_bytes),
        ("disk_files", limits.disk_files, ceiling.disk_files),
        ("turn_ms", limits.turn_ms, ceiling.turn_ms),
        ("io_read_bps", limits.io_read_bps, ceiling.io_read_bps),
        ("io_write_bps", limits.io_write_bps, ceiling.io_write_bps),
        ("io_read_iops", limits.io_read_iops, ceiling.io_read_iops),
        ("io_write_iops", limits.io_write_iops, ceiling.io_write_iops),
    ]
}
