#!/usr/bin/env python3
"""JPEGs of 1280 × 720 compared with tensors that are ready for the model, in pairs on one server: decoding and
preprocessing, which run while the device works, must cost little throughput.
"""

import sidecar

WORST_ALLOWED = 0.90
DEVICE = ("copy_in", "forward", "backward", "fuse", "copy_out")

options = sidecar.arguments(
    __doc__,
    ("pairs", 30, "measurements of each"),
    ("seconds", 4.0, "of one measurement"),
    ("streams", 4, "streams"),
    ("in-flight", 2, "frames of each stream"),
    ("size", "1280x720", "of a JPEG"),
    ("rows", 8, "of a batch at most"),
    threads=0,
)
sidecar.resnet50(options)

load = ["--streams", options.streams, "--connections", 2, "--in-flight", options.in_flight, "--overflow", "block"]
load += ["--map", "guided-grad-cam", "--element", "float16"]
measured = ["--duration", 0.5 + options.seconds, "--warm-up", 0.5]
jpeg, tensor = ["--payload", "encoded", "--size", options.size], ["--payload", "tensor"]


def device_ms(result):
    """The device's time for a frame: its share of the batch's time."""
    return sum(result["stages_ms"][stage]["mean"] for stage in DEVICE) / result["batch_size"]["mean"]


def figures(results):
    stages = results[0]["stages_ms"]
    return {
        "answered_hz": sidecar.median([result["answered_hz"] for result in results]),
        "device_ms_per_frame": sidecar.median([device_ms(result) for result in results]),
        "mean_batch": sidecar.median([result["batch_size"]["mean"] for result in results]),
        "stages_ms": {
            stage: round(sidecar.median([r["stages_ms"][stage]["mean"] for r in results]), 3) for stage in stages
        },
        "frame_bytes": results[-1]["load"]["mean_frame_bytes"],
        **sidecar.shares(results[-1]),
    }


with sidecar.Sidecar(options, config=f"[limits]\nmax_batch = {options.rows}\n") as server:
    # The server learns how many rows pay to run together.
    sidecar.measure(server, *load, *tensor, "--duration", 15)
    tensors, jpegs, ratios = [], [], []
    for pair in range(options.pairs):
        # The order alternates from pair to pair.
        for payload, results in [(tensor, tensors), (jpeg, jpegs)][:: 1 if pair % 2 else -1]:
            results.append(sidecar.measure(server, *load, *measured, *payload))
        ratios.append(jpegs[-1]["answered_hz"] / tensors[-1]["answered_hz"])
        sidecar.say(
            f"pair {pair}: {tensors[-1]['answered_hz']:.1f} tensors and {jpegs[-1]['answered_hz']:.1f} JPEGs a second"
        )
    code = server.stop()

low, ratio, high = sidecar.quartiles(ratios)
sidecar.report(
    "jpeg_throughput",
    ratio >= WORST_ALLOWED and code == 0,
    ratio_median=ratio,
    ratio_quartiles=[low, high],
    allowed=WORST_ALLOWED,
    model=jpegs[-1]["model"]["name"],
    jpeg=figures(jpegs),
    tensor=figures(tensors),
)
