#!/usr/bin/env python3
"""A model is loaded again a hundred times under a steady stream and under clients that open streams again and again: no
frame is lost or fails, and the server's resident memory stays within 2 %: the median of its last quarter against that
of its first, the first tenth left out. A single reading differs by what is in work at that moment.

The files alternate between two copies with other contents, so that each reload is a real one: the model's own, and the
same with another summary.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import sidecar

MEMORY_ALLOWED = 0.02

options = sidecar.arguments(
    __doc__,
    ("reloads", 100, "how often the model is loaded again"),
    ("size", "224x224", "of a frame"),
    threads=0,
)


def newest_version(models):
    """The directory of the only model's only version."""
    [found] = [file.parent for file in pathlib.Path(models).glob("*/*/model.*") if file.suffix in (".pt2", ".onnx")]
    return found


def replaced(version, number):
    """Puts a description with another summary into place at once."""
    new = version / ".new"
    lines = [line for line in original.splitlines() if not line.startswith("summary")]
    new.write_text("\n".join([f'summary = "reload {number}"', *lines]) + "\n")
    os.replace(new, version / "model.toml")


def steady(server, results, stop):
    """Short streams, one after the other."""
    while not stop.is_set():
        load = ["--streams", 1, "--in-flight", 2, "--overflow", "block", "--size", options.size, "--frames", 8]
        results.append(sidecar.bench(server, *load, "--map", "grad-cam", "--warm-up", 0))


if options.models == "builtin:identity":
    options.models = str(sidecar.ROOT / "deploy/models")
with tempfile.TemporaryDirectory() as folder:
    shutil.copytree(options.models, f"{folder}/models")
    options.models = f"{folder}/models"
    version = newest_version(options.models)
    name = version.parent.name
    original = (version / "model.toml").read_text()
    admin = f"127.0.0.1:{sidecar.free_port()}"
    with sidecar.Sidecar(options, "--admin-listen", admin) as server:
        long = ["--streams", 1, "--rate", 4, "--overflow", "block", "--size", options.size, "--map", "grad-cam"]
        # One stream that has the first model to the end.
        whole = sidecar.Bench(server.binary, server.address, *long, "--duration", 3600, "--warm-up", 0)
        results, stop = [], threading.Event()
        client = threading.Thread(target=steady, args=(server, results, stop))
        client.start()
        resident, failed = [], 0
        try:
            for number in range(options.reloads):
                replaced(version, number)
                command = [server.binary, "models", "load", name, "--admin", admin]
                failed += subprocess.run(command, env=sidecar.environment(), stdout=subprocess.DEVNULL).returncode != 0
                resident.append(server.rss_bytes())
        finally:
            stop.set()
            client.join()
            # Ctrl-C: it ends its stream and reports.
            os.kill(whole.process.pid, signal.SIGINT)
        results.append(whole.result(time.monotonic() - whole.began + sidecar.PATIENCE_S))
        code = server.stop()

settled = resident[len(resident) // 10 :]
quarter = max(1, len(settled) // 4)
begin, end = sidecar.median(settled[:quarter]), sidecar.median(settled[-quarter:])
drift = abs(end / begin - 1)
frames = [result["frames"] for result in results]
lost = sum(count["sent"] - count["answered"] for count in frames)
sidecar.report(
    "reload",
    lost == 0 and failed == 0 and drift <= MEMORY_ALLOWED and code == 0 and all(f["accounted_for"] for f in frames),
    reloads=len(resident),
    failed=failed,
    frames=sum(count["answered"] for count in frames),
    lost=lost,
    streams=len(frames),
    rss_bytes={"begin": begin, "end": end},
    drift=drift,
    allowed=MEMORY_ALLOWED,
)
