"""The steps of the short form, required for every change. Each prints its observations, and on failure the expected result."""

from guest_api import Guest, must

MIB = 1 << 20


def install(g: Guest) -> str:
    """`apt install ./ashd.deb`: no question, everything active, STATUS line, served over TCP and the unix socket."""
    begin = g.now()
    out = g.run("apt-get install -y /opt/machine/ashd.deb </dev/null", 600)
    g.serving()
    took = g.now() - begin
    must("ashctl claude install" in out, f"the installation does not say that Claude Code is missing:\n{out}")
    g.units_active()
    must(g.run("curl -s --unix-socket /run/ashd/ashd.sock http://ashd/health").startswith('{"status":"ok"'), "no health on the unix socket")
    status = g.run("systemctl show -p StatusText --value ashd").strip()
    must("session" in status, f"STATUS is {status!r}")
    # The fake is installed where `ashctl claude install` puts the real one.
    g.run("d=/var/lib/ash-claude/$(cat /opt/machine/claude-version); install -d -m755 $d && install -m755 /opt/machine/fake-claude $d/claude")
    return f"apt install to serving {took:.1f} s; status: {status}"


def privileges(g: Guest) -> str:
    """ashd and the gateway have no capability and ordinary users; the launcher has the capabilities of its unit."""
    pids = g.pids()
    for unit in ("ashd", "ash-gateway"):
        text = g.run(f"grep -E '^(Uid|Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/{pids[unit]}/status")
        must("\nNoNewPrivs:\t1" in "\n" + text, f"{unit}: {text}")
        must(text.count("\t0000000000000000") == 5, f"{unit} holds capabilities: {text}")
        must("Uid:\t0" not in text, f"{unit} runs as root")
    sets = g.run(f"sed -n 's/^Cap\\(Prm\\|Bnd\\):.//p' /proc/{pids['ash-launcher']}/status").split()
    permitted, bounding = (int(text, 16) for text in sets)
    must(bounding & ~permitted == 0 and bin(permitted).count("1") <= 9, f"the launcher holds {permitted:x}, bounding set {bounding:x}")
    # ashd reaches only loopback, and cannot read the model's key.
    must(g.run("systemctl show -p IPAddressDeny --value ashd").strip() != "", "ashd may reach the network")
    return f"ashd and gateway none; launcher {bin(permitted).count('1')} capabilities ({permitted:x})"


def session(g: Guest) -> str:
    """Deploy, a session, a turn with a tool, the file read back; the cgroup is below ash.slice with its limits in force."""
    g.run("ashctl agent deploy /usr/share/doc/ashd/examples/agent")
    begin = g.now()
    s = g.kept["session"] = g.session()
    took = g.now() - begin
    said = g.said(s, '@write hello.txt made in the machine\n@tool Bash {"command": "cat hello.txt"}\n@text done')
    must("done" in said, f"the turn said {said!r}")
    file = g.run(f"curl -sS --unix-socket /run/ashd/ashd.sock http://ashd/api/sessions/{s}/files/hello.txt")
    must(file.strip() == "made in the machine", f"the file reads {file!r}")
    group = g.cgroup(s)
    must(group.startswith("/sys/fs/cgroup/ash.slice/ash-sandboxes.service/tenants/"), f"the session's cgroup is {group}")
    limits = g.run(f"cd {group} && cat memory.max memory.oom.group cpu.max pids.max memory.swap.max").split()
    must(limits == [str(2 << 30), "1", "100000", "100000", "512", str(2 << 30)], f"limits in force: {limits}")
    return f"created in {took:.2f} s; {group.removeprefix('/sys/fs/cgroup/')}"


def confinement(g: Guest) -> str:
    """Every layer is in force, measured by a probe inside the sandbox and in /proc from outside."""
    s = g.live()
    proof = g.ok("GET", f"/api/sessions/{s}/confinement")["confinement"]
    lacking = [layer for layer in proof["layers"] if not layer["inForce"]]
    must(proof["confined"] and not lacking, f"not in force: {lacking}")
    broken = [probe for probe in proof["inside"]["probes"] if not probe["ok"]]
    must(not broken, f"probes that failed: {broken}")
    pid = g.claude_pid(s)
    status = g.run(f"grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/{pid}/status; cat /proc/{pid}/uid_map")
    must("CapEff:\t0000000000000000" in status and "CapBnd:\t0000000000000000" in status, f"capabilities: {status}")
    must("NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, f"no_new_privs, seccomp: {status}")
    must(int(status.split("Uid:\t")[1].split()[0]) >= 1_900_000_000, f"the payload's uid on the host: {status}")
    for space in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        inside, outside = g.run(f"readlink /proc/{pid}/ns/{space} /proc/1/ns/{space}").split()
        must(inside != outside, f"the sandbox shares the {space} namespace with the host")
    return f"{len(proof['layers'])} layers in force, landlock ABI {proof['inside']['landlockAbi']}, {len(proof['inside']['probes'])} probes"


def restart(g: Guest) -> str:
    """`systemctl restart ashd`, then kill -9, both during a turn: the client that rejoins has every event once."""
    s = g.live()
    turn = g.begin_turn(s, 400)
    g.mid_turn(s)
    claude, others = g.claude_pid(s), g.pids()
    begin = g.now()
    g.run("systemctl restart ashd")
    took = g.serving() and g.now() - begin
    g.mid_turn(s, 1)
    g.run("systemctl kill -s KILL --kill-who=main ashd")
    g.serving()
    seen = g.end_turn(turn, joins=2)
    must(g.claude_pid(s) == claude, "claude is another process")
    after = g.pids()
    must(all(after[u] == others[u] for u in ("ash-launcher", "ash-gateway")), f"launcher or gateway restarted: {others} {after}")
    return f"{seen['frames']} frames, {seen['joins']} joins, none lost or doubled; restart to serving {took:.1f} s"


def out_of_memory(g: Guest) -> str:
    """A real OOM on cgroup v2: its cause is in the stream, the timeline and the journal; the session can continue."""
    s = g.session()
    g.ok("PATCH", f"/api/sessions/{s}/limits", {"memoryBytes": 64 * MIB, "swapBytes": 0})
    must(g.run(f"cat {g.cgroup(s)}/memory.max").strip() == str(64 * MIB), "memory.max is not the new limit")
    frames = g.turn(s, f"@alloc {256 * MIB}\n@text survived")
    errors = [data["error"] for event, data in frames if event == "error"]
    must(len(errors) == 1 and "memory" in errors[0], f"the stream says {errors}")
    lines = g.journal(f"ASH_SESSION={s} -p warning")
    must(any("memory" in line["MESSAGE"] for line in lines), f"the journal says {[line['MESSAGE'] for line in lines]}")
    kernel = g.run("journalctl -k -q --no-pager | grep -c 'Memory cgroup out of memory'; true").strip()
    must(int(kernel) >= 1, "the kernel has logged no OOM")
    must(any(event.get("reason") == "oom" for event in g.timeline(s)), f"timeline: {g.timeline(s)}")
    must(g.session_status(s) == "error", f"status {g.session_status(s)}")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 120)
    said = g.said(s, "@text goes on")
    must("goes on" in said, f"after the kill: {said!r}")
    g.ok("DELETE", f"/api/sessions/{s}")
    return errors[0]


def remove(g: Guest) -> str:
    """`apt remove` ends everything and keeps the data; `apt purge` leaves nothing."""
    s = g.live()
    g.said(s, "@write kept.txt kept by remove")
    g.run("apt-get remove -y ashd", 300)
    left = g.run("systemctl list-units --all --plain --no-legend 'ash*' | awk '$2 != \"not-found\"'; "
                 "find /sys/fs/cgroup -name 'tenants' -o -name 'ash.slice' -o -name 'ash*.service'; pgrep -a 'ash-|ashd'; true")  # fmt: skip
    must(not left.strip(), f"left after remove:\n{left}")
    g.run(f"test -f /var/lib/ashd/ashd.db && grep -q kept /var/lib/ashd/sessions/{s}/workspace/kept.txt && test -f /etc/ashd/ashd.toml")
    g.run("apt-get purge -y ashd", 300)
    nothing_left(g)
    return "data kept by remove, nothing left by purge"


def nothing_left(g: Guest):
    """No file, user, unit, mount, process or cgroup of ashd."""
    left = g.run("ls -d /var/lib/ashd /var/lib/ash-claude /etc/ashd /run/ashd /usr/lib/ashd /etc/systemd/system/*ash* /etc/systemd/system/*/ash* /etc/apparmor.d/ash* 2>/dev/null; "
                 "getent passwd ashd ash-gateway; getent group ashd ash-gateway; grep ashd /proc/mounts; pgrep -a 'ash-|ashd'; "
                 "systemctl list-units --all --plain --no-legend 'ash*' | awk '$2 != \"not-found\"'; "
                 "find / -xdev -not -path '/proc/*' -not -path '/opt/machine*' -not -path '/var/log/*' -not -path '/var/cache/apt/*' -name '*ashd*' 2>/dev/null; true")  # fmt: skip
    must(not left.strip(), f"left after purge:\n{left}")
