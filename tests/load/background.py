#!/usr/bin/env python3
"""What camlens costs a model server beside it, in the background: ONNX Runtime serves ResNet-50 open loop at half its
capacity, alone and beside camlens at full load; each in a cgroup of its own, with the shares that a kubelet sets for
CPU requests of 2 processors and of 50 thousandths of one. And how much of the processor time that the server leaves
goes to camlens. Needs root, and a hierarchy of cgroups, version 1 or 2, that can be written to.
"""

import os
import pathlib
import sys

import sidecar

RATE_BOUND, P99_BOUND, LEFT_OVER_BOUND = 0.97, 1.25, 0.70
# cpu.shares of version 1 for a request of 2 and of 0.05 processors, and the weights of version 2 that they become.
SHARES = {"server": (2048, 79), "sidecar": (51, 2)}

options = sidecar.arguments(
    __doc__,
    ("rounds", 5, "of all measurements"),
    ("seconds", 8.0, "of one measurement"),
    ("network", "resnet18", "that camlens explains with"),
    ("in-flight", 2, "frames"),
    threads=0,
)
options.models = str(sidecar.exported(options.network))
groups = {}
try:
    for name, (shares, weight) in SHARES.items():
        groups[name] = sidecar.Group(name)
        groups[name].share(shares, weight)
except OSError as error:
    sidecar.say(f"error: no cgroup can be made: {error}")
    sys.exit(2)


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / sidecar.TICKS


rates, p99, left_over, explained = [], [], [], []
try:
    server = sidecar.Peer("onnxruntime", "resnet50", sidecar.CORES, enter=groups["server"].enter)
    camlens = sidecar.Sidecar(options, "--background", enter=groups["sidecar"].enter)
    try:
        half = sidecar.median([server.ask("rate", options.seconds)["hz"] for _ in range(3)]) / 2
        load = ["--in-flight", options.in_flight, "--overflow", "block", "--size", "224x224"]
        quiet = sidecar.measure(camlens, *load, "--duration", 2 + options.seconds, "--warm-up", 2)["answered_hz"]
        for number in range(options.rounds):
            alone = server.ask("serve", options.seconds, half)
            # The client of the sidecar is part of its container: it takes no time from the server either.
            bench = sidecar.Bench(
                camlens.binary, camlens.address, *load, "--duration", 4 + options.seconds, enter=groups["sidecar"].enter
            )
            server.ask("serve", 1.5, half)
            before = {pid: cpu_s(pid) for pid in (server.process.pid, camlens.process.pid, bench.process.pid)}
            beside = server.ask("serve", options.seconds, half)
            used = {pid: cpu_s(pid) - before[pid] for pid in before}
            explained.append(bench.result(60)["answered_hz"])
            rates.append(beside["hz"] / alone["hz"])
            p99.append(beside["p99_ms"] / alone["p99_ms"])
            left = sidecar.CORES * options.seconds - used[server.process.pid]
            left_over.append((used[camlens.process.pid] + used[bench.process.pid]) / left)
            sidecar.say(
                f"round {number}: the server's rate × {rates[-1]:.3f}, p99 {alone['p99_ms']:.1f} → "
                f"{beside['p99_ms']:.1f} ms; camlens {explained[-1]:.1f}/s of {quiet:.1f}/s, "
                f"{left_over[-1]:.0%} of what is left"
            )
    finally:
        code = camlens.stop()
        server.stop()
finally:
    for group in groups.values():
        group.remove()
sidecar.report(
    "background",
    sidecar.median(rates) >= RATE_BOUND
    and sidecar.median(p99) <= P99_BOUND
    and sidecar.median(left_over) >= LEFT_OVER_BOUND
    and code == 0,
    processor=sidecar.processor(),
    cores=sidecar.CORES,
    offered_hz=round(half, 2),
    servers_rate=sidecar.spread(rates),
    servers_p99=sidecar.spread(p99),
    left_over_that_camlens_takes=sidecar.spread(left_over),
    camlens_hz={"quiet": round(quiet, 2), "beside": sidecar.spread(explained)},
)
