#!/usr/bin/env python3
"""What people who look at the live page cost the streams: the same server, with no page open and with many.

The viewers are a process of the lowest priority that reads all that comes, as browsers on other machines do. The two
kinds of measurement alternate. The streams send at full speed, so that each millisecond of the page is missing there.
"""

import os
import subprocess
import sys

import sidecar

# Median of the throughput with viewers, relative to that without.
ALLOWED = 0.97
READERS = """
import selectors, socket, sys, time
port, count = int(sys.argv[1]), int(sys.argv[2])
def is_open():
    with socket.create_connection(("127.0.0.1", port)) as page:
        page.sendall(b"GET /mjpeg/frame HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
        return b" 200 " in page.recv(64)
while not is_open():
    time.sleep(0.05)
ready = selectors.DefaultSelector()
for _ in range(count):
    page = socket.create_connection(("127.0.0.1", port))
    page.sendall(b"GET /live HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nConnection: close\\r\\n\\r\\n")
    ready.register(page, selectors.EVENT_READ)
got = 0
while ready.get_map():
    for key, _ in ready.select():
        data = key.fileobj.recv(1 << 20)
        got += len(data)
        if not data:
            ready.unregister(key.fileobj)
print(got, flush=True)
"""

options = sidecar.arguments(
    __doc__,
    ("viewers", 20, "pages open at the same time"),
    ("pairs", 12, "measurements of each"),
    ("seconds", 5.0, "of one measurement"),
    ("size", "1280x720", "of a frame"),
    threads=0,
)


def measure(server, viewers=0):
    """A measurement, and the bytes that the viewers got. They come when the streams are open, and go with them."""
    looking = None
    if viewers:
        command = [sys.executable, "-S", "-c", READERS, str(port), str(viewers)]
        looking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(19))
    load = ["--streams", 2, "--in-flight", 2, "--overflow", "block", "--size", options.size]
    result = sidecar.measure(server, *load, "--duration", options.seconds, "--warm-up", 1)
    result["seen_bytes"] = 0
    if looking:
        seen, _ = looking.communicate(timeout=sidecar.PATIENCE_S)
        result["seen_bytes"] = int(seen)
    return result


if options.models == "builtin:identity":
    options.models = str(sidecar.ROOT / "deploy/models")
port = sidecar.free_port()
with sidecar.Sidecar(options, "--view-listen", f"127.0.0.1:{port}") as server:
    measure(server)
    alone, watched = [], []
    for pair in range(options.pairs):
        for readers, results in [(0, alone), (options.viewers, watched)][:: 1 if pair % 2 else -1]:
            results.append(measure(server, readers))
        one, other = alone[-1]["answered_hz"], watched[-1]["answered_hz"]
        sidecar.say(f"{pair}: {one:.1f} alone, {other:.1f} watched, {other / one:.3f}")
ratios = [b["answered_hz"] / a["answered_hz"] for a, b in zip(alone, watched)]
seen = [result["seen_bytes"] for result in watched]
sidecar.report(
    "viewers",
    sidecar.median(ratios) >= ALLOWED and min(seen) > 0,
    processor=sidecar.processor(),
    cores=sidecar.CORES,
    viewers=options.viewers,
    throughput=sidecar.spread(ratios),
    throughput_allowed=ALLOWED,
    answered_hz=sidecar.spread([result["answered_hz"] for result in alone]),
    megabytes_seen=sidecar.spread([bytes / 1e6 for bytes in seen]),
)
