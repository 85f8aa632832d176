"""Steps of the full form about the host: units, first hour, watchdog, kills, socket activation, reboot, power cut."""

import json
import re
from contextlib import contextmanager

from guest_api import Guest, must

ANALYZED = {"ashd.service": 1.5, "ash-gateway.service": 1.5, "ash-launcher.service": 6.5, "ash-sandboxes.service": 2.0}


def units(g: Guest) -> str:
    """`systemd-analyze verify` prints nothing; `security` gives ashd and gateway at most 1.5."""
    out = g.run("systemd-analyze verify --man=no ashd.service ashd.socket ash-launcher.service ash-launcher.socket ash-sandboxes.service "
                "ash-gateway.service ash-gateway.socket ash.slice 2>&1", 120)  # fmt: skip
    must(not out.strip(), f"systemd-analyze verify: {out}")
    scores = {}
    for unit, most in ANALYZED.items():
        out = g.run(f"systemd-analyze security --no-pager {unit} | tail -n1", 120)
        scores[unit] = float(re.search(r": ([0-9.]+) ", out)[1])
        must(scores[unit] <= most, f"{unit}: exposure {scores[unit]}, at most {most}")
    return ", ".join(f"{unit} {score}" for unit, score in scores.items())


@contextmanager
def real_claude(g: Guest):
    """Replaces the fake Claude Code by the real one; running processes keep theirs."""
    real = "/var/lib/ash-claude/$(cat /opt/machine/claude-version)/claude"
    # A link, because copying takes a minute under emulation.
    g.run(f"chown root: /opt/machine/claude && chmod 755 /opt/machine/claude && mv -f {real} /opt/machine/fake-installed && ln /opt/machine/claude {real}")
    try:
        yield
    finally:
        g.run(f"mv -f /opt/machine/fake-installed {real}")


def first_hour(g: Guest) -> str:
    """An operator's first hour with the real Claude Code and the offline model: each command as typed."""
    with real_claude(g):
        g.run("mkdir -p /root/my-agent && echo '# A helper for the first hour' > /root/my-agent/CLAUDE.md && ashctl agent deploy /root/my-agent")
        begin = g.now()
        s = g.run("ashctl session create my-agent", 150).split()[-1]
        started = g.now() - begin
        begin = g.now()
        out = g.run(f"ashctl session send {s} 'Create a file hello.txt with \"Hi from the machine\"'", 200)
        answered = g.now() - begin
        must("Write" in out or "hello.txt" in out, f"the turn printed {out!r}")
        must("Hi from the machine" in g.run(f"ashctl session cat {s} hello.txt"), "the file is not what was asked for")
        must("session" in g.run("systemctl status --no-pager ashd").split("Status:")[1].split("\n")[0], "no STATUS line")
        top = g.run("ashctl top --once", 60)
        must(s[:8] in top, f"ashctl top does not show the session:\n{top}")
        g.run(f"ashctl session pause {s}")
        must(g.run(f"cat {g.cgroup(s)}/cgroup.freeze").strip() == "1", "the pause froze nothing")
        g.run(f"ashctl session resume {s}")
        g.run(f"ashctl limits set --session {s} memory=1GiB cpu=0.5")
        got = g.run(f"cd {g.cgroup(s)} && cat memory.max cpu.max").split()
        must(got == [str(1 << 30), "50000", "100000"], f"limits after ashctl limits set: {got}")
        # During a turn, in the middle of the model's answer.
        turn = g.begin_turn(s, 0, 200, turn="@delay 100ms\n@repeat 150 w")
        g.mid_turn(s, limit=120)
        g.run("systemctl restart ashd")
        seen = g.end_turn(turn, 260)
        must(seen["words"] == 150, f"{seen['words']} words of 150 from the real claude over a restart: {seen}")
        status, doctor = g.status("ashctl doctor", 150)
        must(status in (0, 1), f"ashctl doctor: status {status}\n{doctor}")
        story = g.journal(f"ASH_SESSION={s}")
        must(len(story) >= 3, f"journalctl ASH_SESSION= tells {len(story)} lines")
        g.run(f"ashctl session end {s}")
        return f"claude started in {started:.1f} s, first turn {answered:.1f} s, doctor status {status}, {len(story)} lines of journal"


def watchdog(g: Guest) -> str:
    """systemd kills and restarts an ashd that hangs (SIGSTOP); the turn continues meanwhile."""
    s = g.live()
    before = int(g.run("systemctl show -p NRestarts --value ashd"))
    old = g.pid("ashd")
    turn = g.begin_turn(s, 1500, 300)
    g.mid_turn(s)
    g.run("systemctl kill -s STOP --kill-who=main ashd")
    took = g.wait_until(f"p=$(systemctl show -p MainPID --value ashd); [ $p != 0 ] && [ $p != {old} ]", 150, "systemd restarts a hanging ashd")
    g.serving()
    seen = g.end_turn(turn, 320)
    must(int(g.run("systemctl show -p NRestarts --value ashd")) == before + 1, "not exactly one restart")
    journal = g.run("journalctl -q --no-pager -u ashd -b | grep -ci watchdog; true").strip()
    must(int(journal) >= 1, "the journal does not say that it was the watchdog")
    return f"restarted after {took:.0f} s; {seen['frames']} frames, none lost"


def kills(g: Guest) -> str:
    """kill -9 of each process in turn, during a turn: what must continue continues, and the rest is reported."""
    s = g.live()
    turn = g.begin_turn(s, 800, 500)
    g.mid_turn(s)
    claude = g.claude_pid(s)
    notes = []
    for unit in ("ashd", "ash-gateway", "ash-launcher"):
        old = g.pid(unit)
        g.run(f"kill -9 {old}")
        took = g.wait_until(f"p=$(systemctl show -p MainPID --value {unit}); [ $p != 0 ] && [ $p != {old} ] && systemctl -q is-active {unit}", 200, f"{unit} is back")  # fmt: skip
        notes.append(f"{unit} {took:.1f} s")
    g.serving()
    g.end_turn(turn, 520)
    must(g.claude_pid(s) == claude, "claude did not survive")
    # The restarted launcher has full control of the sandbox.
    must("in the sandbox" in g.ok("POST", f"/api/sessions/{s}/exec", {"command": "echo in the sandbox"})["stdout"], "no exec after the kills")
    new = g.session()
    g.ok("DELETE", f"/api/sessions/{new}")
    turn = g.begin_turn(s, 0, 120, turn="@delay 50ms\n@repeat 400 w")
    g.mid_turn(s)
    g.run(f"kill -9 {claude}")
    _, out = g.machine.finish(turn, 140)
    seen = json.loads(out)
    must(len(seen["errors"]) == 1 and not seen["faults"], f"claude killed: {seen}")
    must(g.session_status(s) == "error", f"status {g.session_status(s)}")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 120)
    must("again" in g.said(s, "@text again"), "no turn after the resume")
    return f"back after {', '.join(notes)}; claude: {seen['errors'][0]}"


def socket_activation(g: Guest) -> str:
    """The first connection starts a stopped ashd; a connection while it is down waits and is answered."""
    g.run("systemctl stop ashd.service 2>/dev/null")
    must(g.run("systemctl is-active ashd.service; true").strip() == "inactive", "ashd did not stop")
    must("running" in g.run("systemctl show -p SubState --value ash-launcher").strip(), "stopping ashd stopped the launcher")
    begin = g.now()
    must('"status":"ok"' in g.run("curl -sS --max-time 60 http://127.0.0.1:4100/health", 80), "no answer")
    return f"answered {g.now() - begin:.1f} s after the connection"


def launcher_stop(g: Guest) -> str:
    """Stopping the launcher ends every sandbox cleanly: no process, no cgroup; sessions are paused or have a reason, and resume."""
    s = g.live()
    group = g.cgroup(s)
    g.run("systemctl stop ash-launcher.service 2>/dev/null", 60)
    left = g.run(f"ls -d {group} 2>/dev/null; pgrep -f '[/]opt/claude/claude'; true")
    must(not left.strip(), f"left of the sandboxes: {left}")
    g.run("systemctl start ash-launcher.service", 60)
    g.serving()
    must(g.session_status(s) in ("paused", "error"), f"status {g.session_status(s)}")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 120)
    must("after the stop" in g.said(s, "@text after the stop"), "no turn after the stop")
    return "sandboxes gone, the session resumed"


def history(g: Guest, session: str) -> list:
    return g.ok("GET", f"/api/sessions/{session}/messages?limit=1000")["messages"]


def reboot(g: Guest) -> str:
    """After a reboot every session exists, paused, with its messages; it resumes and remembers."""
    s = g.session()
    g.said(s, "@text remember the tide\n@write kept.txt over the reboot")
    before = history(g, s)
    g.machine.reboot(g.boot_limit)
    took = g.serving()
    g.units_active()
    must(g.session_status(s) == "paused", f"status after the reboot: {g.session_status(s)}")
    must(history(g, s) == before, "the history changed over the reboot")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 150)
    must("remember the tide" in g.said(s, "@recall"), "the conversation is lost")
    must("over the reboot" in g.run(f"curl -sS --unix-socket /run/ashd/ashd.sock http://ashd/api/sessions/{s}/files/kept.txt"), "the file is lost")
    g.live()
    g.ok("DELETE", f"/api/sessions/{s}")
    return f"{len(before)} messages kept, serving {took:.1f} s after the agent"


CHECK = """python3 - <<'PY'
import sqlite3
db = sqlite3.connect("file:/var/lib/ashd/ashd.db?mode=ro", uri=True)
print(db.execute("pragma integrity_check").fetchone()[0], len(db.execute("pragma foreign_key_check").fetchall()))
PY"""


def powercut(g: Guest) -> str:
    """The power fails during a turn: acknowledged data exists, the database is intact, the session continues."""
    s = g.session()
    g.said(s, "@text first light")
    before = history(g, s)
    g.begin_turn(s, 2000, 100)
    g.mid_turn(s)
    g.machine.powercut(g.boot_limit)
    g.run("mkdir -p /opt/machine", 60)
    g.serving()
    must(g.run(CHECK).split() == ["ok", "0"], f"the database: {g.run(CHECK)}")
    after = history(g, s)
    must(after[: len(before)] == before, "acknowledged messages are lost")
    must(len(after) > len(before) and "@repeat 2000" in after[len(before)]["content"], "the message whose turn had begun is lost")
    must(g.session_status(s) in ("paused", "error"), f"status {g.session_status(s)}")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 150)
    must("first light" not in g.said(s, "@text second light"), "an old answer came again")
    g.ok("DELETE", f"/api/sessions/{s}")
    g.live()
    return f"{len(after)} messages after the cut, {len(before)} of finished turns before; integrity ok"
