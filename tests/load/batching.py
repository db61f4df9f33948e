#!/usr/bin/env python3
"""Batches of up to 8 rows compared with single rows, in pairs: batching must not reduce throughput.

`cargo test --test conformance` checks that it changes no result.
"""

import sidecar

WORST_ALLOWED = 0.97

options = sidecar.arguments(
    __doc__,
    ("pairs", 10, "measurements of each"),
    ("seconds", 4.0, "of one measurement"),
    ("rows", 8, "of a batch"),
)
if options.models == "builtin:identity":
    options.models = str(sidecar.ROOT / "deploy/models")
options.threads = options.threads if options.threads != 1 else 0

load = ["--streams", 4, "--connections", 2, "--in-flight", options.rows, "--overflow", "block"]
answer = ["--map", "guided-grad-cam", "--element", "float16", "--duration", options.seconds, "--warm-up", 1]


def config(rows):
    return f"[limits]\nmax_batch = {rows}\n"


def measure(server):
    result = sidecar.bench(server, *load, *answer)
    assert result["exit_code"] == 0 and result["frames"]["accounted_for"], result
    return result


rows_1, rows_8 = config(1), config(options.rows)
with sidecar.Sidecar(options, config=rows_1) as single, sidecar.Sidecar(options, config=rows_8) as batched:
    ratios, ones, many = [], [], []
    for pair in range(options.pairs):
        # The order alternates from pair to pair.
        for server, results in [(single, ones), (batched, many)][:: 1 if pair % 2 else -1]:
            results.append(measure(server))
        ratios.append(many[-1]["answered_hz"] / ones[-1]["answered_hz"])
        sidecar.say(
            f"pair {pair}: {ones[-1]['answered_hz']:.1f} and {many[-1]['answered_hz']:.1f} a second, {ratios[-1]:.3f}"
        )
    codes = [single.stop(), batched.stop()]

ratios.sort()
sidecar.report(
    "batching",
    sidecar.median(ratios) >= WORST_ALLOWED and codes == [0, 0],
    ratio_median=sidecar.median(ratios),
    ratio_quartiles=[ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
    allowed=WORST_ALLOWED,
    answered_hz_single=sidecar.median([result["answered_hz"] for result in ones]),
    answered_hz_batched=sidecar.median([result["answered_hz"] for result in many]),
    mean_batch=sidecar.median([result["batch_size"]["mean"] for result in many]),
    **sidecar.shares(many[-1]),
)
