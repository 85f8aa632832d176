//! Checks of the host. Each check is pure: texts of /proc in, a finding out.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use super::{Finding, failure, ok, warning};
use crate::config::Config;
use ash_kernel::cgroup::layout::{Layout, detect};
use ash_model::{Layer, now_ms};

/// Each sandbox uses several descriptors in ashd, and one in the launcher.
const DESCRIPTORS_PER_SANDBOX: u64 = 8;
/// Start of 2026: an earlier clock breaks TLS to the model.
const EARLIEST: i64 = 1_767_225_600_000;

pub fn examine(config: &Config) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok();
    let sandboxes = config.pool.max_sandboxes as u64;
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    let mut findings = vec![
        kernel(read("/proc/sys/kernel/osrelease").trim()),
        machine(std::env::consts::ARCH),
        landlock(ash_kernel::landlock::abi().unwrap_or(0), config),
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        cgroups(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), |path| {
            fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default()
        }),
        swap(&read("/proc/swaps")),
        clock(now_ms()),
        descriptors(files, sandboxes),
    ];
    findings.extend(namespaces(sandboxes, sysctl));
    findings.push(processes(sandboxes, sysctl));
    findings.push(open_files(&read("/proc/meminfo"), sysctl));
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (5, 19..) | (6.., _) if version >= (6, 1) => ok("kernel", format!("Linux {release}")),
        (5, 19..) | (6, 0) => {
            warning("kernel", format!("Linux {release}; 6.1 or newer is tested"), "boot a newer kernel")
        }
        _ => failure(
            "kernel",
            format!("Linux {release}; 5.19 or newer is required"),
            "boot a newer kernel (Debian 12 has 6.1)",
        ),
    }
}

fn machine(arch: &str) -> Finding {
    match arch {
        "x86_64" | "aarch64" => ok("machine", arch),
        other => failure("machine", format!("{other} has no seccomp policy"), "run ashd on x86_64 or aarch64"),
    }
}

fn landlock(abi: u32, config: &Config) -> Finding {
    let (floor, required) = (config.confinement.landlock_abi, config.confinement.floor.contains(&Layer::Landlock));
    let mend = "add landlock to lsm= in GRUB_CMDLINE_LINUX of /etc/default/grub, then: update-grub && reboot";
    match abi {
        0 if required => failure("kernel's landlock", "not supported by this kernel, or disabled", mend),
        0 => warning("kernel's landlock", "not available; the floor allows that", mend),
        found if found < floor => failure(
            "kernel's landlock",
            format!("ABI {found}, the floor is {floor}"),
            format!("boot a newer kernel, or set [confinement] landlock_abi = {found} in /etc/ashd/ashd.toml"),
        ),
        found if found < 6 => warning(
            "kernel's landlock",
            format!("ABI {found}: signals and abstract sockets are not scoped (other layers confine them)"),
            "boot Linux 6.12 or newer",
        ),
        found => ok("kernel's landlock", format!("ABI {found}")),
    }
}

fn seccomp(actions: &str) -> Finding {
    if actions.split_whitespace().any(|action| action == "errno") {
        ok("kernel's seccomp", actions.trim())
    } else {
        failure("kernel's seccomp", "filters are not available", "boot a kernel with CONFIG_SECCOMP_FILTER")
    }
}

fn cgroups(mountinfo: &str, own: &str, controllers: impl Fn(&std::path::Path) -> String) -> Finding {
    match detect(mountinfo, own) {
        Err(error) => failure("cgroups", error.to_string(), "boot with systemd.unified_cgroup_hierarchy=1"),
        Ok(Layout::Unified { mount, .. }) => {
            let available = controllers(&mount);
            let lacking: Vec<&str> = ["memory", "cpu", "pids"]
                .into_iter()
                .filter(|c| !available.split_whitespace().any(|a| a == *c))
                .collect();
            if lacking.is_empty() {
                return ok("cgroups", format!("v2, controllers {}", available.trim()));
            }
            let mend = "remove cgroup_disable= from the kernel's command line, then reboot";
            failure("cgroups", format!("v2 without the controllers {}", lacking.join(", ")), mend)
        }
        Ok(Layout::Hybrid { memory, cpu, pids, blkio, .. }) => {
            let lacking: Vec<&str> = [("memory", &memory), ("cpu", &cpu), ("pids", &pids)]
                .into_iter()
                .filter_map(|(name, mount)| mount.is_none().then_some(name))
                .collect();
            let mend = "boot with systemd.unified_cgroup_hierarchy=1";
            if lacking.is_empty() {
                let io = if blkio.is_some() { "io limits do not slow buffered writes" } else { "no io limit" };
                warning("cgroups", format!("v1 controllers beside v2: starts take about 10 ms longer, {io}"), mend)
            } else {
                failure("cgroups", format!("hybrid, without the controllers {}", lacking.join(", ")), mend)
            }
        }
    }
}

fn swap(swaps: &str) -> Finding {
    match swaps.lines().skip(1).count() {
        0 => warning(
            "swap",
            "none: paused sessions keep their memory",
            "apt install zram-tools, or: fallocate -l 8G /swap && chmod 600 /swap && mkswap /swap && swapon /swap",
        ),
        devices => ok("swap", format!("{devices} devices")),
    }
}

fn clock(now: i64) -> Finding {
    if now < EARLIEST {
        let at = ash_model::iso(now);
        return failure(
            "clock",
            format!("the time is {at}; TLS certificates will be refused"),
            "timedatectl set-ntp true",
        );
    }
    ok("clock", ash_model::iso(now))
}

fn descriptors(hard: u64, sandboxes: u64) -> Finding {
    let wanted = (sandboxes * DESCRIPTORS_PER_SANDBOX).max(4096);
    let found = format!("hard limit {hard} here; {sandboxes} sandboxes need {wanted}");
    if hard >= wanted {
        return ok("descriptors", found);
    }
    warning(
        "descriptors",
        found,
        "the packaged units set LimitNOFILE=; by hand: ulimit -Hn 1048576, or lower pool.max_sandboxes",
    )
}

/// Maximum number of each kind, and whether the host forbids them.
fn namespaces(sandboxes: u64, sysctl: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let kinds = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"];
    let number =
        |kind: &str| sysctl(&format!("user.max_{kind}_namespaces")).and_then(|text| text.trim().parse::<u64>().ok());
    // Mapping files uses one more user namespace for a short time.
    let least = kinds.iter().filter_map(|kind| Some((number(kind)?, *kind))).min();
    findings.push(match least {
        None => failure(
            "namespaces",
            "not supported by this kernel",
            "boot a kernel with CONFIG_NAMESPACES and CONFIG_USER_NS",
        ),
        Some((0, kind)) => failure(
            "namespaces",
            format!("user.max_{kind}_namespaces is 0"),
            format!("sysctl -w user.max_{kind}_namespaces=65536, and the same in /etc/sysctl.d/ashd.conf"),
        ),
        Some((most, kind)) if most < sandboxes => warning(
            "namespaces",
            format!("user.max_{kind}_namespaces is {most}, pool.max_sandboxes is {sandboxes}"),
            format!("sysctl -w user.max_{kind}_namespaces={}", sandboxes * 2),
        ),
        Some((most, _)) => ok("namespaces", format!("all seven kinds, at least {most} of each")),
    });
    let restricted = sysctl("kernel.apparmor_restrict_unprivileged_userns").is_some_and(|text| text.trim() == "1");
    findings.push(if restricted {
        ok("apparmor", "restricts unprivileged user namespaces; ash-launcher creates them as root")
    } else {
        ok("apparmor", "does not restrict user namespaces")
    });
    findings
}

fn processes(sandboxes: u64, sysctl: impl Fn(&str) -> Option<String>) -> Finding {
    let number = |name: &str| sysctl(name).and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    let (pids, threads) = (number("kernel.pid_max"), number("kernel.threads-max"));
    // claude alone has about 20 threads.
    let (wanted, most) = (sandboxes * 24, pids.min(threads));
    let found = format!("pid_max {pids}, threads-max {threads}; {sandboxes} sandboxes need about {wanted}");
    if most >= wanted {
        return ok("processes", found);
    }
    warning(
        "processes",
        found,
        "sysctl -w kernel.pid_max=4194304 kernel.threads-max=4194304, or lower pool.max_sandboxes",
    )
}

/// An open file uses 209 bytes of a sandbox's memory limit, and one of the host's `fs.file-max`.
/// The memory must run out first; otherwise one sandbox could use up all files.
fn open_files(meminfo: &str, sysctl: impl Fn(&str) -> Option<String>) -> Finding {
    const BYTES: u64 = 209;
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let wanted = kib.unwrap_or(0_u64) * 1024 / BYTES;
    let most = sysctl("fs.file-max").and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    let found = format!("fs.file-max {most}; sandboxes could hold {wanted} open files in the host's memory");
    if most >= wanted {
        return ok("open files", found);
    }
    warning("open files", found, "sysctl -w fs.file-max=9223372036854775807, and the same in /etc/sysctl.d/ashd.conf")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn kernels() {
        for (release, status) in [
            ("6.1.0-21-amd64", Status::Ok),
            ("6.18.44", Status::Ok),
            ("7.0-rc1", Status::Ok),
            ("5.19.0", Status::Warning),
            ("6.0.9", Status::Warning),
            ("5.15.0-100-generic", Status::Failure),
            ("4.18.0", Status::Failure),
            ("", Status::Failure),
        ] {
            assert_eq!(kernel(release).status, status, "{release}");
        }
    }

    #[test]
    fn landlocks() {
        let mut config = Config::default();
        let status = |abi, config: &Config| landlock(abi, config).status;
        assert_eq!(status(7, &config), Status::Ok);
        assert_eq!(status(2, &config), Status::Warning);
        assert_eq!(status(1, &config), Status::Failure);
        assert_eq!(status(0, &config), Status::Failure);
        config.confinement.floor.retain(|layer| *layer != Layer::Landlock);
        assert_eq!(status(0, &config), Status::Warning);
    }

    #[test]
    fn cgroup_layouts() {
        let v2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let judge =
            |mounts: &str, controllers: &'static str| cgroups(mounts, "0::/init.scope\n", |_| controllers.to_owned());
        assert_eq!(judge(v2, "cpuset cpu io memory pids").status, Status::Ok);
        let lacking = judge(v2, "cpu pids");
        assert_eq!((lacking.status, lacking.found.contains("memory")), (Status::Failure, true));
        assert_eq!(judge("", "").status, Status::Failure);
    }

    #[test]
    fn counts_and_limits() {
        let all = |value: &'static str| move |_: &str| Some(value.to_owned());
        assert_eq!(namespaces(1000, all("63000\n"))[0].status, Status::Ok);
        assert_eq!(namespaces(1000, all("100\n"))[0].status, Status::Warning);
        assert_eq!(namespaces(1000, all("0\n"))[0].status, Status::Failure);
        assert_eq!(namespaces(1000, |_| None)[0].status, Status::Failure);
        assert_eq!(processes(1000, all("4194304")).status, Status::Ok);
        assert_eq!(processes(1000, all("4096")).status, Status::Warning);
        assert_eq!(open_files("MemTotal:  16384000 kB\n", all("9223372036854775807\n")).status, Status::Ok);
        assert_eq!(open_files("MemTotal:  16384000 kB\n", all("1638400\n")).status, Status::Warning);
        assert_eq!(descriptors(1 << 20, 1000).status, Status::Ok);
        assert_eq!(descriptors(1024, 1000).status, Status::Warning);
        assert_eq!(swap("Filename\n").status, Status::Warning);
        assert_eq!(swap("Filename\n/dev/zram0 partition 1 0 100\n").status, Status::Ok);
        assert_eq!(clock(0).status, Status::Failure);
        assert_eq!(seccomp("kill_process errno allow").status, Status::Ok);
        assert_eq!(seccomp("").status, Status::Failure);
        assert_eq!(machine("riscv64").status, Status::Failure);
    }

    #[test]
    fn whatever_is_not_well_has_a_way_out() {
        for finding in examine(&Config::default()) {
            assert_eq!(finding.status == Status::Ok, finding.mend.is_none(), "{finding:?}");
        }
    }
}
