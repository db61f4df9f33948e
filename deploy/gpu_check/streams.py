"""Cameras: many streams of 30 frames a second, each frame with an ending."""

from .models import RESNET50
from .program import Server

RATE_HZ = 30
# A card that answers half as many again as the cameras send has no reason to drop a frame.
SPARE, MOST_DROPPED = 1.5, 0.01
# What a camera's client asks for: its own 640 x 480 pixels, and a heat map in bytes.
CAMERA = ("--payload", "raw", "--map", "grad-cam", "--element", "uint8")


def check(found, setting):
    name = setting.networks.main()
    precision = "float32"
    if name != RESNET50:
        found.not_run("streams with ResNet-50", f"it needs PyTorch and a card; the figures below are of {name}")
    flags = ["--max-batch", setting.pace.batch, *setting.at_speed()]
    with Server(setting, setting.networks.shelf(name), *flags) as server:
        closed = server.measure(*CAMERA, "--streams", "16", "--connections", "4", "--in-flight", "4")
        capacity_hz = closed["answered_hz"]
        found.figure(f"{name} in {precision}, as fast as it answers", capacity_hz, "frames/s")
        for cameras in setting.pace.cameras:
            found.attempt(f"{cameras} streams", cameras_at, found, setting, server, cameras, capacity_hz)


def cameras_at(found, setting, server, cameras, capacity_hz):
    load = ["--streams", cameras, "--connections", "4", "--rate", RATE_HZ, "--overflow", "latest"]
    result = server.bench(*CAMERA, *load, seconds=setting.pace.streams_s)
    frames, latency = result["frames"], result["latency_ms"]
    name = f"{cameras} streams of {RATE_HZ} frames/s"
    dropped = sum(frames["dropped"].values())
    figures = {
        "frames": frames,
        "answered_hz": result["answered_hz"],
        "mean_batch": result["batch_size"]["mean"],
        "fairness": result["fairness"],
    }
    found.demand(
        f"{name}: each frame has an ending, in order",
        frames["accounted_for"] and not frames["failed"] and not result["streams_failed"] and frames["answered"],
        f"{frames} {result['said']}",
        "the server lost or failed frames",
        "report it with the server's log",
        figures=figures,
    )
    share = dropped / max(1, frames["sent"])
    what = f"{name}: share of frames dropped"
    if capacity_hz >= SPARE * cameras * RATE_HZ:
        found.judge(
            what, share, "", most=MOST_DROPPED,
            meaning=f"the card answers {capacity_hz:.0f} frames/s when it is asked to, and drops frames at this rate",
            advice="look at the stages of `camlens bench`: batches wait, or the host is busy",
        )
    else:
        found.figure(what, share, "", what=f"this is more than the {capacity_hz:.0f} frames/s that the card answers")
    for quantile in ("p50", "p99"):
        found.figure(f"{name}: latency, {quantile}", latency[quantile], "ms")
