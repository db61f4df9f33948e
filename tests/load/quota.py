#!/usr/bin/env python3
"""A cgroup's quota of 1.0 and of 0.5 processors: frames per second as a share of the rate without one, two frames in
flight; the server alone is in the cgroup, from its start. Then a server whose quota is tightened and lifted while it
runs. Needs root, and a hierarchy of cgroups, version 1 or 2, that can be written to.
"""

import sys
import time

import sidecar

BOUNDS = {1.0: 0.45, 0.5: 0.20}
# The server looks at its limits this often, at least.
RESIZE_S = 12

options = sidecar.arguments(
    __doc__,
    ("rounds", 5, "of all measurements"),
    ("seconds", 4.0, "of one measurement"),
    ("networks", "resnet18,efficientnet-lite0", "that are served"),
    threads=0,
)
measured = ["--duration", 0.5 + options.seconds, "--warm-up", 0.5, "--overflow", "block", "--size", "224x224"]


try:
    group = sidecar.Group("quota")
except OSError as error:
    sidecar.say(f"error: no cgroup can be made: {error}")
    sys.exit(2)


def rate(processors):
    group.limit(processors)
    with sidecar.Sidecar(options, enter=group.enter) as server:
        sidecar.measure(server, "--in-flight", 2, "--duration", 2, "--overflow", "block", "--size", "224x224")
        found = sidecar.measure(server, "--in-flight", 2, *measured)["answered_hz"]
        assert server.stop() == 0
    return found


def network(name):
    options.models = str(sidecar.exported(name))
    shares = {processors: [] for processors in BOUNDS}
    for number in range(options.rounds):
        quiet = rate(None)
        for processors, found in shares.items():
            found.append(rate(processors) / quiet)
        sidecar.say(f"{name}, round {number}: {quiet:.1f}/s, {({p: round(f[-1], 3) for p, f in shares.items()})}")
    return {processors: sidecar.spread(found) for processors, found in shares.items()}


def resized():
    """Shares of the first rate: the quota tightened to 1.0 while the server runs, and lifted again."""
    group.limit(None)
    with sidecar.Sidecar(options, enter=group.enter) as server:
        def now():
            return sidecar.measure(server, "--in-flight", 2, *measured)["answered_hz"]

        now()
        quiet = now()
        group.limit(1.0)
        time.sleep(RESIZE_S)
        tight = now()
        group.limit(None)
        time.sleep(RESIZE_S)
        return {"tightened_to_1": round(tight / quiet, 3), "lifted": round(now() / quiet, 3)}


try:
    networks = {name: network(name) for name in options.networks.split(",")}
    while_it_runs = resized()
finally:
    group.remove()
sidecar.report(
    "quota",
    all(found["median"] >= BOUNDS[p] for shares in networks.values() for p, found in shares.items())
    and while_it_runs["tightened_to_1"] >= BOUNDS[1.0]
    and while_it_runs["lifted"] >= 0.9,
    processor=sidecar.processor(),
    cores=sidecar.CORES,
    share_of_unlimited=networks,
    while_it_runs=while_it_runs,
)
