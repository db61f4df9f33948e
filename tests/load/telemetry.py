#!/usr/bin/env python3
"""The cost of telemetry, in pairs with a server without telemetry, on `builtin:identity`: everything except a model.

  full     every frame traced and metrics collected, with a collector that accepts everything
  zero     no frame traced, metrics collected, with the same collector
  missing  a collector whose name does not resolve    these may lose traces, but must not
  away     one that refuses connections               reduce throughput or delay the exit
  hanging  one that accepts and never answers
  errors   one that answers with errors

The collector is a loop in Python on the same cores, at the lowest priority: in practice it runs on another machine. Its
processor time is reported, and the server's own time per frame beside the throughput.
"""

import time

import sidecar
from collector import Collector

# Bounds relative to the throughput without telemetry, and to its p99.
ALLOWED = {"full": 0.97, "zero": 0.995, "missing": 0.98, "away": 0.98, "hanging": 0.98, "errors": 0.98}
P99_ALLOWED = 1.1
MEMORY_ALLOWED = 0.05
# Fixed: the server would learn how many rows pay to run together, and differ from run to run.
CONFIG = "[limits]\nmax_batch = 1\n"
# The time limit of the last export, and the time in which a server stops without telemetry.
EXIT_ALLOWED_S = 3 + 2

options = sidecar.arguments(
    __doc__,
    ("cases", "full,zero,missing,away,hanging,errors", "which"),
    ("pairs", 10, "measurements of each"),
    ("seconds", 6.0, "of one measurement"),
    ("size", "224x224", "of a frame"),
)

load = ["--streams", 4, "--connections", 2, "--in-flight", 4, "--overflow", "block", "--predictions-only"]
load += ["--size", options.size, "--duration", options.seconds, "--warm-up", 1]


def measure(server):
    result = sidecar.bench(server, *load)
    assert result["exit_code"] == 0 and result["frames"]["accounted_for"], result
    return result


def server_us(result):
    """The server's processor time per frame, in microseconds."""
    return 1e6 * result["server_cpu_s"] / result["frames"]["answered"]


def run(case):
    collector = Collector(case)
    flags = ["--otlp-endpoint", f"http://{collector.host}:{collector.port}", "--otlp-protocol", "http/protobuf"]
    flags += ["--trace-ratio", "0" if case == "zero" else "1"]
    without, watched = sidecar.Sidecar(options, config=CONFIG), sidecar.Sidecar(options, *flags, config=CONFIG)
    ones, others, rss = [], [], []
    for pair in range(options.pairs):
        # The order alternates from pair to pair.
        for server, results in [(without, ones), (watched, others)][:: 1 if pair % 2 else -1]:
            results.append(measure(server))
        rss.append(watched.rss_bytes())
        ratio = others[-1]["answered_hz"] / ones[-1]["answered_hz"]
        sidecar.say(
            f"{case} {pair}: {ones[-1]['answered_hz']:.0f} without and {others[-1]['answered_hz']:.0f}, {ratio:.3f}"
        )
    wall = sum(result["wall_s"] for result in others)
    collector_cores = collector.cpu_s() / (2 * wall)
    began = time.monotonic()
    codes = [watched.stop()]
    exit_s = time.monotonic() - began
    codes.append(without.stop())
    collector.stop()
    ratios = sorted(other["answered_hz"] / one["answered_hz"] for one, other in zip(ones, others))
    p99s = [other["latency_ms"]["p99"] / one["latency_ms"]["p99"] for one, other in zip(ones, others)]
    costs = [server_us(other) / server_us(one) - 1 for one, other in zip(ones, others)]
    figures = {
        "ratio_median": sidecar.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "ratio_allowed": ALLOWED[case],
        "p99_ratio_median": sidecar.median(p99s),
        "server_us_without": sidecar.median([server_us(one) for one in ones]),
        "server_us_with": sidecar.median([server_us(other) for other in others]),
        "server_cost_median": sidecar.median(costs),
        "answered_hz_without": sidecar.median([one["answered_hz"] for one in ones]),
        "rss_growth": rss[-1] / rss[0] - 1,
        "exit_s": exit_s,
        "collector_cores": round(collector_cores, 3),
        **sidecar.shares(others[-1]),
    }
    passed = figures["ratio_median"] >= ALLOWED[case] and codes == [0, 0] and exit_s <= EXIT_ALLOWED_S
    passed = passed and abs(figures["rss_growth"]) <= MEMORY_ALLOWED
    if case not in ("full", "zero"):
        passed = passed and figures["p99_ratio_median"] <= P99_ALLOWED
    return passed, figures


cases = options.cases.split(",")
results = {case: run(case) for case in cases}
sidecar.report(
    "telemetry",
    all(passed for passed, _ in results.values()),
    **{case: {"pass": passed, **figures} for case, (passed, figures) in results.items()},
)
