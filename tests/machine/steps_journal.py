"""Steps of the full form about the journal: the entries of a session, the catalog, and no secrets."""

from guest_api import Guest, must
from steps_host import real_claude

MIB = 1 << 20
OOM_KILLED, KEY_REFUSED, RELOAD_FAILED = (
    "ec71f07a18af46fdb8cf3b2ad2942e0c", "5fe64d5143bd4abfb070333b9c2f6554", "f0eaa8acaa4c4cd6bd5fa2c64ee276c1",
)  # fmt: skip


def catalog(g: Guest, message: str, more: str = "") -> str:
    """The output of `journalctl -x` for the last entry of one kind."""
    return g.run(f"journalctl -q --no-pager -x -n 1 MESSAGE_ID={message} {more}")


def story(g: Guest) -> str:
    """`journalctl ASH_SESSION=` shows what ashd, launcher and gateway did with a session, by fields; an OOM has the catalog text."""
    known = g.run("journalctl --list-catalog")
    ids = g.run("sed -n 's/^-- //p' /usr/lib/systemd/catalog/ashd.catalog").split()
    must(len(ids) > 20 and all(ident in known for ident in ids), f"not in systemd's catalog: {[i for i in ids if i not in known]}")
    s = g.session()
    g.said(s, "@text first")
    g.ok("PATCH", f"/api/sessions/{s}/limits", {"memoryBytes": 64 * MIB, "swapBytes": 0})
    g.turn(s, f"@alloc {256 * MIB}")
    g.ok("POST", f"/api/sessions/{s}/resume", {}, 120)
    g.ok("POST", f"/api/sessions/{s}/pause", {}, 60)
    g.ok("DELETE", f"/api/sessions/{s}")
    lines = g.journal(f"ASH_SESSION={s}")
    tellers = {line["_SYSTEMD_UNIT"] for line in lines}
    must(tellers == {"ashd.service", "ash-launcher.service", "ash-gateway.service"}, f"the story is told by {tellers}")
    told = [line.get("ASH_EVENT") for line in lines]
    for event in ("state", "turn-begin", "turn-end", "killed"):
        must(event in told, f"no {event} in {told}")
    states = [(line.get("FROM") or line.get("F_FROM"), line.get("TO") or line.get("F_TO"), line["MESSAGE"]) for line in lines if line.get("ASH_EVENT") == "state"]
    must(len(states) >= 5, f"states: {states}")
    killed = next(line for line in lines if line.get("ASH_EVENT") == "killed")
    must(killed.get("MESSAGE_ID") == OOM_KILLED and killed["PRIORITY"] == "4", f"the kill: {killed}")
    must(killed.get("ASH_TENANT") and killed.get("ASH_AGENT") == "agent" and killed.get("ASH_TURN"), f"the kill has no tenant, agent or turn: {killed}")
    shown = catalog(g, OOM_KILLED, f"ASH_SESSION={s}")
    for text in ("Subject: A session reached its memory limit", "Defined-By: ashd", f"processes of session {s}", "ashctl limits set", "man:ashd(8)"):
        must(text in shown, f"journalctl -x has no {text!r}:\n{shown}")
    for field in ("ASH_AGENT=agent", f"ASH_TENANT={killed['ASH_TENANT']}", f"ASH_TURN={killed['ASH_TURN']}"):
        must(g.journal(f"{field} ASH_SESSION={s}"), f"nothing found by {field}")
    return f"{len(lines)} lines of {len(tellers)} units, {len(states)} states; {len(ids)} texts in the catalog"


UPSTREAM = """
import http.server, sys
class Model(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        open("/run/machine-keys", "a").write(self.headers.get("x-api-key", "none") + "\\n")
        body = b'{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}'
        self.send_response(401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_HEAD = do_POST
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 4999), Model).serve_forever()
"""
FIRST, SECOND, TENANT = "sk-ant-machine-planted-first", "sk-ant-machine-planted-second", "sk-ant-machine-planted-tenant"


def model_key(g: Guest) -> str:
    """The key from LoadCredential= reaches only the model; a refused key is reported with its remedy; no log and no sandbox has it."""
    plant = lambda key: g.run(f"echo {key} | install -m 600 /dev/stdin /etc/ashd/anthropic_api_key")
    g.run(f"cat > /opt/machine/upstream.py <<'PY'\n{UPSTREAM}\nPY\nrm -f /run/machine-keys")
    server = g.machine.start_script("exec python3 /opt/machine/upstream.py", 900)
    credential = None
    with real_claude(g):
        try:
            plant(FIRST)
            g.run("echo ANTHROPIC_BASE_URL=http://127.0.0.1:4999 > /etc/ashd/gateway.env; systemctl restart ash-gateway", 100)
            credential = g.run(f"echo {TENANT} | ashctl credentials add anthropic --label planted").strip()
            s = g.session()
            # claude retries for minutes.
            turn = g.machine.start_script(f"ashctl session send {s} hello", 500)
            took = g.wait_until(f"journalctl -q --no-pager MESSAGE_ID={KEY_REFUSED} ASH_SESSION={s} | grep -q .", 200, "the refused key is in the journal")
            asked = g.run("sort -u /run/machine-keys").split()
            must(asked == [FIRST], f"the model was asked with {asked}")
            shown = catalog(g, KEY_REFUSED, f"ASH_SESSION={s}")
            must("The model's API refuses the key" in shown and "/etc/ashd/anthropic_api_key" in shown, f"journalctl -x:\n{shown}")
            remedy = "systemctl restart ash-gateway"
            must(remedy in shown, f"the remedy is not `{remedy}`:\n{shown}")
            # Apply the remedy during the turn.
            plant(SECOND)
            g.run(f"{remedy}; rm -f /run/machine-keys", 100)
            g.wait_until("test -s /run/machine-keys", 200, "claude asks the model again")
            must(g.run("sort -u /run/machine-keys").split() == [SECOND], "the new key is not used after the remedy")
            environ = g.run("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c 'machine-[p]lanted'; true").strip()
            must(environ == "0", f"{environ} variables or arguments of processes hold a key")
            inside = g.ok("POST", f"/api/sessions/{s}/exec", {"command": "env; grep -rs machine-planted /workspace /home /tmp /etc; true"}, 60)["stdout"]
            must("planted" not in inside, f"in the sandbox:\n{inside}")
            g.ok("DELETE", f"/api/sessions/{s}")
            g.machine.finish(turn, 60)
        finally:
            if credential:
                g.run(f"ashctl credentials delete {credential}")
            g.run("rm -f /etc/ashd/anthropic_api_key /etc/ashd/gateway.env; systemctl restart ash-gateway; pkill -f '[/]opt/machine/upstream.py'; true", 100)
            g.machine.finish(server, 60)
    secrets = g.run("cat /var/lib/ashd/initial-api-key /var/lib/ashd/credential-key").split() + [FIRST, SECOND, TENANT]
    must(len(secrets) >= 5, f"{len(secrets)} secrets to look for")
    g.run("journalctl -q -o export --no-pager > /run/machine-journal", 120)
    for secret in secrets:
        count = g.run(f"grep -acF -e {secret} /run/machine-journal; true").strip()
        must(count == "0", f"{count} lines of the journal hold {secret[:14]}...")
    size = g.run("stat -c %s /run/machine-journal; rm /run/machine-journal").strip()
    return f"told after {took:.0f} s; after {remedy} the same turn has the new key; {len(secrets)} secrets in none of {int(size) >> 10} KiB of journal, nor in any process's arguments or variables"
