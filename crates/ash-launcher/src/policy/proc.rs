//! Visible entries in `/proc` besides processes: only this list. All others that are readable or
//! writable for others are covered, including those of later kernels. Entries of root alone need no
//! cover, because uid 0 has no id in a sandbox.

/// Visible entries of `/proc` with reasons. Links (`self`, `net`, `mounts`) and directories of
/// processes are always visible.
pub const KEPT: &[(&str, &str)] = &[
    ("cgroups", "names of controllers: the JVM finds the limits of its group by them"),
    (
        "cpuinfo",
        "node, compilers and numeric libraries ask for processors and their features, as the instruction CPUID tells them",
    ),
    ("crypto", "names of ciphers"),
    ("dma", "ISA DMA channels, the same on every machine"),
    ("execdomains", "one line, the same everywhere"),
    ("filesystems", "names of file systems: mount(8), df, libblkid"),
    ("loadavg", "make -l, os.getloadavg; the load is the host's"),
    ("meminfo", "free, node, the JVM, allocators; the memory is the host's, the limit is in the group"),
    ("misc", "names of drivers that every kernel has"),
    ("stat", "ps, top, node's os.cpus; processor time of the host"),
    ("sys", "read-only: overcommit, limits of pipes, inotify, message queues, ports; see COVERED"),
    ("sysvipc", "ipcs; of the sandbox's own ipc namespace"),
    ("tty", "ps names terminals by /proc/tty/drivers"),
    ("uptime", "ps and uptime; of the host"),
    ("version", "one line written for the sandbox: what uname(2) tells, without who built the kernel and how"),
];

/// Entries below those of [`KEPT`] that are covered.
pub const COVERED: &[(&str, &str)] = &[
    ("sys/kernel/random/boot_id", "tells one start of the host from another, in every sandbox"),
    ("sys/kernel/core_pattern", "programs of the host and their paths"),
    ("sys/kernel/modprobe", "as core_pattern"),
    ("sys/kernel/hotplug", "as core_pattern"),
    ("sys/kernel/poweroff_cmd", "as core_pattern"),
    ("sys/kernel/tainted", "modules and faults of the host"),
    ("sys/kernel/ns_last_pid", "how many processes begin"),
    ("sys/fs/binfmt_misc", "interpreters of the host and their paths"),
    ("sys/dev", "devices of the host"),
    ("tty/driver", "serial lines of the host"),
];

pub fn version(release: &str) -> String {
    format!("Linux version {release}\n")
}
