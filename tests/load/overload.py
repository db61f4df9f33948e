#!/usr/bin/env python3
"""Twice as many frames as the server can answer, for ten minutes: its memory does not grow after the first minute, and
answers are not late: the 99th percentile of latency stays below the time to live plus two batches.

The bundled model is served, because its device is the bottleneck. With `builtin:identity` the transport would be:
HTTP/2 would hold the client back before the server could read a frame and report that it has expired.
"""

import threading
import time

import sidecar

MEMORY_ALLOWED = 0.05
# The stages of a batch on the device.
BATCH_STAGES = ("copy_in", "forward", "backward", "fuse", "copy_out")

options = sidecar.arguments(
    __doc__,
    ("seconds", 600.0, "measured time"),
    ("streams", 8, "streams"),
    ("size", "256x256", "of a frame"),
    ("overload", 2.0, "offered frames for each that can be answered"),
    ("time-to-live", 200, "of a frame, in milliseconds; 0: none, and only memory is judged"),
    ("overflow", "latest", "the streams' policy"),
)


def watch(server, samples, stop):
    """The server's memory each second."""
    began = time.monotonic()
    while not stop.wait(1):
        samples.append((time.monotonic() - began, server.rss_bytes()))


if options.models == "builtin:identity":
    options.models = str(sidecar.ROOT / "deploy/models")

load = ["--streams", options.streams, "--connections", 2, "--size", options.size, "--map", "grad-cam"]
with sidecar.Sidecar(options) as server:
    # A full batch in flight: the rate that the server can answer, with the same client on the same cores.
    capacity = sidecar.bench(server, *load, "--in-flight", 4, "--overflow", "block", "--duration", 8, "--warm-up", 3)
    rate = options.overload * capacity["answered_hz"] / options.streams
    live = ["--time-to-live", options.time_to_live] if options.time_to_live else []
    pace = ["--rate", f"{rate:.3f}", "--overflow", options.overflow, *live]
    pace += ["--duration", options.seconds, "--warm-up", 2]
    samples, stop = [], threading.Event()
    watcher = threading.Thread(target=watch, args=(server, samples, stop))
    watcher.start()
    try:
        result = sidecar.bench(server, *load, *pace, timeout_s=options.seconds + 120)
    finally:
        stop.set()
        watcher.join()
    code = server.stop()

# After a minute, or a tenth of a shorter run.
settling = min(60, options.seconds / 10)
settled = next((rss for at, rss in samples if at >= settling), samples[-1][1])
later = [rss for at, rss in samples if at >= settling]
drift = max(abs(rss / settled - 1) for rss in later)
stages = result["stages_ms"]
batch_ms = sum(stages[stage]["mean"] for stage in BATCH_STAGES if stage in stages)
bound_ms = options.time_to_live + 2 * batch_ms
in_time = not options.time_to_live or result["latency_ms"]["p99"] < bound_ms
sidecar.report(
    "overload",
    result["frames"]["accounted_for"] and drift <= MEMORY_ALLOWED and in_time and code == 0,
    capacity_hz=capacity["answered_hz"],
    offered_hz=result["offered_hz"],
    answered_hz=result["answered_hz"],
    rss_settled_bytes=settled,
    rss_drift=drift,
    drift_allowed=MEMORY_ALLOWED,
    rss_samples=len(later),
    p99_ms=result["latency_ms"]["p99"],
    bound_ms=bound_ms,
    batch_ms=batch_ms,
    latency_ms=result["latency_ms"],
    send_delay_p99_ms=result["send_delay_ms"]["p99"],
    frames=result["frames"],
    said=result["said"],
    **sidecar.shares(result),
)
