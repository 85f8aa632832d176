"""Steps about the kernel layer on pure cgroup v2: this repository's tests inside the machine, the time of a start compared
with bwrap, and memory.reclaim.

    host: cargo test --no-run --> the tests, our programs, fake claude and hostile payload (stripped) --> the machine: the same paths, by a bind mount

A test contains the absolute build paths of the programs it starts, so the machine has them at the same paths while a step
runs. Each test is a process of its own, as with nextest, in the cgroup of the machine's agent. That cgroup is shared, so every
launcher creates its groups directly below /sys/fs/cgroup.
"""

import json
import os
import re
from contextlib import contextmanager

from guest_api import Guest, StepFailed, must

MIB = 1 << 20

#: Tests of cgroups, freezing, limits and reclaiming; `pause_ladder` and `doctor` use the real Claude Code.
TESTS = ["cgroup", "launcher", "kernel_sandbox", "kernel_hostile", "api_limits", "api_limits_reached", "api_limits_causes", "api_limits_io",
         "api_pause", "api_confinement", "pause_ladder", "doctor"]  # fmt: skip
#: Packages that some of them need.
PACKAGES = ["bubblewrap", "nodejs", "gcc", "libc6-dev", "git"]
#: Factor on the tests' time limits for the emulated CPU.
PATIENCE = 15
#: Seconds of one test. The longest runs some hundred programs in sandboxes, many of which must be seen to hang.
LIMIT = 3600
#: Needs the toolchain (1 GiB), and does not concern cgroups: runs on the host only.
NOT_HERE = {"policy::cargo_and_job_control_work"}


def profile() -> str:
    """The cargo profile of the tests and their programs: ASHD_TESTS_PROFILE, else that of the package."""
    return os.environ.get("ASHD_TESTS_PROFILE") or os.environ.get("ASHD_PROFILE", "dev")


def directory() -> str:
    return "debug" if profile() == "dev" else profile()


@contextmanager
def placed(g: Guest):
    """The programs at their build paths."""
    at, files = g.kept["target"] / directory(), f"/opt/machine/{directory()}"
    g.run(f"mkdir -p {at} && mount --bind {files} {at}")
    claude = f"/opt/claude-{g.run('cat /opt/machine/claude-version').strip()}"
    g.run(f"mkdir -p {claude} && ln -f /opt/machine/claude {claude}/claude")
    try:
        yield at
    finally:
        g.run(f"umount -l {at}; cd / && rmdir -p --ignore-fail-on-non-empty {at}; rm -rf {claude}")


def names(listed: str) -> list[str]:
    return [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]


def kernel_tests(g: Guest) -> str:
    """Runs the tests of cgroups, launcher, sandbox, limits, pause ladder and hostile payload in the machine."""
    only = re.compile(os.environ.get("ASHD_MACHINE_TESTS", ""))
    failed, passed = [], 0
    with placed(g) as at:
        for binary in TESTS:
            program = f"{at}/tests/{binary}"
            for name in names(g.run(f"{program} --list --format terse", 120)):
                if name in NOT_HERE or not only.search(f"{binary}::{name}"):
                    continue
                begin = g.now()
                status, out = g.status(f"cd {at} && RUST_BACKTRACE=0 ASH_TEST_PATIENCE={PATIENCE} {program} --exact {name} --nocapture", LIMIT)
                took = g.now() - begin
                print(f"     {took:6.1f} s    {'ok  ' if status == 0 else 'FAIL'} {binary}::{name}", flush=True)
                if status == 0:
                    passed += 1
                    continue
                failed.append(f"{binary}::{name}")
                print("\n".join(out.splitlines()[-60:]), flush=True)
    must(passed + len(failed) > 0, "no test was chosen")
    must(not failed, f"{len(failed)} of {passed + len(failed)} failed: {', '.join(failed)}")
    left = g.run("find /sys/fs/cgroup -name '[a]shd-test-*'; pgrep -fa '[a]shd-test|[a]shd-launcher-'; true")
    must(not left.strip(), f"left of the tests: {left}")
    return f"{passed} tests"


def start_v2(g: Guest) -> str:
    """Time from the request to `/bin/true` for a sandbox with every layer and all limits, compared with bwrap, on pure cgroup v2."""
    with placed(g) as at:
        _, out = g.status(f"cd {at} && {at}/tests/perf start", 1200)
    try:
        figures = {f["name"]: f for f in json.loads(out.strip().splitlines()[-1 if out.strip().endswith("}") else -2])["figures"]}
    except (ValueError, IndexError) as error:
        raise StepFailed(f"perf printed no figures: {out[-3000:]}") from error
    ours, bwrap = figures["sandbox: request to exec of /bin/true"], figures["bwrap: start to the end of /bin/true"]
    parked = figures["in a sandbox that is ready: request to exec"]
    must((ours["bound"] or {}).get("atMost") == bwrap["value"], "this host was not taken for a pure cgroup v2 one")
    return (f"sandbox {ours['value']:.0f} ms (p99 {ours['p99']:.0f}), bwrap {bwrap['value']:.0f} ms (p99 {bwrap['p99']:.0f}), ratio {ours['value'] / bwrap['value']:.2f}; "
            f"in a sandbox that is ready {parked['value']:.1f} ms; emulated processor")  # fmt: skip


def reclaim_v2(g: Guest) -> str:
    """memory.reclaim moves the memory of a paused session to swap; a resume during it ends it; nothing is lost."""
    swap = "/var/swap-machine"
    g.run(f"fallocate -l 1G {swap} && chmod 600 {swap} && mkswap -q {swap} && swapon {swap}", 120)
    g.run("printf '[pause]\\nreclaim_after_ms = 200\\n' > /etc/ashd/ashd.toml.d/50-reclaim.toml && systemctl restart ashd")
    g.serving()
    s = None
    try:
        s = g.session()
        group = g.cgroup(s)
        value = lambda file: int(g.run(f"cat {group}/{file}"))
        must("held" in g.said(s, f"@alloc {400 * MIB}\n@text held"), "no memory was taken")
        before = value("memory.current")
        must(before > 400 * MIB, f"memory.current is {before}")
        g.ok("POST", f"/api/sessions/{s}/pause", {}, 60)
        # Part of the memory is reclaimed, most is not.
        g.wait_until(f"[ $(cat {group}/memory.swap.current) -gt {16 * MIB} ]", 60, "memory begins to go to swap")
        g.ok("POST", f"/api/sessions/{s}/resume", {}, 60)
        told = lambda end: f"journalctl -q -o json --since -20min ASH_SESSION={s} | grep '\"MESSAGE\":\"reclaimed\"' | grep MemoryReclaim | grep -q {end}"
        g.wait_until(told("Thawed"), 60, "the worker says that the thaw ended it")
        stopped = value("memory.swap.current")
        must(stopped < 350 * MIB, f"{stopped} bytes were pushed out before a resume was heard")
        must("goes on" in g.said(s, "@text goes on"), "no turn after the resume")
        g.ok("POST", f"/api/sessions/{s}/pause", {}, 60)
        took = g.wait_until(f"[ $(cat {group}/memory.current) -lt {before // 8} ]", 200, f"memory.current of {before} bytes falls to an eighth")
        g.wait_until(told("Done"), 60, "the worker says that it is done")
        after, swapped = value("memory.current"), value("memory.swap.current")
        must(swapped > 350 * MIB, f"memory.current fell to {after}, and only {swapped} bytes are in swap")
        must("frozen 1" in g.run(f"cat {group}/cgroup.events"), "it was woken by it")
        begin = g.now()
        g.ok("POST", f"/api/sessions/{s}/resume", {}, 60)
        resumed = g.now() - begin
        must("comes back" in g.said(s, "@text comes back"), "no turn after it was reclaimed")
        must("held" in g.said(s, "@recall"), "the conversation is lost")
        return f"{before // MIB} MiB to {after // MIB} in {took:.1f} s, {swapped // MIB} MiB in swap; ended in mid-way at {stopped // MIB} MiB; resume {resumed:.2f} s"
    finally:
        if s:
            g.call("DELETE", f"/api/sessions/{s}")
        g.run(f"rm -f /etc/ashd/ashd.toml.d/50-reclaim.toml; systemctl restart ashd; swapoff {swap}; rm -f {swap}", 120)
        g.serving()
