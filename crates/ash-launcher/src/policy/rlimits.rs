//! Resource limits of every command (getrlimit(2)). cgroups and the disk limit bound memory,
//! processes, CPU and disk of the whole sandbox. These bound resources counted by process or by
//! user.

use nix::sys::resource::Resource;

/// Soft and hard limit, or the launcher's own hard limit if it is lower. Commands cannot raise them
/// without capabilities.
pub const RLIMITS: &[(Resource, u64)] = &[
    // Bytes. 1, not 0: if core_pattern is a program of the host, the kernel starts it as root for
    // every crash, whatever the limit of the process, except for the value 1 (core(5),
    // fs/coredump.c). A core file of one byte is not written either.
    (Resource::RLIMIT_CORE, 1),
    // Descriptors of one process. node and large builds need far less.
    (Resource::RLIMIT_NOFILE, 65_536),
    // Queued signals and POSIX timers of all commands of a sandbox together.
    (Resource::RLIMIT_SIGPENDING, 4096),
    // Bytes of POSIX message queues of all commands together: the kernel's default.
    (Resource::RLIMIT_MSGQUEUE, 819_200),
    // Locked bytes of a process, and of all commands in shared memory: the kernel's default. They
    // also count against the memory limit.
    (Resource::RLIMIT_MEMLOCK, 8 << 20),
    // No real-time priority and no niceness below 0, whatever the launcher's own values.
    (Resource::RLIMIT_RTPRIO, 0),
    (Resource::RLIMIT_NICE, 0),
];
