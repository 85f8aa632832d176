"""Steps of the full form about the package: upgrade and reload during a turn, reinstallation."""

from guest_api import Guest, must


def launcher_reload(g: Guest) -> str:
    """`systemctl reload ash-launcher` during a turn: the program is executed again in place, without effect on sandboxes."""
    s = g.live()
    turn = g.begin_turn(s, 200)
    g.mid_turn(s)
    claude, launcher = g.claude_pid(s), g.pid("ash-launcher")
    g.run("systemctl reload ash-launcher", 60)
    must(g.pid("ash-launcher") == launcher, "the launcher's process changed")
    must("again" in g.ok("POST", f"/api/sessions/{s}/exec", {"command": "echo again"})["stdout"], "no exec after the reload")
    new = g.session()
    g.ok("DELETE", f"/api/sessions/{new}")
    g.end_turn(turn, joins=0)
    must(g.claude_pid(s) == claude, "claude did not survive")
    return "same process, exec and a new sandbox work"


def reload(g: Guest) -> str:
    """`systemctl reload ashd`: a faulty file is refused and changes nothing; a good one applies at once."""
    pid = g.pid("ashd")
    g.run("printf '[limits]\\npidz = 100\\n' > /etc/ashd/ashd.toml.d/50-machine.toml")
    status, out = g.status("systemctl reload ashd; journalctl -q --no-pager -u ashd -n 20", 60)
    must("pidz" in out and "pids" in out, f"the fault is not named with the nearest key: {out}")
    must(g.pid("ashd") == pid, "a faulty configuration restarted ashd")
    g.serving()
    g.run("printf '[limits]\\npids = 100\\n' > /etc/ashd/ashd.toml.d/50-machine.toml && systemctl reload ashd", 60)
    g.serving()
    s = g.session()
    pids = g.run(f"cat {g.cgroup(s)}/pids.max").strip()
    g.ok("DELETE", f"/api/sessions/{s}")
    g.run("rm /etc/ashd/ashd.toml.d/50-machine.toml && systemctl reload ashd", 60)
    must(pids == "100", f"pids.max of a new session is {pids}")
    must(g.pid("ashd") == pid, "a reload changed ashd's process")
    return "refused with the key's name, then in force without a restart"


def upgrade(g: Guest) -> str:
    """`apt install` of the next version during a turn: the session keeps its claude, its client misses nothing."""
    s = g.live()
    old = g.run("dpkg-query -W -f '${Version}' ashd")
    claude, before = g.claude_pid(s), g.pids()
    # Long enough that the turn still runs after the maintainer scripts, also under emulation.
    turn = g.begin_turn(s, 3000, 400)
    g.mid_turn(s)
    begin = g.now()
    out = g.run("apt-get install -y /opt/machine/ashd-next.deb </dev/null", 600)
    took = g.now() - begin
    g.serving()
    new = g.run("dpkg-query -W -f '${Version}' ashd")
    must(new != old, f"still version {new}")
    after = g.pids()
    must(after["ashd"] != before["ashd"], "ashd was not restarted")
    stale = g.run("for u in ashd ash-launcher ash-gateway; do readlink /proc/$(systemctl show -p MainPID --value $u)/exe; done | grep deleted; true")
    must(not stale.strip(), f"still the old program: {stale}\n{out[-1500:]}")
    must(g.claude_pid(s) == claude, "claude did not survive")
    running = g.ok("GET", f"/api/sessions/{s}")["session"]
    seen = g.end_turn(turn, 420)
    g.units_active()
    must("then" in g.said(s, "@text then"), "no turn after the upgrade")
    fresh = g.session()
    g.ok("DELETE", f"/api/sessions/{fresh}")
    return f"{old} to {new} in {took:.0f} s, {seen['frames']} frames, {seen['joins']} joins; status meanwhile {running['status']}"


def reinstall(g: Guest) -> str:
    """remove keeps the data; after a reinstallation, sessions, keys and configuration are unchanged."""
    s = g.live()
    key = g.run("cat /var/lib/ashd/initial-api-key")
    g.run("printf '[pool]\\nmax_sandboxes = 77\\n' > /etc/ashd/ashd.toml.d/50-machine.toml")
    g.run("apt-get remove -y ashd", 300)
    must(not g.run("pgrep -a 'ash-|ashd'; true").strip(), "processes left after remove")
    g.run("apt-get install -y /opt/machine/ashd-next.deb </dev/null", 600)
    g.serving()
    g.units_active()
    must(g.run("cat /var/lib/ashd/initial-api-key") == key, "another key")
    must('"maxCapacity":77' in g.run("curl -s http://127.0.0.1:4100/health"), "the drop-in is gone")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 150)
    must("back again" in g.said(s, "@text back again"), "no turn after the reinstallation")
    return "sessions, key and configuration kept"
