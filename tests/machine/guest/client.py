#!/usr/bin/python3
"""usage: client.py SESSION WORDS [--turn TEXT] [--limit SECONDS]

A client inside the machine that rejoins. It sends one message and reads its stream. When the stream breaks it reconnects with
`Last-Event-ID`, until `done`. Then it compares the received frames with a replay of the whole turn and with the history, and
prints the result as one JSON object. Exit status 1 when anything was lost, duplicated, out of order or different.

WORDS is how often the turn prints the word `w` (0: not checked); TEXT replaces the message `@delay 50ms, @repeat WORDS w`.
"""

import argparse
import http.client
import json
import sys
import time
import uuid

parser = argparse.ArgumentParser(usage=__doc__)
parser.add_argument("session")
parser.add_argument("words", type=int)
parser.add_argument("--turn", default=None)
parser.add_argument("--limit", type=float, default=120)
arguments = parser.parse_args()

PATH = f"/api/sessions/{arguments.session}"
KEY = open("/var/lib/ashd/initial-api-key").read().strip()
deadline = time.monotonic() + arguments.limit
refused, last = 0, None


def request(method, path, body=None, headers=None):
    """The open response; retried while the server cannot be reached."""
    global refused, last
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **(headers or {})}
    while True:
        if time.monotonic() > deadline:
            sys.exit(f"{method} {path}: no answer within {arguments.limit} s (last: {last})")
        connection = http.client.HTTPConnection("127.0.0.1", 4100, timeout=30)
        try:
            connection.request(method, path, body and json.dumps(body), headers)
            response = connection.getresponse()
        except ConnectionRefusedError:
            refused += 1  # systemd holds the socket: this must not happen while ashd restarts
        except (OSError, http.client.HTTPException) as error:
            last = error
        else:
            if response.status != 503:
                return response
            last = response.read()
        time.sleep(0.1)


def frames(response):
    """(id, event, data) of each whole frame, until the stream breaks."""
    pending = b""
    while True:
        try:
            data = response.read1(1 << 16)
        except (OSError, http.client.HTTPException):
            return
        if not data:
            return
        *whole, pending = (pending + data).split(b"\n\n")
        for text in whole:
            fields = dict(line.split(": ", 1) for line in text.decode().splitlines() if not line.startswith(":") and ": " in line)
            if "event" in fields:
                yield fields["id"], fields["event"], fields["data"]
        if time.monotonic() > deadline:
            sys.exit(f"not done within {arguments.limit} s")


def until_done(response, received):
    told = False
    for frame in frames(response):
        received.append(frame)
        if not told and frame[1] == "text_delta":  # for a test that breaks the stream after it has started
            open(f"/run/machine-client-{arguments.session}", "w").write(f"{joins}\n")
            told = True
        if frame[1] == "done":
            return True
    return False


def stream(after):
    return request("GET", f"{PATH}/stream?includePartialMessages=true", headers={"Last-Event-ID": after})


message = {
    "content": arguments.turn or f"@delay 50ms\n@repeat {arguments.words} w",
    "includePartialMessages": True,
}
received, joins = [], 0
# The same key on every try: the message is sent once, whatever happens to the connection.
once = {"Idempotency-Key": str(uuid.uuid4())}
finished = False
while not received:
    response = request("POST", f"{PATH}/messages", message, once)
    if response.status == 409 and response.headers.get("Retry-After"):  # the daemon was killed during the request
        response.read()
        time.sleep(float(response.headers["Retry-After"]))
        continue
    if response.status != 200:
        sys.exit(f"POST messages: {response.status} {response.read().decode()}")
    finished = until_done(response, received)
while not finished:
    joins += 1
    response = stream(received[-1][0])
    if response.status != 200:
        sys.exit(f"GET stream after {received[-1][0]}: {response.status} {response.read().decode()}")
    finished = until_done(response, received)

number = lambda frame: tuple(int(part) for part in frame[0].split(":"))
turn = number(received[0])[0]
faults = []
if any(number(a) >= number(b) for a, b in zip(received, received[1:])):
    faults.append("ids do not grow: a frame is duplicated or out of order")

replay = []
for frame in frames(stream("0:0:0")):
    if number(frame)[0] == turn:
        replay.append(frame)
        if frame[1] == "done":
            break
if received != replay:
    at = next((n for n, (a, b) in enumerate(zip(received, replay)) if a != b), min(len(received), len(replay)))
    faults.append(f"{len(received)} frames received, {len(replay)} replayed; first difference at {at}: {received[at:at+1]} {replay[at:at+1]}")

said = "".join(json.loads(data)["delta"] for _, event, data in received if event == "text_delta")
if arguments.words and said.split() != ["w"] * arguments.words:
    faults.append(f"{len(said.split())} words of {arguments.words} arrived")
rows = json.loads(request("GET", f"{PATH}/messages?limit=1000").read())["messages"]
if [row["sequence"] for row in rows] != list(range(1, len(rows) + 1)):
    faults.append("the history has gaps")
if arguments.words:
    contents = [json.loads(row["content"]) for row in rows if row["role"] == "assistant"]
    blocks = [block for content in contents if content.get("type") == "assistant" for block in content["message"]["content"]]
    texts = [block.get("text", "") for block in blocks]
    if said not in texts:
        faults.append(f"the history has no such text; its last has {len((texts or [''])[-1].split())} words")

ends = [(event, data) for _, event, data in received if event in ("error", "done")]
print(json.dumps({
    "frames": len(received), "words": len(said.split()), "joins": joins, "refused": refused,
    "errors": [json.loads(data)["error"] for event, data in ends if event == "error"], "faults": faults,
}))  # fmt: skip
sys.exit(1 if faults else 0)
