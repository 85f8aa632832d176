"""Steps of the full form about the installed files and the programs that use them: man, the shells, the journal, AppArmor."""

import json

from guest_api import Guest, must

DOCUMENTS = "/usr/share/doc/ashd"
MANUALS = {"ashd": "8", "ash-launcher": "8", "ashctl": "1", "ashd.toml": "5"}
#: owner:group mode path.
PLACES = """\
root:ashd 660 /run/ashd/ashd.sock
root:ashd 660 /run/ashd/launcher.sock
root:ashd 660 /run/ashd/gateway.sock
root:ashd 710 /run/ashd/sandboxes
ashd:ashd 750 /var/lib/ashd
ashd:ashd 600 /var/lib/ashd/ashd.db
ashd:ashd 600 /var/lib/ashd/initial-api-key
root:root 755 /var/lib/ash-claude
root:root 644 /etc/ashd/ashd.toml
root:root 644 /etc/ashd/launcher.toml
root:root 755 /etc/ashd/ashd.toml.d"""


def installed(g: Guest) -> str:
    """Files are as packed, users and directories exist, man finds and prints the manuals without a warning; documents, monitoring."""
    changed = g.run("dpkg --verify ashd").strip()
    must(not changed, f"dpkg --verify: {changed}")
    users = g.run("getent passwd ashd ash-gateway").splitlines()
    must(len(users) == 2 and all(line.endswith("nologin") for line in users), f"users: {users}")
    paths = " ".join(line.split()[-1] for line in PLACES.splitlines())
    found = g.run(f"stat -c '%U:%G %a %n' {paths}").strip()
    must(found == PLACES, f"owners and modes:\n{found}\nnot\n{PLACES}")
    for page, section in MANUALS.items():
        place = g.run(f"man -w {section} {page}").strip()
        must(place == f"/usr/share/man/man{section}/{page}.{section}.gz", f"man -w {page}: {place}")
        # Every warning of groff counts, as with lintian.
        out = g.run(f"MANROFFSEQ='' MANWIDTH=100 man --warnings -P cat {section} {page} 2>/run/machine-groff | grep -c .; cat /run/machine-groff", 100)
        lines, _, said = out.partition("\n")
        must(int(lines) > 30 and not said.strip(), f"{page}({section}): {lines} lines; groff: {said}")
    files = g.run("dpkg -L ashd").split()
    wanted = ["examples/ashd.toml", "examples/agent/CLAUDE.md", "operations.md", "copyright", "changelog.gz"]
    wanted = [f"{DOCUMENTS}/{name}" for name in wanted] + [f"/usr/share/ashd/monitoring/{name}" for name in ("grafana.json", "alerts.yml")]
    must(not (lacking := set(wanted) - set(files)), f"the package lacks {lacking}")
    panels = json.loads(g.run("cat /usr/share/ashd/monitoring/grafana.json"))["panels"]
    alerts = g.run("grep -c 'alert:' /usr/share/ashd/monitoring/alerts.yml").strip()
    must(len(panels) >= 10 and int(alerts) >= 5, f"{len(panels)} panels, {alerts} alerts")
    return f"{len(files)} paths, {len(MANUALS)} manuals without a warning, {len(panels)} panels, {alerts} alert rules"


def completions(g: Guest) -> str:
    """bash, zsh and fish find the completions of ashctl, and offer its commands."""
    bash = "source /usr/share/bash-completion/bash_completion; _completion_loader ashctl; COMP_WORDS=(ashctl se); COMP_CWORD=1; COMP_LINE='ashctl se'; COMP_POINT=9; $(complete -p ashctl | sed 's/.*-F \\([^ ]*\\).*/\\1/') ashctl se ashctl; echo ${COMPREPLY[*]}"
    offered = {"bash": g.run(f"bash -c {quoted(bash)}", 60).split()}
    offered["fish"] = [line.split()[0] for line in g.run("fish -c 'complete -C \"ashctl se\"'", 60).splitlines()]
    for shell, words in offered.items():
        must("session" in words, f"{shell} offers {words} for `ashctl se`")
    # The directory that compinit searches; compinit itself takes minutes under emulation.
    zsh = g.run("zsh -fc 'for file in $^fpath/_ashctl(N); do print $file; head -n1 $file; zsh -n $file && grep -c session $file; done'", 60).split()
    must(zsh[1:3] == ["#compdef", "ashctl"] and int(zsh[3]) >= 1, f"zsh: {zsh}")
    return "bash, fish and zsh"


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def units_running(g: Guest) -> str:
    """Processes are as the units say: user, slice, network, OOM score; the STATUS line counts sessions."""
    s = g.live()
    pids = g.pids() | {"sandboxes": g.pid("ash-sandboxes"), "claude": g.claude_pid(s)}
    see = lambda file: {name: g.run(f"cat /proc/{pid}/{file}").strip() for name, pid in pids.items()}
    scores = {name: int(text) for name, text in see("oom_score_adj").items()}
    must(scores == {"ashd": -900, "ash-gateway": -800, "ash-launcher": -900, "sandboxes": -1000, "claude": 500}, f"oom_score_adj: {scores}")
    groups = see("cgroup")
    must(all("/ash.slice/" in text for text in groups.values()), f"not below ash.slice: {groups}")
    owner = {name: g.run(f"ps -o user:32= -p {pid}").strip() for name, pid in pids.items() if name != "claude"}
    must(owner == {"ashd": "ashd", "ash-gateway": "ash-gateway", "ash-launcher": "root", "sandboxes": "root"}, f"users: {owner}")
    # Each daemon's own confinement; Seccomp_filters also counts those of the units.
    daemons = {name: pid for name, pid in pids.items() if name.startswith("ash")}
    for name, pid in daemons.items():
        told = g.run(f"grep -E '^(NoNewPrivs|Seccomp):' /proc/{pid}/status; grep '^Max core' /proc/{pid}/limits; stat -c %u /proc/{pid}/environ").split()
        must(told[:4] == ["NoNewPrivs:", "1", "Seccomp:", "2"] and told[8:10] == ["0", "0"] and told[-1] == "0", f"{name} is not confined: {told}")
        journal = g.run(f"journalctl -b -o cat _PID={pid} | grep -c 'confined itself'; true").strip()
        must(int(journal) >= 1, f"{name} does not say that it confined itself")
    network = {name: g.run(f"readlink /proc/{pid}/ns/net").strip() for name, pid in (pids | {"host": 1}).items()}
    must(network["ash-gateway"] == network["host"], "the gateway has no way out")
    alone = [name for name in ("ashd", "ash-launcher", "sandboxes", "claude") if network[name] != network["host"]]
    must(len(alone) == 4 and network["ashd"] != network["claude"], f"networks: {network}")
    paused = g.session()
    g.ok("POST", f"/api/sessions/{paused}/pause", {}, 60)
    g.wait_until("systemctl show -p StatusText --value ashd | grep -q '[2-9] sessions: .*1 paused'", 30, "the STATUS line counts two sessions, one paused")
    status = g.run("systemctl show -p StatusText --value ashd").strip()
    g.ok("DELETE", f"/api/sessions/{paused}")
    shown = g.run("systemctl show -p Type -p Restart -p WatchdogUSec -p NotifyAccess ashd | sort").split()
    must(shown == ["NotifyAccess=main", "Restart=always", "Type=notify", "WatchdogUSec=30s"], f"ashd.service: {shown}")
    return f"status: {status}; oom_score_adj {', '.join(f'{name} {score}' for name, score in scores.items())}"


def apparmor(g: Guest) -> str:
    """The profile is loaded and attached to the launcher if the parser supports it; otherwise it is left out and nothing fails."""
    shipped, active = "/usr/share/ashd/apparmor/ash-launcher", "/etc/apparmor.d/ash-launcher"
    must(g.run("cat /sys/module/apparmor/parameters/enabled").strip() == "Y", "this kernel runs without AppArmor: the step shows nothing")
    must("active" == g.run("systemctl is-active apparmor; true").strip(), f"apparmor.service: {g.run('systemctl status --no-pager apparmor; true')}")
    version = g.run("apparmor_parser --version | head -n1").split()[-1]
    status, said = g.status(f"apparmor_parser --skip-kernel-load --skip-cache {shipped}", 60)
    there = g.run(f"test -e {active} && echo there; true").strip()
    label = g.run(f"cat /proc/{g.pid('ash-launcher')}/attr/apparmor/current /proc/{g.claude_pid(g.live())}/attr/apparmor/current").split("\n")
    if int(version.split(".")[0]) < 4:
        must(status != 0 and "abi" in said and not there, f"AppArmor {version}: status {status}, {said}; {there}")
        must(label[0] == "unconfined", f"the launcher's label is {label}")
        return f"AppArmor {version} does not know the profile's rules (abi 4.0): left out, apparmor.service active"
    must(status == 0 and there, f"AppArmor {version} does not take the profile: {said}")
    must("ash-launcher (unconfined)" in g.run("cat /sys/kernel/security/apparmor/profiles"), "the profile is not loaded")
    must(label[0] == "ash-launcher (unconfined)", f"the launcher's label is {label}")
    return f"AppArmor {version}: loaded; the launcher is {label[0]}, claude {label[1]}"
