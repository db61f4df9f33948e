#!/usr/bin/env python3
"""64 streams of 30 frames per second: every frame is accounted for, and no stream gets over 1.1 times another's."""

import sidecar

RATIO_ALLOWED = 1.1

options = sidecar.arguments(
    __doc__,
    ("streams", 64, "streams"),
    ("rate", 30.0, "frames per second of each"),
    ("seconds", 20.0, "measured time"),
    ("size", "64x64", "of a frame"),
)

with sidecar.Sidecar(options) as server:
    load = ["--streams", options.streams, "--connections", 4, "--rate", options.rate, "--size", options.size]
    answer = ["--map", "grad-cam", "--element", "uint8"]
    result = sidecar.bench(server, *load, *answer, "--duration", options.seconds, "--warm-up", 3)
    code = server.stop()

ratio = result["fairness"]["most_over_fewest"]
sidecar.report(
    "fairness",
    result["exit_code"] == 0
    and result["frames"]["accounted_for"]
    and ratio is not None
    and ratio <= RATIO_ALLOWED
    and code == 0,
    most_over_fewest=ratio,
    allowed=RATIO_ALLOWED,
    offered_hz=result["offered_hz"],
    answered_hz=result["answered_hz"],
    frames=result["frames"],
    fairness=result["fairness"],
    latency_ms=result["latency_ms"],
    send_delay_p99_ms=result["send_delay_ms"]["p99"],
    batch_size=result["batch_size"],
    said=result["said"],
    **sidecar.shares(result),
)
