#!/usr/bin/env python3
"""SIGTERM under full load, repeatedly: every frame that the server accepted is answered, and it exits with 0.

LATEST and BLOCK alternate. A frame that the server has not read is not accepted; GoingAway says which those are.
"""

import time

import sidecar

options = sidecar.arguments(
    __doc__,
    ("times", 50, "servers that are stopped"),
    ("streams", 8, "streams"),
    ("load-seconds", 1.2, "seconds of load before the signal; the moment varies around it"),
)

# Endings that an accepted frame must not have.
LOST = ("draining", "stream_ended")
POLICIES = {
    "latest": ["--rate", 60, "--overflow", "latest"],
    "block": ["--in-flight", 8, "--overflow", "block"],
}

lost, good, answered, unread, drains, said = 0, 0, 0, 0, [], []
client_cpu = server_cpu = wall = 0.0
for turn in range(options.times):
    policy = ("latest", "block")[turn % 2]
    server = sidecar.Sidecar(options)
    idle = server.descriptors()
    began = time.monotonic()
    load = ["--streams", options.streams, "--connections", 2, "--size", "128x128", *POLICIES[policy]]
    client = sidecar.Bench(server.binary, server.address, *load, "--duration", 600, "--warm-up", 0)
    server.await_load(idle, connections=2, busy_s=0.1)
    # At another time in each run.
    time.sleep(options.load_seconds + 0.037 * (turn % 10))
    server_cpu += server.cpu_s()
    asked = time.monotonic()
    code = server.stop()
    drains.append(time.monotonic() - asked)
    result = client.result(sidecar.PATIENCE_S)
    frames = result["frames"]
    client_cpu, wall = client_cpu + result["cpu_s"], wall + time.monotonic() - began
    here = frames["missing"] + sum(frames["dropped"].get(reason, 0) for reason in LOST) + sum(frames["failed"].values())
    fine = (
        here == 0 and frames["accounted_for"] and not result["streams_failed"] and code == 0 and frames["answered"] > 0
    )
    good += fine
    lost += here
    answered += frames["answered"]
    unread += frames["not_accepted"]
    if not fine:
        said.append({"turn": turn, "policy": policy, "exit_code": code, "frames": frames, "said": result["said"],
                     "streams_failed": result["streams_failed"], "log": server.log_text()[-500:]})
    sidecar.say(
        f"{turn + 1} ({policy}): {frames['answered']} answered, {here} lost, exit {code}, {drains[-1]:.2f} s to drain"
    )

sidecar.report(
    "sigterm",
    good == options.times,
    times=options.times,
    good=good,
    lost_frames=lost,
    answered=answered,
    not_accepted=unread,
    longest_drain_s=max(drains),
    trouble=said[:5],
    cores=sidecar.CORES,
    client_cores=round(client_cpu / wall, 3),
    server_cores=round(server_cpu / wall, 3),
)
