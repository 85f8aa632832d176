"""Which steps run on which machine, in this order."""

import steps_host as host
import steps_kernel as kernel
import steps_limits as limits
import steps_package as package
import steps_short as basic

SHORT = [basic.install, basic.privileges, basic.session, basic.confinement, basic.restart, basic.out_of_memory, basic.remove]

#: By kernel: the newest that Debian has for this release, and the release's own. A step goes on with the sessions of
#: those before it, and makes what it needs when one before it failed.
FULL = {
    "backports": [
        basic.install,
        basic.privileges,
        host.units,
        basic.session,
        basic.confinement,
        basic.restart,
        package.reload,
        package.launcher_reload,
        package.upgrade,
        host.watchdog,
        host.kills,
        host.socket_activation,
        host.launcher_stop,
        basic.out_of_memory,
        limits.pids_limit,
        limits.cpu_limit,
        limits.io_limit,
        limits.slice_limit,
        kernel.reclaim_v2,
        kernel.start_v2,
        kernel.kernel_tests,
        host.first_hour,
        host.reboot,
        host.powercut,
        package.reinstall,
        basic.remove,
    ],
    "stock": [basic.install, basic.session, basic.confinement, basic.restart, limits.landlock_floor, kernel.reclaim_v2,
              kernel.kernel_tests, basic.remove],
}
