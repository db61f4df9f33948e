#!/usr/bin/env python3
"""One of 32 streams never reads: its cost in memory and in throughput of the others, in pairs of runs on one server.

In the other run of a pair all streams read; the rates of 31 streams are compared. The order within a pair alternates.
"""

import time

import sidecar

COST_ALLOWED = 0.05
# Limit on the unsent answers of a stream (limits.max_unsent_bytes): small, so that the stream is stuck soon.
UNSENT_BYTES = 4 << 20
# Growth that allocators may cause from the first pairs to the last.
GROWTH_ALLOWED = 0.05

options = sidecar.arguments(
    __doc__,
    ("streams", 32, "streams, the stuck one included"),
    ("rate", 100.0, "frames per second of each, more than can be answered"),
    ("pairs", 10, "pairs of runs"),
    ("seconds", 5.0, "measured time of a run"),
    ("warm-up", 4.0, "seconds before it, in which the stuck reader gets stuck"),
)

runs = {0: [], 1: []}
costs, costs_per_cpu, memory = [], [], []
with sidecar.Sidecar(options, config=f"[limits]\nmax_unsent_bytes = {UNSENT_BYTES}\n") as server:
    for pair in range(options.pairs):
        others, per_cpu = {}, {}
        for stuck in (0, 1) if pair % 2 == 0 else (1, 0):
            load = ["--streams", options.streams, "--rate", options.rate, "--size", "64x64", "--slow-readers", stuck]
            span = ["--duration", options.seconds, "--warm-up", options.warm_up]
            result = sidecar.bench(server, *load, *span)
            runs[stuck].append(result)
            others[stuck] = result["answered_hz"] * (options.streams - 1) / (options.streams - stuck)
            # Other load on the machine affects both runs.
            per_cpu[stuck] = others[stuck] / (result["server_cpu_s"] / result["wall_s"])
            # The server returns memory to the system a second after its streams have ended.
            time.sleep(2)
            memory.append(server.rss_bytes())
        costs.append(1 - others[1] / others[0])
        costs_per_cpu.append(1 - per_cpu[1] / per_cpu[0])
        sidecar.say(
            f"pair {pair + 1}: the others got {others[0]:.1f}/s beside a reader, {others[1]:.1f}/s beside a stuck one"
        )
    code = server.stop()

everything = runs[0] + runs[1]
accounted = all(run["frames"]["accounted_for"] and run["exit_code"] == 0 for run in everything)
cost = sidecar.median(costs)
# Two pairs to warm up; then the memory must not grow.
early, late = max(memory[2:6]), max(memory[-4:])
growth = late / early - 1
sidecar.report(
    "stuck_reader",
    accounted and cost < COST_ALLOWED and growth <= GROWTH_ALLOWED and code == 0,
    median_cost=cost,
    allowed=COST_ALLOWED,
    costs=[round(cost, 4) for cost in costs],
    median_cost_per_server_cpu_s=sidecar.median(costs_per_cpu),
    answered_hz_without=sidecar.median([run["answered_hz"] for run in runs[0]]),
    answered_hz_with=sidecar.median([run["answered_hz"] for run in runs[1]]),
    stuck_frames_taken=[run["slow_readers"]["sent"] for run in runs[1]],
    accounted_for=accounted,
    rss_bytes=memory,
    rss_growth=growth,
    growth_allowed=GROWTH_ALLOWED,
    said=[run["said"] for run in everything if run["said"]],
    **sidecar.shares({key: sum(run[key] for run in everything) for key in ("cpu_s", "server_cpu_s", "wall_s")}),
)
