#!/usr/bin/env python3
"""The peak of a server's resident memory minus the weights of its model, over the start and some hundred frames of one
row each. Reported beside it: the memory after the start, at the end, and that of the same server with
`builtin:identity`, which is libtorch, its operators and camlens without a model.
"""

import pathlib

import sidecar

ALLOWED_BYTES = 300_000_000

options = sidecar.arguments(
    __doc__,
    ("frames", 400, "frames"),
    ("size", "224x224", "of a frame"),
    threads=0,
)
sidecar.resnet50(options)

CONFIG = "[limits]\nmax_batch = 1\n"
load = ["--in-flight", 1, "--overflow", "block", "--size", options.size]
load += ["--map", "guided-grad-cam", "--element", "float16"]
load += ["--frames", options.frames, "--warm-up", 0]


def weights_bytes(models):
    """The size of the model's file, which holds little besides weights."""
    path = pathlib.Path(models)
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("**/model.pt2")))


def memory():
    """The memory after the start and after the frames, and the result of the frames' run."""
    with sidecar.Sidecar(options, config=CONFIG) as server:
        started = server.memory()
        result = sidecar.measure(server, *load)
        ended = server.memory()
        if server.stop() != 0:
            raise RuntimeError(f"the server ended badly: {server.log_text()}")
    return started, ended, result


started, ended, result = memory()
weights = weights_bytes(options.models)
options.models = "builtin:identity"
bare, _, _ = memory()
beyond = ended["peak_bytes"] - weights
sidecar.report(
    "memory",
    beyond <= ALLOWED_BYTES,
    peak_beyond_weights_bytes=beyond,
    allowed_bytes=ALLOWED_BYTES,
    model=result["model"]["name"],
    weights_bytes=weights,
    after_start=started,
    after_frames=ended,
    without_a_model=bare,
    frames=result["frames"]["answered"],
    **sidecar.shares(result),
)
