"""The steps of each machine, in order."""

import steps_host as host
import steps_installed as installed
import steps_journal as journal
import steps_kernel as kernel
import steps_limits as limits
import steps_operator as operator
import steps_package as package
import steps_short as basic

SHORT = [basic.install, basic.privileges, basic.session, basic.confinement, basic.restart, basic.out_of_memory, basic.remove]

#: By kernel: Debian's newest for this release, and the release's own. A step uses the sessions of earlier steps, and creates
#: what it needs if an earlier step failed.
FULL = {
    "backports": [
        basic.install,
        basic.privileges,
        host.units,
        installed.installed,
        installed.completions,
        basic.session,
        installed.units_running,
        installed.apparmor,
        basic.confinement,
        operator.ashctl,
        operator.doctor,
        operator.check_config,
        journal.story,
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
        host.first_hour,
        journal.model_key,
        operator.backup,
        host.reboot,
        host.powercut,
        package.reinstall,
        basic.remove,
    ],
    "stock": [
        basic.install,
        basic.privileges,
        host.units,
        basic.session,
        installed.units_running,
        installed.apparmor,
        basic.confinement,
        basic.restart,
        journal.story,
        limits.landlock_floor,
        host.reboot,
        host.powercut,
        basic.remove,
    ],
    "trixie": [
        basic.install,
        basic.privileges,
        host.units,
        installed.installed,
        basic.session,
        installed.units_running,
        installed.apparmor,
        basic.confinement,
        basic.restart,
        package.reload,
        package.launcher_reload,
        package.upgrade,
        host.kills,
        journal.story,
        basic.remove,
    ],
}

#: This repository's tests of the kernel layer, on pure cgroup v2: hours under emulation, so they are a separate form.
KERNEL = {
    "backports": [basic.install, kernel.reclaim_v2, kernel.start_v2, kernel.kernel_tests],
    "stock": [basic.install, kernel.reclaim_v2, kernel.kernel_tests],
}

FORMS = {"full": FULL, "kernel": KERNEL}

#: Additional packages in the image of each form.
PACKAGES = {"short": [], "full": ["man-db", "bash-completion", "zsh", "fish", "apparmor"], "kernel": kernel.PACKAGES}
