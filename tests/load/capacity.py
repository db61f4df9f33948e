#!/usr/bin/env python3
"""One point of the capacity model against the real binary: how many cameras a device serves with 99 % of the frames
within a goal.

The device's time for a frame and the time beside it are measured with one frame in flight, and given to `camlens
capacity`. Then as many cameras stream, each a process of its own that begins at a moment of its own, so that phases are
drawn as the model assumes. With 15 % fewer cameras than planned the goal is kept, with 15 % more it is missed; the
server's own histogram of durations counts.
"""

import json
import math
import random
import re
import subprocess
import time
import urllib.request

import sidecar

AGREEMENT = 0.15
QUANTILE = 0.99
DEVICE = ("copy_in", "forward", "backward", "fuse", "copy_out")

options = sidecar.arguments(
    __doc__,
    ("rate", 2.0, "frames per second of each camera"),
    ("goal", 0.1, "latency in seconds: a bound of the histogram's buckets"),
    ("draws", 6, "runs, each with other phases"),
    ("seconds", 12.0, "of a run"),
    ("port", 19464, "admin port of the server"),
)
if options.models == "builtin:identity":
    options.models = str(sidecar.ROOT / "deploy/models")

FRAME = ["--size", "256x256", "--map", "guided-grad-cam", "--element", "uint8"]


def counters():
    """Frames that have ended, and of these the ones that were answered within the goal."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{options.port}/metrics", timeout=10).read().decode()
    ended = within = 0
    for line in page.splitlines():
        value = float(line.rpartition(" ")[2]) if line and line[0] != "#" else 0.0
        if line.startswith("camlens_frame_ended_total"):
            ended += value
        bound = re.search(r'^camlens_frame_duration_seconds_bucket\{.*le="([^"]+)"', line)
        if bound and 'camlens_outcome="answered"' in line and bound[1] != "+Inf" and float(bound[1]) == options.goal:
            within += value
    return ended, within


def cameras(server, count):
    """The share of the frames of `count` cameras that were answered within the goal."""
    ended = within = 0
    for _ in range(options.draws):
        before = counters()
        running = []
        phases = sorted(random.uniform(0, 1 / options.rate) for _ in range(count))
        for pause in (one - other for one, other in zip(phases, [0, *phases], strict=False)):
            flags = ["--streams", 1, "--rate", options.rate, "--overflow", "latest", "--duration", options.seconds]
            time.sleep(pause)
            running.append(sidecar.Bench(options.binary, server.address, *flags, "--warm-up", 0, *FRAME))
        for process in running:
            result = process.result(options.seconds + 120)
            if not result["frames"]["accounted_for"]:
                raise RuntimeError(f"frames without an ending: {result['frames']}")
        after = counters()
        ended, within = ended + after[0] - before[0], within + after[1] - before[1]
    return within / ended


random.seed(1)
config = f'[limits]\nmax_batch = 1\n[admin]\nlisten = "127.0.0.1:{options.port}"\n'
with sidecar.Sidecar(options, config=config) as server:
    alone = sidecar.measure(server, "--in-flight", 1, "--overflow", "block", "--duration", 10, "--warm-up", 2, *FRAME)
    frame_ms = sum(alone["stages_ms"][stage]["mean"] for stage in DEVICE if stage in alone["stages_ms"])
    other_ms = alone["latency_ms"]["mean"] - frame_ms
    command = [options.binary, "capacity", "--json", "--frame-ms", frame_ms, "--other-ms", other_ms, "--utilisation", 1]
    command += ["--rate", options.rate, "--latency-ms", 1e3 * options.goal, "--lost-nodes", 0]
    plan = json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout)
    planned = plan["streams_per_device"]
    fewer, more = math.floor(planned * (1 - AGREEMENT)), math.ceil(planned * (1 + AGREEMENT))
    kept, missed = cameras(server, fewer), cameras(server, more)
    code = server.stop()

sidecar.report(
    "capacity",
    kept >= QUANTILE > missed and code == 0,
    model=alone["model"]["name"],
    frame_ms=frame_ms,
    other_ms=other_ms,
    rate_hz=options.rate,
    goal_ms=1e3 * options.goal,
    planned_streams=planned,
    device_hz=plan["device_hz"],
    fewer={"streams": fewer, "within": kept},
    more={"streams": more, "within": missed},
)
