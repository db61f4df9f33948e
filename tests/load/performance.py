#!/usr/bin/env python3
"""`device.performance`: the gain of "throughput" (each thread runs its own batches) over "latency" (each batch runs on
all threads) with many streams, and its cost for a single frame; two servers, in pairs. There is no bound: the result
depends on the model and the number of cores.
"""

import sidecar

options = sidecar.arguments(
    __doc__,
    ("pairs", 10, "measurements of each"),
    ("seconds", 4.0, "of one measurement"),
    ("streams", 16, "streams"),
    ("rows", 8, "of a batch at most"),
    threads=0,
)
sidecar.resnet50(options)

answer = ["--overflow", "block", "--size", "224x224", "--map", "guided-grad-cam", "--element", "float16"]
many = ["--streams", options.streams, "--connections", 4, "--in-flight", 2, *answer]
alone = ["--in-flight", 1, *answer]
measured = ["--duration", 0.5 + options.seconds, "--warm-up", 0.5]

NAMES = ("latency", "throughput")
config = f"[limits]\nmax_batch = {options.rows}\n"
servers = {name: sidecar.Sidecar(options, "--performance", name, config=config) for name in NAMES}
rates, alone_ms, batches = ({name: [] for name in NAMES} for _ in range(3))
shares, codes = {}, []
try:
    for server in servers.values():
        # The server learns how many rows pay to run together.
        sidecar.measure(server, *many, "--duration", 15)
    for pair in range(options.pairs):
        # The order alternates from pair to pair.
        for name in NAMES[:: 1 if pair % 2 else -1]:
            result = sidecar.measure(servers[name], *many, *measured)
            rates[name].append(result["answered_hz"])
            batches[name].append(result["batch_size"]["mean"])
            shares[name] = sidecar.shares(result)
            alone_ms[name].append(sidecar.measure(servers[name], *alone, *measured)["latency_ms"]["p50"])
        rates_now = ", ".join(
            f"{name} {rates[name][-1]:.1f} a second, {alone_ms[name][-1]:.1f} ms alone" for name in NAMES
        )
        sidecar.say(f"pair {pair}: {rates_now}")
finally:
    codes = [server.stop() for server in servers.values()]


def ratio(values):
    low, median, high = sidecar.quartiles([b / a for a, b in zip(*(values[name] for name in NAMES), strict=True)])
    return {"median": median, "quartiles": [low, high], **{name: sidecar.median(values[name]) for name in NAMES}}


sidecar.report(
    "performance",
    not any(codes),
    model=result["model"]["name"],
    answered_hz_throughput_over_latency=ratio(rates),
    alone_ms_throughput_over_latency=ratio(alone_ms),
    mean_batch={name: sidecar.median(batches[name]) for name in NAMES},
    shares=shares,
)
