//! Quotas of the sandbox's own user namespace (`/proc/sys/user`, namespaces(7)), in addition to the
//! host's quotas for the owner of the namespace ([`ash_kernel::owner`]). The lower of both applies.

/// Name in `/proc/sys/user`, value, and reason. Names unknown to this kernel are ignored.
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
    // Other quotas apply to resources that need a capability in a new user namespace (and each file
    // costs 11 us of a start).
    (
        "max_user_namespaces",
        0,
        "refused by seccomp too: capabilities in a namespace of its own reach more of the kernel",
    ),
];

/// The same for its network namespace, in `/proc/sys/net`.
pub const NETWORK: &[(&str, u32, &str)] = &[(
    "core/optmem_max",
    20_480,
    "options and ancillary data of a socket are outside of the memory limit; 20 KiB each was the default before Linux 6.9, then 128",
)];
