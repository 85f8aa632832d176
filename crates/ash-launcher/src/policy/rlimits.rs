//! Resource limits of every command (getrlimit(2)). Memory, processes, processor and disk are bounded by cgroups and the disk limit,
//! for all processes of the sandbox together; these bound what the kernel counts by process or by user.

use nix::sys::resource::Resource;

/// Soft and hard limit; lower where the launcher's own hard limit is lower. Without capabilities no command raises them again.
pub const RLIMITS: &[(Resource, u64)] = &[
    // Bytes. 1 and not 0: where core_pattern is a program of the host, the kernel starts it, as root, for every crash of a process
    // whatever its limit is, except for the value 1 (core(5), fs/coredump.c). A file of one byte is not written either.
    (Resource::RLIMIT_CORE, 1),
    // Descriptors of one process; what node and large builds use stays far below.
    (Resource::RLIMIT_NOFILE, 65_536),
    // Queued signals and POSIX timers of all commands of a sandbox together.
    (Resource::RLIMIT_SIGPENDING, 4096),
    // Bytes of POSIX message queues of all commands together: the kernel's own default.
    (Resource::RLIMIT_MSGQUEUE, 819_200),
    // Bytes locked by a process, and by all commands in shared memory: the kernel's own default. Counted in the memory limit too.
    (Resource::RLIMIT_MEMLOCK, 8 << 20),
    // No real-time priority and no niceness below 0, whatever the launcher itself was given.
    (Resource::RLIMIT_RTPRIO, 0),
    (Resource::RLIMIT_NICE, 0),
];
