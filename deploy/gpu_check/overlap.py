"""Copies behind compute: with batches waiting, the card does more than one batch's stages after the other's."""

from .card import Utilisation
from .models import RESNET50
from .program import ON_DEVICE, Server, milliseconds
from .speed import ALONE

ROWS = 8
# All maps go back, so that there is something to copy.
MAPS = [word for kind in ("guided-grad-cam", "guided-backprop", "grad-cam", "input") for word in ("--map", kind)]
LOAD = ("--payload", "tensor", "--target", "7", "--streams", "4", "--connections", "2", *MAPS)


def check(found, setting):
    name = setting.networks.main()
    if name != RESNET50:
        found.not_run("overlap with ResNet-50", f"it needs PyTorch and a card; the figures below are of {name}")
    rows = min(ROWS, setting.pace.batch)
    config = ALONE.format(rows=rows)
    with Server(setting, setting.networks.shelf(name), *setting.at_speed(), config=config) as server:
        alone = server.measure(*LOAD, "--in-flight", rows // 4)
        with Utilisation(setting.card) as busy:
            piled = server.measure(*LOAD, "--in-flight", 3 * rows // 4)
    one_by_one_hz = 1e3 * alone["batch_size"]["mean"] / milliseconds(alone, ON_DEVICE, "mean")
    found.judge(
        f"frames/s with batches in flight, beside one batch after the other, batch of {rows}",
        piled["answered_hz"] / one_by_one_hz,
        "x",
        least=1,
        meaning="a batch is copied only when the one before it has been computed",
        advice="see that copies use pinned memory and streams of their own; a host with few cores does this, too",
        figures={
            "answered_hz": piled["answered_hz"],
            "one_batch_after_the_other_hz": one_by_one_hz,
            "stages_alone_ms": {stage: alone["stages_ms"][stage]["mean"] for stage in ON_DEVICE},
            "stages_in_flight_ms": {stage: piled["stages_ms"][stage]["mean"] for stage in ON_DEVICE},
            "mean_batch": [alone["batch_size"]["mean"], piled["batch_size"]["mean"]],
        },
    )
    utilisation = busy.median()
    if utilisation is None:
        found.not_run("utilisation of the card", "nvidia-smi is not there, or does not say")
    else:
        found.figure("utilisation of the card", utilisation, "%")
