#!/usr/bin/env python3
"""Prints the bench's figures as a Markdown table and draws them as a chart.

    $(deploy/python-env bench) tests/bench/draw.py FIGURES.json [CHART.png]

Ratios are taken round by round; a cell is the median with the quartiles, in brackets.
"""

import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Column heads of the ratios. The chart shows the times of what camlens replaces as multiples of its own.
COLUMNS = {
    "one pass ÷ OpenVINO's forward": ("explain", "openvino"),
    "through gRPC ÷ in process": ("explain-grpc", "explain"),
    "Grad-CAM ÷ forward": ("grad-cam", "forward"),
    "Captum ÷ camlens": ("captum", "explain"),
    "pytorch-grad-cam ÷ camlens": ("pytorch-grad-cam", "explain"),
    "Captum ÷ camlens, 5 classes": ("captum-5", "explain-5"),
    "pytorch-grad-cam ÷ camlens, 5 classes": ("pytorch-grad-cam-5", "explain-5"),
    "Captum ÷ camlens, bf16": ("captum", "explain-bf16"),
    "pytorch-grad-cam ÷ camlens, bf16": ("pytorch-grad-cam", "explain-bf16"),
}
CHART = {
    "OpenVINO, forward alone": "openvino",
    "ONNX Runtime, forward alone": "onnxruntime",
    "PyTorch, forward alone": "torch",
    "camlens, Guided Grad-CAM": "explain",
    "camlens, through gRPC": "explain-grpc",
    "Captum": "captum",
    "pytorch-grad-cam": "pytorch-grad-cam",
}


def quartiles(values):
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return middle, first, third


def title(network):
    rows = network["rows"]
    return network["model"] if rows == 1 else f"{network['model']}, {rows} rows"


def table(networks):
    # Columns without a value for any network are left out.
    columns = {head: pair for head, pair in COLUMNS.items() if any(set(pair) <= set(n["seconds"]) for n in networks)}
    yield "| | camlens, ms | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 2) + "|"
    for network in networks:
        seconds, cells = network["seconds"], []
        for over, under in columns.values():
            if over not in seconds or under not in seconds:
                cells.append("–")
                continue
            ratios = [a / b for a, b in zip(seconds[over], seconds[under])]
            cells.append("{:.2f} ({:.2f}–{:.2f})".format(*quartiles(ratios)))
        name = title(network)
        if network["peers"] and not network["peers"]["guided"]:
            name += " ¹"
        yield f"| {name} | {1e3 * statistics.median(seconds['explain']):.1f} | " + " | ".join(cells) + " |"
    if any(network["peers"] and not network["peers"]["guided"] for network in networks):
        yield ""
        yield "¹ It has no ReLU modules: the libraries guide nothing, which is less work and another map."
    for network in networks:
        for name, reason in (network["peers"] or {}).get("cannot", {}).items():
            yield f"- {name} cannot run {title(network)}: {reason}"


def chart(figures, path):
    networks = figures["networks"]
    drawn, axes = plt.subplots(figsize=(11, 1.2 + 0.9 * len(networks)), layout="constrained")
    drawn_before = set()
    height, colors = 0.8 / len(CHART), plt.get_cmap("tab10")
    for place, (label, run) in enumerate(CHART.items()):
        for at, network in enumerate(networks):
            if run not in network["seconds"]:
                continue
            middle, first, third = (1e3 * value for value in quartiles(network["seconds"][run]))
            y = at + (place - (len(CHART) - 1) / 2) * height
            # Points, not bars: on a logarithmic axis the length of a bar has no meaning.
            label = None if label in drawn_before else label
            drawn_before.add(label)
            axes.errorbar(
                middle,
                y,
                xerr=[[middle - first], [third - middle]],
                fmt="o",
                color=colors(place),
                capsize=3,
                label=label,
            )
    axes.set_yticks(range(len(networks)), [title(network) for network in networks])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(
        f"milliseconds, median and quartiles of {figures['rounds']} interleaved rounds; {figures['threads']} threads, "
        f"f32, 224², {figures['processor']}"
    )
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.margins(y=0.1)
    drawn.legend(loc="outside upper center", ncols=3)
    drawn.savefig(path, dpi=110)


def main():
    figures = json.loads(pathlib.Path(sys.argv[1]).read_text())
    print("\n".join(table(figures["networks"])))
    if len(sys.argv) > 2:
        chart(figures, sys.argv[2])


if __name__ == "__main__":
    main()
