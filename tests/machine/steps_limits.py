"""Steps of the full form about cgroup v2: limits of a session, the slice above all, floors."""

import time

from guest_api import Guest, must

MIB = 1 << 20


def pids_limit(g: Guest) -> str:
    """A fork bomb reaches pids.max: fork fails, the cause is reported, the session continues."""
    s = g.session()
    g.ok("PATCH", f"/api/sessions/{s}/limits", {"pids": 32})
    g.said(s, '@tool Bash {"command": "for i in $(seq 100); do sleep 20 & done; wait -n; true"}\n@text over')
    refused = int(g.run(f"sed -n 's/^max //p' {g.cgroup(s)}/pids.events"))
    must(refused > 0, "pids.max refused nothing")
    must(int(g.run(f"cat {g.cgroup(s)}/pids.peak 2>/dev/null || cat {g.cgroup(s)}/pids.current")) <= 32, "more than 32 processes")
    must(any(event.get("reason") == "pids" for event in g.timeline(s)), f"timeline: {g.timeline(s)}")
    g.ok("DELETE", f"/api/sessions/{s}")
    return f"{refused} forks refused"


def cpu_limit(g: Guest) -> str:
    """A tenth of a core, measured."""
    s = g.session()
    g.ok("PATCH", f"/api/sessions/{s}/limits", {"cpuMillis": 100})
    usage = lambda: int(g.run(f"sed -n 's/^usage_usec //p' {g.cgroup(s)}/cpu.stat"))
    turn = g.begin_turn(s, 0, 120, turn="@busy 12s")
    g.wait_until(f"[ $(sed -n 's/^nr_throttled //p' {g.cgroup(s)}/cpu.stat) -gt 5 ]", 60, "throttling")
    a, begin = usage(), time.monotonic()
    time.sleep(4)
    b, took = usage(), time.monotonic() - begin
    g.machine.finish(turn, 140)
    share = (b - a) / 1e6 / took
    must(share < 0.2, f"{share:.2f} of a core with a limit of 0.1")
    stats = g.ok("GET", f"/api/sessions/{s}/stats")
    must("throttled" in str(stats).lower(), f"the stats do not tell of it: {stats}")
    g.ok("DELETE", f"/api/sessions/{s}")
    return f"{share:.3f} of a core"


def slice_limit(g: Guest) -> str:
    """`systemctl set-property ash.slice` limits everything together: the OOM is inside the slice, and the daemon survives."""
    s = g.session()
    before = g.pids()
    g.run("systemctl set-property --runtime ash.slice MemoryMax=200M MemoryHigh=infinity")
    try:
        must(g.run("cat /sys/fs/cgroup/ash.slice/memory.max").strip() == str(200 * MIB), "memory.max of the slice")
        frames = g.turn(s, f"@alloc {600 * MIB}\n@text survived", 150)
        errors = [data["error"] for event, data in frames if event == "error"]
        must(len(errors) == 1, f"600 MiB were allocated in a slice of 200 MiB: {errors}")
        must("limit above the sandbox's own" in errors[0] and "ash.slice" in errors[0], f"the slice's limit was reached, and the stream says {errors}")
    finally:
        g.run("systemctl set-property --runtime ash.slice MemoryMax=90% MemoryHigh=80%")
    must(g.pids() == before, f"ours were killed: {before} {g.pids()}")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 120)
    must("goes on" in g.said(s, "@text goes on"), "the session does not go on")
    g.ok("DELETE", f"/api/sessions/{s}")
    return errors[0]


def io_limit(g: Guest) -> str:
    """A disk bandwidth set on the slice with systemd's property limits a session's writes."""
    s = g.session()
    # The device of /var/lib/ashd: /dev/root is only a name in the mount table.
    device = g.run("lsblk -ndo PATH $(readlink -f /dev/nvme0n1) 2>/dev/null || echo /dev/nvme0n1").strip()
    g.run(f"systemctl set-property --runtime ash.slice 'IOWriteBandwidthMax={device} 2M'")
    try:
        begin = g.now()
        g.ok("POST", f"/api/sessions/{s}/exec", {"command": "dd if=/dev/zero of=/workspace/big bs=1M count=16 oflag=direct conv=fsync", "timeout": 120000}, 130)
        took = g.now() - begin
    finally:
        g.run("systemctl set-property --runtime ash.slice IOWriteBandwidthMax=")
    must(took >= 6, f"16 MiB at 2 MB/s took {took:.1f} s")
    g.ok("DELETE", f"/api/sessions/{s}")
    return f"16 MiB in {took:.1f} s, {16 * MIB / took / 1e6:.1f} MB/s"


def landlock_floor(g: Guest) -> str:
    """With a floor above this kernel's features no session starts; error, journal and doctor name the feature and the remedy."""
    g.live()
    abi = int(g.run("python3 -c \"import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))\""))
    g.run(f"printf '[confinement]\\nlandlock_abi = {abi + 1}\\n' > /etc/ashd/ashd.toml.d/50-floor.toml && systemctl restart ashd")
    g.serving()
    try:
        status, answer = g.call("POST", "/api/sessions", {"agent": "agent"}, 120)
        text = str(answer)
        must(status >= 400 and "landlock" in text and f"ABI {abi}" in text, f"{status} {answer}")
        must("newer kernel" in text and "floor" in text, f"no way out is named: {answer}")
        lines = [line["MESSAGE"] for line in g.journal("-u ashd -p warning --since -2min")]
        must(any("landlock" in line for line in lines), f"the journal says {lines}")
        status, doctor = g.status("ashctl doctor", 150)
        must(status == 2 and "landlock" in doctor.lower(), f"doctor: {status} {doctor}")
    finally:
        g.run("rm -f /etc/ashd/ashd.toml.d/50-floor.toml && systemctl restart ashd")
        g.serving()
    s = g.session()
    must("runs" in g.said(s, "@text runs"), "with the default floor no turn runs")
    g.ok("DELETE", f"/api/sessions/{s}")
    return f"landlock ABI {abi} here; a floor of {abi + 1} is refused by name"
