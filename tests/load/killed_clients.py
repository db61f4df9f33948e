#!/usr/bin/env python3
"""200 clients killed by SIGKILL while they send frames: threads, file descriptors and memory of the server return to
their previous values, and it goes on serving.

Threads and descriptors are counted in /proc. The server's tasks are not visible, but each holds a connection.
"""

import time

import sidecar

# Processor time that the server spends on a wave of clients before they are killed.
BUSY_S = 0.5
# Seconds within which the server must notice.
RETURN_S = 30
MEMORY_ALLOWED = 0.05

options = sidecar.arguments(
    __doc__,
    ("clients", 200, "processes to kill"),
    ("wave", 20, "processes at once"),
    ("streams", 4, "streams of each"),
    ("size", "1280x720", "of a frame, large enough to be killed in its midst"),
)


def settled(server, descriptors):
    """Waits until the connections are closed; returns how long it took."""
    began = time.monotonic()
    while server.descriptors() > descriptors and time.monotonic() - began < RETURN_S:
        time.sleep(0.05)
    return time.monotonic() - began


def kill_wave(server, idle):
    """Starts clients, lets them send, and kills them."""
    load = ["--streams", options.streams, "--rate", 30, "--size", options.size, "--duration", 600]
    clients = [sidecar.Bench(server.binary, server.address, *load) for _ in range(options.wave)]
    try:
        # A connected client may not have sent yet: the server must have worked for them.
        server.await_load(idle, options.wave, BUSY_S)
        connected = server.state()
    finally:
        for client in clients:
            client.kill()
    took = settled(server, idle)
    return connected, took


probe = ["--streams", 4, "--in-flight", 2, "--overflow", "block", "--duration", 3, "--warm-up", 1]
states, noticed_s = [], []
with sidecar.Sidecar(options) as server:
    cpu_before, began = server.cpu_s(), time.monotonic()
    before_probe = sidecar.bench(server, *probe)
    settled(server, 0)
    idle = server.descriptors()
    waves = -(-options.clients // options.wave)
    # One wave more at first: afterwards the server holds everything that it keeps permanently.
    for wave in range(waves + 1):
        connected, took = kill_wave(server, idle)
        time.sleep(1)
        states.append(server.state())
        noticed_s.append(round(took, 2))
        sidecar.say(f"wave {wave}: {connected} while they sent, {states[-1]} after, noticed within {took:.2f} s")
    after_probe = sidecar.bench(server, *probe)
    wall, cpu = time.monotonic() - began, server.cpu_s() - cpu_before
    code = server.stop()

first, last = states[0], states[-1]
growth = max(state["rss_bytes"] for state in states[-3:]) / max(state["rss_bytes"] for state in states[:3]) - 1
sidecar.report(
    "killed_clients",
    last["descriptors"] <= idle
    and last["threads"] <= first["threads"]
    and growth <= MEMORY_ALLOWED
    and after_probe["exit_code"] == 0
    and code == 0,
    clients=waves * options.wave,
    streams=waves * options.wave * options.streams,
    idle_descriptors=idle,
    first=first,
    last=last,
    rss_bytes=[state["rss_bytes"] for state in states],
    rss_growth=growth,
    growth_allowed=MEMORY_ALLOWED,
    noticed_s=noticed_s,
    answered_hz_before=before_probe["answered_hz"],
    answered_hz_after=after_probe["answered_hz"],
    cores=sidecar.CORES,
    server_cores=round(cpu / wall, 3),
    log=server.log_text()[-1000:],
)
