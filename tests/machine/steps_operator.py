"""Steps of the full form about an operator's commands: every command of ashctl, a faulty configuration, a backup."""

import json

from guest_api import Guest, must
from steps_journal import RELOAD_FAILED, catalog


def ashctl(g: Guest) -> str:
    """Each command of ashctl against the service: tables, JSON, exit codes, a member of the group without a key."""
    done = []

    def does(line: str, *texts: str, code: int = 0, limit: float = 100) -> str:
        status, out = g.status(line, limit)
        must(status == code, f"`{line}`: exit code {status}, not {code}\n{out}")
        for text in texts:
            must(text in out, f"`{line}` does not print {text!r}:\n{out}")
        done.append(line)
        return out

    does("ashctl health", "status", "ok")
    must(json.loads(does("ashctl -o json health"))["status"] == "ok", "JSON of health")
    does("ashctl --url unix:/run/ashd/ashd.sock --data-dir /nonexistent health", "ok")
    does("ashctl --url http://127.0.0.1:1 health", "is it running?", code=3)
    does("ashctl session", code=2)
    does("runuser -u nobody -- ashctl agent list", code=4)
    g.run("id operator-of-ashd >/dev/null 2>&1 || useradd -G ashd operator-of-ashd")
    does("runuser -u operator-of-ashd -- ashctl agent list")
    # A directory that the hardened daemon cannot read.
    g.run("install -d -m 700 /root/hers && echo '# Hers' > /root/hers/CLAUDE.md")
    does("ashctl agent deploy /root/hers --env TEAM=blue", "deployed hers")
    does("ashctl agent list", "hers")
    does("ashctl agent info hers", "hers")
    s = does("ashctl session create hers", limit=150).strip()
    does(f"ashctl session send {s} '@text Looking.\n@tool Bash {{\"command\":\"echo $TEAM > team.txt; cat team.txt\"}}\n@text Done.'", "Looking.", "> Bash", "< blue", "Done.")
    does(f"printf '@text one\\n@text two\\n' | ashctl session chat {s}", "one", "two")
    does("ashctl session list", s, "active")
    does(f"ashctl session info {s}", "active", "hers")
    does(f"ashctl session files {s}", "team.txt")
    must(does(f"ashctl session cat {s} team.txt") == "blue\n", "the file")
    does(f"ashctl session exec {s} 'echo out; exit 7'", "out", code=7)
    does(f"ashctl session logs {s}")
    does(f"ashctl session events {s} --type lifecycle", "created")
    does(f"ashctl session messages {s}", "user>", "Done.")
    does(f"ashctl session confinement {s}", "seccomp", "confined: true")
    tail = g.machine.start_script(f"timeout 60 ashctl session tail {s} | grep -m1 -q seen-by-tail", 80)
    g.wait_until("pgrep -f '[a]shctl session tail'", 30, "tail runs")
    for _ in range(3):  # the first may be sent before the tail has joined
        g.status("sleep 2")
        does(f"ashctl session send {s} '@text seen-by-tail'")
    status, out = g.machine.finish(tail, 80)
    must(status == 0, f"ashctl session tail: {status} {out}")
    turn = g.machine.start_script(f"ashctl session send {s} '@text begun\n@wait 90s'", 120)
    g.wait_until(f"ashctl session info {s} -o json | grep -q '\"turn\"' || ashctl session events {s} --type text | grep -q begun", 60, "the turn to interrupt has begun")
    does(f"ashctl session interrupt {s}")
    g.machine.finish(turn, 60)
    does(f"ashctl session pause {s}", "paused")
    does(f"ashctl session send {s} x", "ashctl session resume", code=1)
    does(f"ashctl session resume {s}", "active", limit=150)
    does(f"ashctl limits set --session {s} pids=77 memory=1GiB")
    must(g.run(f"cd {g.cgroup(s)}; cat pids.max memory.max").split() == ["77", str(1 << 30)], "limits in force")
    does(f"ashctl limits show --session {s}", "77", "session")
    does("ashctl limits set --agent hers cpu=1.5")
    does("ashctl limits show --agent hers", "1.5")
    does(f"ashctl limits set --session {s} nonsense=1", code=2)
    does("ashctl top --once", s[:8])
    must(json.loads(does("ashctl top --once -o json"))["sessions"], "JSON of top")
    made = json.loads(does("ashctl -o json keys create laptop"))
    does("ashctl keys list", "laptop")
    does(f"ashctl --key {made['key']} agent list", "hers")
    does(f"ashctl keys revoke {made['id']}")
    does(f"ashctl --key {made['key']} agent list", "not authorised", code=4)
    does("ashctl claude list", "*", g.run("cat /opt/machine/claude-version").strip())
    does("ashctl claude install ../../x", "not a version", code=2)
    does("ashctl claude install 9.9.9", code=1)
    does("ashctl credentials list")
    does(f"ashctl session stop {s}", "stopped")
    does(f"ashctl session end {s}", "ended")
    does(f"ashctl session resume {s}", "410", code=1)
    does("ashctl agent delete hers")
    return f"{len(done)} commands"


def doctor(g: Guest) -> str:
    """`ashctl doctor` with its three exit codes: success, a warning with its remedy, a failure with its remedy."""
    g.live()
    findings = lambda out: {f["check"]: f for f in json.loads(out)["findings"]}
    status, out = g.status("ashctl doctor --json", 150)
    odd = [f"{f['check']}: {f['found']}" for f in findings(out).values() if f["status"] != "ok"]
    must(status == (1 if odd else 0), f"status {status} with {odd}")
    must(not any(f["status"] == "failure" for f in findings(out).values()), f"{odd}")
    # Fix what it warns of on a machine of this size: disk space, swap, the number of processes.
    g.run("resize2fs /dev/nvme0n1 2>&1", 200)
    swap = "/var/swap-doctor"
    g.run(f"fallocate -l 256M {swap} && chmod 600 {swap} && mkswap -q {swap} && swapon {swap}; sysctl -q -w kernel.threads-max=60000", 120)
    try:
        mended, out = g.status("ashctl doctor --json", 150)
    finally:
        g.run(f"swapoff {swap}; rm -f {swap}", 120)
    left = [f"{f['check']}: {f['found']}" for f in findings(out).values() if f["status"] != "ok"]
    must(mended == 0 and not left, f"status {mended} with {left}")
    g.run("printf '[disk]\\nreserve_byte = 1\\n' > /etc/ashd/ashd.toml.d/50-machine.toml")
    try:
        broken, out = g.status("ashctl doctor", 150)
    finally:
        g.run("rm -f /etc/ashd/ashd.toml.d/50-machine.toml")
    must(broken == 2 and "reserve_byte" in out, f"status {broken} of a faulty configuration:\n{out}")
    return f"status {status} ({'; '.join(odd) or 'all well'}), {mended} when that is mended, {broken} with a faulty configuration"


def check_config(g: Guest) -> str:
    """A faulty drop-in is reported by file, line, key and nearest name; reloads refuse it; a start waits for a fix; sessions continue."""
    s = g.live()
    claude, pid = g.claude_pid(s), g.pid("ashd")
    drop_in = "/etc/ashd/ashd.toml.d/50-machine.toml"
    g.run(f"printf '# by hand\\n[pool]\\nmax_sandboxez = 5\\n' > {drop_in}")
    try:
        status, out = g.status("ashd check-config")
        for text in ("50-machine.toml", "3", "max_sandboxez", "max_sandboxes"):
            must(status == 1 and text in out, f"check-config: status {status}, no {text!r} in\n{out}")
        status, out = g.status("systemctl reload ashd", 60)
        must(status != 0, "systemctl reload says that it took a faulty configuration over")
        must(g.pid("ashd") == pid and '"status":"ok"' in g.run("curl -s --max-time 55 http://127.0.0.1:4100/health"), "the refused reload hurt the service")
        # Without systemd's check, ashd checks by itself, and logs an event for the operator.
        g.run("systemctl kill -s HUP --kill-who=main ashd")
        g.wait_until(f"journalctl -q --no-pager --since -1min MESSAGE_ID={RELOAD_FAILED} | grep -q max_sandboxez", 40, "the refusal is in the journal")
        must("Subject: The configuration was not applied" in catalog(g, RELOAD_FAILED), f"journalctl -x: {catalog(g, RELOAD_FAILED)}")
        must(g.pid("ashd") == pid, "a faulty configuration ended ashd")
        turn = g.begin_turn(s, 600, 300)
        g.mid_turn(s)
        g.status("systemctl restart ashd", 60)
        must(g.run("systemctl is-active ashd; true").strip() != "active", "ashd runs with a faulty configuration")
        told = g.run("journalctl -q --no-pager -u ashd --since -1min")
        must("max_sandboxez" in told and "max_sandboxes" in told, f"the journal does not name the key:\n{told[-2000:]}")
        must(g.claude_pid(s) == claude, "claude did not survive")
    finally:
        g.run(f"rm -f {drop_in}")
    # Nothing else is needed: systemd keeps trying.
    took = g.serving()
    g.end_turn(turn, 320)
    g.units_active()
    must("ok" in g.run("ashd check-config").lower(), "check-config of a good configuration")
    return f"serving {took:.1f} s after it was mended; the turn went on"


def backup(g: Guest) -> str:
    """A backup during a turn is verified, a damaged one refused; a restore brings back sessions, histories and files, which resume."""
    s, busy = g.session(), g.session()
    g.said(s, "@text remember the lighthouse\n@write kept.txt of the backup")
    history = lambda: g.ok("GET", f"/api/sessions/{s}/messages?limit=1000")["messages"]
    before, key = history(), g.run("cat /var/lib/ashd/initial-api-key")
    turn = g.begin_turn(busy, 400, 300)
    g.mid_turn(busy)
    g.run("rm -f /root/ashd.tar.gz; ashctl backup /root/ashd.tar.gz", 200)
    must(g.run("stat -c %a /root/ashd.tar.gz").strip() == "600", "who may read the backup")
    g.end_turn(turn, 320, joins=0)
    verified = g.run("ashctl restore --verify /root/ashd.tar.gz", 200).strip()
    g.run("cp /root/ashd.tar.gz /root/cut.tar.gz; truncate -s -2000 /root/cut.tar.gz")
    status, out = g.status("ashctl restore --verify /root/cut.tar.gz", 200)
    must(status == 1, f"a cut archive: status {status} {out}")
    status, out = g.status("ashctl restore /root/ashd.tar.gz", 200)
    must(status != 0 and "stop" in out, f"restored under a running ashd: {status} {out}")
    # Data lost after the backup comes back; data created after it exists only in the old directory
    # beside it.
    g.said(s, "@write kept.txt overwritten")
    later = g.session()
    g.run("systemctl stop ashd.socket ashd 2>&1", 60)
    status, out = g.status("ashctl restore /root/ashd.tar.gz", 200)
    must(status == 2 and "systemctl stop ash-launcher" in out, f"restored under sandboxes that run: {status} {out}")
    g.run("systemctl stop ash-launcher 2>&1", 60)
    restored = g.run("ashctl restore /root/ashd.tar.gz", 200).strip()
    g.run("systemctl start ashd.socket ashd", 60)
    g.serving()
    g.units_active()
    must(history() == before, f"the history: {history()}")
    must(g.call("GET", f"/api/sessions/{later}")[0] == 404, "a session of after the backup is there")
    must(g.run("cat /var/lib/ashd/initial-api-key") == key, "another key")
    must("of the backup" in g.run(f"curl -sS --unix-socket /run/ashd/ashd.sock http://ashd/api/sessions/{s}/files/kept.txt"), "the file is not the backup's")
    must(g.session_status(s) in ("paused", "error"), f"status {g.session_status(s)}")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 150)
    must("remember the lighthouse" in g.said(s, "@recall"), "the conversation is lost")
    for session in (s, busy):
        g.ok("DELETE", f"/api/sessions/{session}")
    g.run("rm -rf /root/ashd.tar.gz /root/cut.tar.gz /var/lib/ashd/before-restore-*")
    return f"{verified.splitlines()[-1]}; {restored.splitlines()[-1]}"
