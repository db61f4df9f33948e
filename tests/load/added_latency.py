#!/usr/bin/env python3
"""Time that gRPC, scheduling and telemetry add to the engine's: 224 × 224 pixels of RGB in, Guided Grad-CAM as float16
out, one frame in flight on a Unix socket.

The added time is the client's round trip minus the stages in which the engine works (forward with the choice of
classes, backward, fuse), as the server reports them for the same frames. It includes the client's own reading and
writing. The bound applies to the server that sends every frame's trace to a collector; one without telemetry is
measured beside it.

`camlens bench` does not report single frames, so each measurement is short and gives the mean; the result is the median
of the means. The engine's time comes from the same frames because in another process it differs by some percent, which
is more than the added time.
"""

import sidecar
from collector import Collector

ALLOWED_MS = 1.0
ENGINE = ("forward", "backward", "fuse")

options = sidecar.arguments(
    __doc__,
    ("pairs", 30, "measurements of each server"),
    ("seconds", 1.0, "of one measurement"),
    threads=0,
)
sidecar.resnet50(options)

load = ["--in-flight", 1, "--overflow", "block", "--size", "224x224"]
load += ["--map", "guided-grad-cam", "--element", "float16"]
measured = ["--duration", 0.25 + options.seconds, "--warm-up", 0.25]
# Not measured: caches, memory and threads settle.
SETTLING_S = 12


def parts(result):
    """The parts of the added time of a mean frame, in milliseconds."""
    stages = {stage: times["mean"] for stage, times in result["stages_ms"].items()}
    around = {stage: ms for stage, ms in stages.items() if stage not in ENGINE}
    return {**around, "transport_and_client": result["latency_ms"]["mean"] - sum(stages.values())}


def engine_ms(result):
    return sum(result["stages_ms"][stage]["mean"] for stage in ENGINE)


def figures(results):
    each = [parts(result) for result in results]
    low, added, high = sidecar.quartiles([sum(one.values()) for one in each])
    return {
        "added_ms": added,
        "quartiles_ms": [low, high],
        "parts_ms": {part: round(sidecar.median([one[part] for one in each]), 4) for part in each[0]},
        "engine_ms": sidecar.median([engine_ms(result) for result in results]),
        "round_trip_p50_ms": sidecar.median([result["latency_ms"]["p50"] for result in results]),
        **sidecar.shares(results[-1]),
    }


collector = Collector("full")
telemetry = ["--otlp-endpoint", f"http://{collector.host}:{collector.port}", "--otlp-protocol", "http/protobuf"]
with sidecar.Sidecar(options) as without, sidecar.Sidecar(options, *telemetry, "--trace-ratio", "1") as watched:
    for server in (without, watched):
        sidecar.measure(server, *load, "--duration", SETTLING_S)
    ones, others = [], []
    for pair in range(options.pairs):
        # The order alternates from pair to pair.
        for server, results in [(without, ones), (watched, others)][:: 1 if pair % 2 else -1]:
            results.append(sidecar.measure(server, *load, *measured))
        added = [sum(parts(results[-1]).values()) for results in (ones, others)]
        sidecar.say(f"pair {pair}: {added[0]:.3f} ms without telemetry and {added[1]:.3f}")
    codes = [without.stop(), watched.stop()]
collector.stop()

judged = figures(others)
sidecar.report(
    "added_latency",
    judged["added_ms"] <= ALLOWED_MS and codes == [0, 0],
    allowed_ms=ALLOWED_MS,
    model=others[-1]["model"]["name"],
    frames_of_one=others[-1]["latency_ms"]["count"],
    **judged,
    without_telemetry=figures(ones),
)
