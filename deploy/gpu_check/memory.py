"""Memory of the card, by the number of streams and of models."""

from .models import RESNET50
from .program import Server

MEBIBYTE = 2**20
# What the driver rounds, and what a library allocates late; and how much more is growth.
SLACK_BYTES = 64 * MEBIBYTE
GROWTH, GROWTH_PER_MODEL = 0.05, 0.25


def check(found, setting):
    name = setting.networks.main()
    if name != RESNET50:
        found.not_run("memory of ResNet-50", f"it needs PyTorch and a card; the figures below are of {name}")
    found.attempt("memory by streams", by_streams, found, setting, name)
    found.attempt("memory by models", by_models, found, setting, name)


def used(setting, shelf, models, streams):
    """Bytes in use on the card once `streams` streams have been answered, in a server of its own."""
    flags = ["--kernel-timing", "never", *setting.on_device()]
    before = 0 if setting.fake else setting.card.used_bytes()
    with Server(setting, shelf, *flags, config=f"[limits]\nmax_batch = {min(8, setting.pace.batch)}\n") as server:
        for model in models:
            # Batches of every size first, so that the number of streams alone differs.
            server.measure("--model", model, "--streams", "1", "--in-flight", "16")
            if streams > 1:
                server.measure("--model", model, "--streams", streams, "--in-flight", "2", "--connections", "4")
        own = None if setting.fake else setting.card.used_bytes() - before
    return server.fake_report()["peak_reserved_bytes"] if own is None else own


def by_streams(found, setting, name):
    shelf = setting.networks.shelf(name)
    bytes_of = {streams: used(setting, shelf, [name], streams) for streams in setting.pace.streams}
    for streams, taken in bytes_of.items():
        found.figure(f"{name}, {streams} streams", taken / MEBIBYTE, "MiB")
    few, many = min(setting.pace.streams), max(setting.pace.streams)
    found.judge(
        f"growth from {few} to {many} streams",
        (bytes_of[many] - bytes_of[few]) / MEBIBYTE,
        "MiB",
        most=max(SLACK_BYTES, GROWTH * bytes_of[few]) / MEBIBYTE,
        meaning="memory of the card grows with the number of streams",
        advice="look for buffers on the card that belong to a stream instead of a batch",
    )


def by_models(found, setting, name):
    bytes_of = {}
    for count in setting.pace.models:
        names = [f"{name}-{number}" for number in range(count)]
        shelf = setting.networks.shelf(*((served, name) for served in names))
        bytes_of[count] = used(setting, shelf, names, 1)
        found.figure(f"{count} x {name}", bytes_of[count] / MEBIBYTE, "MiB")
    first, second, last = setting.pace.models
    earlier = (bytes_of[second] - bytes_of[first]) / (second - first)
    later = (bytes_of[last] - bytes_of[second]) / (last - second)
    found.judge(
        "a later model, beyond what an earlier one takes",
        (later - earlier) / MEBIBYTE,
        "MiB",
        most=max(SLACK_BYTES, GROWTH_PER_MODEL * earlier) / MEBIBYTE,
        meaning="each model takes more than the one before it",
        advice="look for buffers of the card that are kept for each pair of models",
        figures={"earlier_mib": earlier / MEBIBYTE, "later_mib": later / MEBIBYTE},
    )
