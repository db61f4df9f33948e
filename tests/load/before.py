#!/usr/bin/env python3
"""Another binary beside this one on a quiet machine, in pairs and for each network: frames per second with two frames
in flight, latency of a single frame, and processor time of a frame. --before names the other binary.
"""

import argparse

import sidecar

RATE_BOUND, LATENCY_BOUND = 0.99, 1.01

options = sidecar.arguments(
    __doc__,
    ("before", "", "the other binary"),
    ("pairs", 30, "of measurements"),
    ("seconds", 2.0, "of one measurement"),
    ("networks", "resnet18,efficientnet-lite0", "that are served"),
    threads=0,
)
if not options.before:
    raise SystemExit("error: --before names the binary to compare with")
measured = ["--duration", 0.3 + options.seconds, "--warm-up", 0.3, "--overflow", "block", "--size", "224x224"]


def network(name):
    def started(binary):
        own = vars(options) | {"binary": binary, "models": str(sidecar.exported(name))}
        return sidecar.Sidecar(argparse.Namespace(**own))

    servers = {"before": started(options.before), "now": started(options.binary)}
    rates, latencies, busy = ({kind: [] for kind in servers} for _ in range(3))
    try:
        for server in servers.values():
            sidecar.measure(server, "--in-flight", 2, *measured)
        for pair in range(options.pairs):
            for kind in list(servers)[:: 1 if pair % 2 else -1]:
                rates[kind].append(sidecar.measure(servers[kind], "--in-flight", 2, *measured)["answered_hz"])
                alone = sidecar.measure(servers[kind], "--in-flight", 1, *measured)
                latencies[kind].append(alone["latency_ms"]["p50"])
                busy[kind].append(1e3 * alone["server_cpu_s"] / alone["frames"]["answered"])
            sidecar.say(f"{name}, pair {pair}: " + ", ".join(
                f"{kind} {rates[kind][-1]:.1f}/s, {latencies[kind][-1]:.1f} ms" for kind in servers
            ))
    finally:
        codes = [server.stop() for server in servers.values()]

    def ratio(values):
        return sidecar.spread([now / before for before, now in zip(values["before"], values["now"], strict=True)])

    return {
        "rate": ratio(rates),
        "latency_of_one": ratio(latencies),
        "cpu_of_a_frame": ratio(busy),
        "medians": {kind: [round(sidecar.median(v[kind]), 2) for v in (rates, latencies, busy)] for kind in servers},
        "exit_codes": codes,
    }


networks = {name: network(name) for name in options.networks.split(",")}
sidecar.report(
    "before",
    all(
        n["rate"]["median"] >= RATE_BOUND
        and n["latency_of_one"]["median"] <= LATENCY_BOUND
        and not any(n["exit_codes"])
        for n in networks.values()
    ),
    processor=sidecar.processor(),
    networks=networks,
)
