"""Requests of the steps to the daemon inside the machine."""

import json
import shlex
import time

from vm import Machine, MachineError

SOCKET = "/run/ashd/ashd.sock"
UNITS = "ashd.socket ashd.service ash-launcher.socket ash-launcher.service ash-gateway.socket ash-gateway.service"


class StepFailed(Exception):
    """The expected and the actual result."""


def must(condition, what: str):
    if not condition:
        raise StepFailed(what)


class Guest:
    """The machine as an operator and a client see it."""

    def __init__(self, machine: Machine, boot_limit: float):
        self.machine, self.boot_limit = machine, boot_limit
        self.run, self.status, self.wait_until = machine.run, machine.status, machine.wait_until
        #: Results of earlier steps for later ones, such as the session that is open across a reboot.
        self.kept = {}

    # -- the API, over the unix socket, where root needs no key

    def call(self, method: str, path: str, body=None, limit: float = 60) -> tuple[int, object]:
        data = "" if body is None else f"-H 'content-type: application/json' -d {shlex.quote(json.dumps(body))}"
        out = self.run(
            f"curl -sS --max-time {limit} --unix-socket {SOCKET} -w '\\n%{{http_code}}' -X {method} {data} {shlex.quote('http://ashd' + path)}",
            limit + 10,
        )
        text, _, status = out.rpartition("\n")
        try:
            return int(status), json.loads(text)
        except ValueError:
            return int(status), text

    def ok(self, method: str, path: str, body=None, limit: float = 60):
        status, answer = self.call(method, path, body, limit)
        must(status in (200, 201), f"{method} {path}: {status} {answer}")
        return answer

    def session(self, agent: str = "agent", **body) -> str:
        # A step that runs alone has no earlier step that deployed the agent.
        if agent == "agent" and self.call("GET", "/api/agents/agent")[0] == 404:
            self.run("ashctl agent deploy /usr/share/doc/ashd/examples/agent")
        return self.ok("POST", "/api/sessions", {"agent": agent, **body}, 120)["session"]["id"]

    def live(self) -> str:
        """The session that all steps share; active, whatever the previous step did to it."""
        session = self.kept.get("session")
        if session is None:
            session = self.kept["session"] = self.session()
        if self.session_status(session) != "active":
            self.ok("POST", f"/api/sessions/{session}/resume", {}, 150)
        return session

    def session_status(self, session: str) -> str:
        return self.ok("GET", f"/api/sessions/{session}")["session"]["status"]

    def turn(self, session: str, content: str, limit: float = 120) -> list[tuple[str, object]]:
        """(event, data) of each frame of a turn."""
        body = shlex.quote(json.dumps({"content": content}))
        out = self.run(
            f"curl -sSN --max-time {limit} --unix-socket {SOCKET} -H 'content-type: application/json' -d {body} http://ashd/api/sessions/{session}/messages",
            limit + 10,
        )
        frames = []
        for text in out.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(":"))
            if "event" in fields:
                frames.append((fields["event"], json.loads(fields["data"])))
        must(frames and frames[-1][0] == "done", f"no turn: {out[-2000:]}")
        return frames

    def said(self, session: str, content: str, limit: float = 120) -> str:
        """The result text of a turn that must succeed."""
        frames = self.turn(session, content, limit)
        errors = [data for event, data in frames if event == "error"]
        must(not errors, f"the turn failed: {errors}")
        return next((data["result"] for event, data in frames if event == "turn_complete"), "")

    def timeline(self, session: str, kind: str = "lifecycle") -> list[dict]:
        events = self.ok("GET", f"/api/sessions/{session}/events?type={kind}&limit=1000")["events"]
        return [json.loads(event["data"]) for event in events]

    # -- a client that rejoins

    def begin_turn(self, session: str, words: int, limit: float = 400, turn: str | None = None) -> int:
        self.run(f"rm -f /run/machine-client-{session}")
        text = f" --turn {shlex.quote(turn)}" if turn else ""
        return self.machine.start_script(f"python3 /opt/machine/client.py {session} {words} --limit {limit}{text}", limit + 20)

    def end_turn(self, ident: int, limit: float = 420, joins: int = 1) -> dict:
        status, out = self.machine.finish(ident, limit)
        must(status == 0, f"the rejoining client: {out.strip()}")
        seen = json.loads(out)
        must(seen["joins"] >= joins, f"the stream broke {seen['joins']} times, expected {joins}: {seen}")
        must(seen["refused"] == 0, f"{seen['refused']} connections were refused")
        must(not seen["errors"], f"the turn ended with {seen['errors']}")
        return seen

    def mid_turn(self, session: str, joins: int = 0, limit: float = 200):
        """Waits until the client of `begin_turn` has rejoined this often and received text since: a turn is running then."""
        self.wait_until(f"[ \"$(cat /run/machine-client-{session} 2>/dev/null)\" = {joins} ]", limit, f"text after {joins} joins")

    # -- the units

    def pid(self, unit: str) -> int:
        return int(self.run(f"systemctl show -p MainPID --value {unit}"))

    def pids(self) -> dict[str, int]:
        out = self.run("for u in ashd ash-launcher ash-gateway; do systemctl show -p MainPID --value $u; done")
        return dict(zip(("ashd", "ash-launcher", "ash-gateway"), map(int, out.split())))

    def serving(self, limit: float = 200) -> float:
        """Seconds until /health answers over TCP."""
        return self.wait_until("curl -sf --max-time 5 http://127.0.0.1:4100/health >/dev/null", limit, "ashd serves")

    def units_active(self):
        out = self.run(f"systemctl is-active {UNITS} || systemctl status --no-pager {UNITS}; true")
        must(out.split() == ["active"] * 6, f"units: {out}")

    def journal(self, matches: str, limit: float = 30) -> list[dict]:
        out = self.run(f"journalctl -q -o json --no-pager {matches}", limit)
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def cgroup(self, session: str) -> str:
        """Path of the session's cgroup."""
        found = self.run(f"find /sys/fs/cgroup -type d -name {session}").split()
        must(len(found) == 1, f"one cgroup of {session}, found {found}")
        return found[0]

    def claude_pid(self, session: str) -> int:
        """Process id in the machine of the session's claude, found by its name."""
        group = self.cgroup(session)
        out = self.run(f"for p in $(cat {group}/cgroup.procs); do echo $p $(tr '\\0' ' ' < /proc/$p/cmdline); done")
        for line in out.splitlines():
            pid, _, command = line.partition(" ")
            if command.startswith("/opt/claude/claude "):
                return int(pid)
        raise StepFailed(f"no claude in {group}: {out}")

    def log_tail(self) -> str:
        """Logs for a failed step; never fails itself."""
        if not self.machine.process:
            return "the machine is gone"
        try:
            _, out = self.machine.status(
                "systemctl --failed --no-pager --no-legend; systemctl status --no-pager -n0 ashd ash-launcher ash-gateway; "
                "journalctl -b -q --no-pager -n 40 -u ashd -u ash-launcher -u ash-gateway -o short-monotonic; dmesg | tail -n 5",
                40,
            )
            return out
        except MachineError as error:
            return str(error)

    @staticmethod
    def now() -> float:
        return time.monotonic()
