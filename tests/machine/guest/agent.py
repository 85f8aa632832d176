#!/usr/bin/python3
"""The guest's part of tests/machine: executes commands from a virtio serial port.

One JSON object per line, in both directions:

    host:  {"ping": N}                               guest: {"pong": N, "boot": "<boot id>"}
    host:  {"id": N, "run": "script", "limit": S}    guest: {"id": N, "status": S, "out": "..."}

A script runs with bash in its own session. Stdout and stderr are one text, of which the last MiB is kept. At its limit
(seconds) it is killed, with status 124. Several scripts can run at once. The answer is sent when the script itself has
ended, even if it left background processes.
"""

import glob
import json
import os
import signal
import subprocess
import tempfile
import threading
import time

KEPT = 1 << 20
ENVIRONMENT = {
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
}
writing = threading.Lock()


def say(port, answer):
    data = json.dumps(answer).encode() + b"\n"
    with writing:
        while data:
            data = data[os.write(port, data) :]


def run(port, ident, script, limit):
    with tempfile.TemporaryFile() as output:
        command = subprocess.Popen(
            ["/bin/bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/root",
            env=ENVIRONMENT,
            start_new_session=True,
            # The OOM killer spares the agent; its commands are ordinary processes.
            preexec_fn=lambda: open("/proc/self/oom_score_adj", "w").write("0"),
        )
        try:
            status = command.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(command.pid, signal.SIGKILL)
            command.wait()
            status = 124
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - KEPT))
        text = output.read().decode(errors="replace")
    say(port, {"id": ident, "status": status, "out": text})


def main():
    names = []
    while not names:
        names = [n for n in glob.glob("/sys/class/virtio-ports/*/name") if open(n).read().strip() == "machine"]
        if not names:
            time.sleep(0.05)
    port = os.open("/dev/" + os.path.basename(os.path.dirname(names[0])), os.O_RDWR)
    boot = open("/proc/sys/kernel/random/boot_id").read().strip()
    pending = b""
    while True:
        data = os.read(port, 1 << 16)
        if not data:  # the other side is not connected
            time.sleep(0.05)
            continue
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            try:
                request = json.loads(line)
            except ValueError:  # the rest of a line that an earlier agent began to read
                continue
            if "ping" in request:
                say(port, {"pong": request["ping"], "boot": boot})
            else:
                threading.Thread(
                    target=run, args=(port, request["id"], request["run"], request["limit"]), daemon=True
                ).start()


main()
