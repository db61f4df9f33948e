#!/usr/bin/env python3
"""Frames per second with `builtin:identity`, which is everything except a model: 224 × 224 pixels of RGB in,
predictions out, over TCP on loopback, with a client on the same cores. Measured in turn with it: the same on a Unix
socket, and with a Grad-CAM map in the answer, 50 kB.
"""


import sidecar

ALLOWED_HZ = 5000

options = sidecar.arguments(
    __doc__,
    ("rounds", 30, "measurements of each"),
    ("seconds", 1.0, "of one measurement"),
    ("streams", 4, "streams"),
    ("in-flight", 8, "frames of each stream"),
    ("size", "224x224", "of a frame"),
)

load = ["--streams", options.streams, "--connections", 2, "--in-flight", options.in_flight, "--overflow", "block"]
load += ["--size", options.size]
measured = ["--duration", 0.25 + options.seconds, "--warm-up", 0.25]


def figures(results):
    low, middle, high = sidecar.quartiles([result["answered_hz"] for result in results])
    server_us = sidecar.median([1e6 * result["server_cpu_s"] / result["frames"]["answered"] for result in results])
    client_us = sidecar.median([1e6 * result["cpu_s"] / result["frames"]["answered"] for result in results])
    return {
        "answered_hz": middle,
        "quartiles_hz": [low, high],
        "server_us_per_frame": server_us,
        "client_us_per_frame": client_us,
        "mean_batch": sidecar.median([result["batch_size"]["mean"] for result in results]),
        **sidecar.shares(results[-1]),
    }


loopback = f"127.0.0.1:{sidecar.free_port()}"
with sidecar.Sidecar(options, "--listen", loopback) as server:
    kinds = {
        "loopback": (loopback, ["--predictions-only"]),
        "unix_socket": (server.address, ["--predictions-only"]),
        "loopback_grad_cam": (loopback, ["--map", "grad-cam", "--element", "uint8"]),
    }
    # The server learns how many rows pay to run together, for each kind of answer.
    sidecar.measure(server, *load, "--predictions-only", "--duration", 3)
    results = {kind: [] for kind in kinds}
    order = list(kinds)
    for number in range(options.rounds):
        for kind in order:
            address, answer = kinds[kind]
            results[kind].append(sidecar.measure(server, *load, *measured, *answer, address=address))
        # In the next round each kind follows another one.
        order.append(order.pop(0))
        sidecar.say(f"round {number}: " + ", ".join(f"{kind} {results[kind][-1]['answered_hz']:.0f}" for kind in kinds))
    code = server.stop()

measured = {kind: figures(each) for kind, each in results.items()}
sidecar.report(
    "identity_rate",
    measured["loopback"]["answered_hz"] >= ALLOWED_HZ and code == 0,
    allowed_hz=ALLOWED_HZ,
    **measured,
)
