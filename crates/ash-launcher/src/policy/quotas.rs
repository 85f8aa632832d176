//! Quotas of the sandbox's own user namespace (`/proc/sys/user`, namespaces(7)): what its users may have beside what the host allows
//! the owner of the namespace ([`ash_kernel::owner`]). The lower of both counts.

/// Name in `/proc/sys/user`, value, and why. A name that this kernel does not have bounds nothing there.
pub const QUOTAS: &[(&str, u32, &str)] = &[
    (
        "max_inotify_instances",
        512,
        "editors, bundlers and test runners use a few each; the host's default for a user is 128",
    ),
    (
        "max_inotify_watches",
        131_072,
        "a bundler watches every directory of node_modules; a watch takes 1 KiB of the memory limit",
    ),
    // The other kinds take a capability that only a new user namespace could give (and each file here is 11 us of a start).
    (
        "max_user_namespaces",
        0,
        "refused by seccomp too: capabilities in a namespace of its own reach more of the kernel",
    ),
];

/// The same of its network namespace, in `/proc/sys/net`.
pub const NETWORK: &[(&str, u32, &str)] = &[(
    "core/optmem_max",
    20_480,
    "options and ancillary data of a socket are outside of the memory limit; 20 KiB each was the default before Linux 6.9, then 128",
)];
