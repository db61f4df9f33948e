#!/usr/bin/env python3
"""The throughput of 16 streams compared with the engine alone, in pairs.

The engine alone runs one batch of one row after the other, without a pause, on the same cores. It is measured in the
server itself, with one frame in flight: while the engine works on that frame, client and server wait. The rate is one
over the mean of the stages in which it works: forward with the choice of classes, backward, fuse. In the same process
it has the same kernels (they are chosen by timing), memory and threads; in a second process it would not.

`--engine` also measures in a second process, which contains only the engine, and applies the bound to that too:

    cargo bench --bench explain --no-run
    tests/load/run.sh many_streams -- --engine target/release/deps/explain-…

The output has the share of the cores that client and server used, and the throughput if the client had used none. The
growth of the engine's stages under load is the cost of sharing the cores; one minus `device_busy` is the share of time
in which the device had no batch.
"""

import json
import pathlib
import subprocess
import tempfile

import sidecar

WORST_ALLOWED = 0.95
ENGINE = ("forward", "backward", "fuse")
DEVICE = ("copy_in", *ENGINE, "copy_out")

options = sidecar.arguments(
    __doc__,
    ("pairs", 30, "measurements of each"),
    ("seconds", 4.0, "of one measurement"),
    ("streams", 16, "streams"),
    ("rows", 8, "of a batch at most"),
    ("engine", "", "the bench of the engine: a path"),
    threads=0,
)
sidecar.resnet50(options)

answer = ["--overflow", "block", "--size", "224x224", "--map", "guided-grad-cam", "--element", "float16"]
many = ["--streams", options.streams, "--connections", 4, "--in-flight", 1, *answer]
alone = ["--in-flight", 1, *answer]
measured = ["--duration", 0.5 + options.seconds, "--warm-up", 0.5]


def mean_ms(result, stages):
    """The device's time for a frame: its share of the batch's time."""
    return sum(result["stages_ms"][stage]["mean"] for stage in stages) / result["batch_size"]["mean"]


def second_process():
    """Explanations per second of the engine in a separate process."""
    path = pathlib.Path(options.models)
    program = next(iter(sorted(path.glob("**/model.pt2"))), path)
    with tempfile.NamedTemporaryFile(suffix=".json") as figures:
        command = [options.engine, "--model", program, "--rows", "1", "--rounds", "5"]
        command += ["--without-peers", "--json", figures.name]
        command += ["--threads", str(options.threads or sidecar.CORES)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=sidecar.environment())
        seconds = json.loads(pathlib.Path(figures.name).read_text())["networks"][0]["seconds"]["explain"]
    return 1 / sidecar.median(seconds)


with sidecar.Sidecar(options, config=f"[limits]\nmax_batch = {options.rows}\n") as server:
    # The server learns how many rows pay to run together.
    sidecar.measure(server, *many, "--duration", 15)
    loads, owns, seconds = [], [], []
    for pair in range(options.pairs):
        # The order alternates from pair to pair.
        for load, results in [(many, loads), (alone, owns)][:: 1 if pair % 2 else -1]:
            results.append(sidecar.measure(server, *load, *measured))
        if options.engine:
            seconds.append(second_process())
        own_hz = 1e3 / mean_ms(owns[-1], ENGINE)
        also = f", {seconds[-1]:.2f} in a second process" if options.engine else ""
        sidecar.say(f"pair {pair}: {loads[-1]['answered_hz']:.2f} a second, {own_hz:.2f} alone{also}")
    code = server.stop()


def compare(alone_hz):
    """The results relative to the engine's rate alone, in explanations per second."""
    low, ratio, high = sidecar.quartiles([load["answered_hz"] / hz for load, hz in zip(loads, alone_hz, strict=True)])
    return {"alone_hz": sidecar.median(alone_hz), "ratio_median": ratio, "ratio_quartiles": [low, high]}


judged = {"own": compare([1e3 / mean_ms(own, ENGINE) for own in owns])}
if options.engine:
    judged["second_process"] = compare(seconds)
shares = sidecar.shares(loads[-1])
answered = sidecar.median([load["answered_hz"] for load in loads])
sidecar.report(
    "many_streams",
    all(each["ratio_median"] >= WORST_ALLOWED for each in judged.values()) and code == 0,
    allowed=WORST_ALLOWED,
    model=loads[-1]["model"]["name"],
    **judged,
    answered_hz=answered,
    answered_hz_without_client=answered * sidecar.CORES / (sidecar.CORES - shares["client_cores"]),
    mean_batch=sidecar.median([load["batch_size"]["mean"] for load in loads]),
    engine_ms={
        "alone": sidecar.median([mean_ms(own, ENGINE) for own in owns]),
        "under_load": sidecar.median([mean_ms(load, ENGINE) for load in loads]),
    },
    device_busy=sidecar.median([load["answered_hz"] * mean_ms(load, DEVICE) / 1e3 for load in loads]),
    most_over_fewest=loads[-1]["fairness"]["most_over_fewest"],
    **shares,
)
