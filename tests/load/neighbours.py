#!/usr/bin/env python3
"""What busy neighbours cost: frames per second beside 1, 2 and 4 processes that compute and do nothing else, as a share
of the quiet rate in the same round; ResNet-18 and EfficientNet-Lite0, with one and two frames in flight; and the same
of ONNX Runtime and OpenVINO, forward alone. The bounds are for two cores, where a fair scheduler leaves a program of
two threads 0.67, 0.50 and 0.33. Then `builtin:identity` beside one loop.
"""

import sidecar

LOOPS = (0, 1, 2, 4)
# Loops: the least share of the quiet rate.
BOUNDS = {2: {1: 0.60, 2: 0.45, 4: 0.28}, 1: {1: 0.55, 2: 0.42, 4: 0.26}}
P99_BOUND = 4
IDENTITY_BOUND = 0.5

options = sidecar.arguments(
    __doc__,
    ("rounds", 5, "of all measurements"),
    ("seconds", 3.0, "of one measurement"),
    ("networks", "resnet18,efficientnet-lite0", "that are served"),
    ("peers", 1, "0: camlens alone"),
    threads=0,
)
measured = ["--duration", 0.5 + options.seconds, "--warm-up", 0.5, "--overflow", "block", "--size", "224x224"]


def network(name):
    """The figures of one network."""
    options.models = str(sidecar.exported(name))
    peers = {kind: sidecar.Peer(kind, name, sidecar.CORES) for kind in ("onnxruntime", "openvino") if options.peers}
    server = sidecar.Sidecar(options)
    kinds = {f"camlens, {count} in flight": count for count in BOUNDS} | {kind: peer for kind, peer in peers.items()}
    rates = {kind: {loops: [] for loops in LOOPS} for kind in kinds}
    p99 = {kind: {loops: [] for loops in LOOPS} for kind in kinds}
    try:
        sidecar.measure(server, "--in-flight", 2, *measured)
        for number in range(options.rounds):
            for loops in LOOPS[:: 1 if number % 2 == 0 else -1]:
                with sidecar.BusyLoops(loops):
                    for kind, what in kinds.items():
                        if isinstance(what, int):
                            result = sidecar.measure(server, "--in-flight", what, *measured)
                            rates[kind][loops].append(result["answered_hz"])
                            p99[kind][loops].append(result["latency_ms"]["p99"])
                        else:
                            rates[kind][loops].append(what.ask("rate", options.seconds)["hz"])
            done = {kind: [round(rates[kind][loops][-1], 1) for loops in LOOPS] for kind in kinds}
            sidecar.say(f"{name}, round {number}, frames a second beside {LOOPS} loops: {done}")
    finally:
        code = server.stop()
        for peer in peers.values():
            peer.stop()
    shares = {
        kind: {
            loops: sidecar.spread([a / b for a, b in zip(rates[kind][loops], rates[kind][0], strict=True)])
            for loops in LOOPS[1:]
        }
        for kind in kinds
    }
    two = "camlens, 2 in flight"
    slower = [busy / quiet for busy, quiet in zip(p99[two][2], p99[two][0], strict=True)]
    kept = [
        shares[f"camlens, {count} in flight"][loops]["median"] >= bound
        for count, bounds in BOUNDS.items()
        for loops, bound in bounds.items()
    ]
    ahead = [shares[two][loops]["median"] >= shares[peer][loops]["median"] for peer in peers for loops in LOOPS[1:]]
    return {
        "quiet_hz": {kind: sidecar.spread(rates[kind][0]) for kind in kinds},
        "share_of_quiet": shares,
        "p99_beside_2_over_quiet": sidecar.spread(slower),
        "keeps_bounds": all(kept) and sidecar.median(slower) <= P99_BOUND,
        "ahead_of_peers": all(ahead),
        "exit_code": code,
    }


def identity():
    options.models = "builtin:identity"
    load = ["--streams", 4, "--connections", 2, "--in-flight", 8, "--predictions-only", *measured]
    shares = []
    with sidecar.Sidecar(options) as server:
        sidecar.measure(server, *load)
        for _ in range(options.rounds):
            quiet = sidecar.measure(server, *load)["answered_hz"]
            with sidecar.BusyLoops(1):
                shares.append(sidecar.measure(server, *load)["answered_hz"] / quiet)
    return sidecar.spread(shares)


networks = {name: network(name) for name in options.networks.split(",")}
identity_share = identity()
sidecar.report(
    "neighbours",
    all(n["keeps_bounds"] and n["ahead_of_peers"] and n["exit_code"] == 0 for n in networks.values())
    and identity_share["median"] >= IDENTITY_BOUND,
    processor=sidecar.processor(),
    cores=sidecar.CORES,
    networks=networks,
    identity_share_beside_1=identity_share,
)
