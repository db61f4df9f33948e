#!/usr/bin/env python3
"""Draws 100 classifiers of timm and torchvision and checks camlens's default layer and its numbers on each.

    $(deploy/python-env reference) tests/reference/classifiers.py [NAME...] [--jobs N]

The draw: evenly spaced names of the sorted lists of timm and of torchvision. A name that is too large for two cores
and 16 GB (MOST_PARAMETERS, MOST_PIXELS) gives its place to the next one that is not. Weights are random and seeded.

Each row exports the model with deploy/export's code, asks the built binary for its default layer and its maps, and
compares: the layer with timm's `feature_info` or pytorch-grad-cam's README, the maps with plain autograd on the eager
model (tests/reference/classifier_row.py). A row fails if camlens refuses the model, chooses another layer, or is
further from PyTorch than EXACT or FAST allow; a sentence instead of a layer is no failure. A model that torch.export
itself cannot export is a row without a verdict.

Finished rows are kept in target/classifiers/rows.jsonl: an interrupted run goes on, and rows of another binary are
computed again. The table is written to --table when all rows are there.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
import textwrap
import threading

import classifier_row
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "target/classifiers"
COUNTS = {"timm": 84, "torchvision": 16}
MOST_PARAMETERS = 150e6
MOST_PIXELS = 384               # height or width of the input that the model was designed for
ROW_SECONDS = 4 * 3600

# Exact mode runs PyTorch's operators: what it may add to the reference's own error, relatively.
EXACT = 1e-5
# Default mode: near the reference, or no further from float64 than three times float32 is.
FAST = {"relative": 1e-3, "largest": 5e-3, "cosine": 0.99999}
FAST_TO_FLOAT64, FAST_COSINE = classifier_row.FLIPPED, 0.9999
MAPS = {"grad_cam": "Grad-CAM", "guided_backprop": "guided"}


# ---------------------------------------------------------------------------------------------------- the draw
def fits(source, name):
    try:
        with torch.device("meta"):
            model, shape = classifier_row.make(source, name)
    except NotImplementedError:         # its constructor computes with values
        model, shape = classifier_row.make(source, name)
    return sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS and max(shape[1:]) <= MOST_PIXELS


def draw():
    """[(source, name)], the same for the same versions of timm and torchvision."""
    import timm
    import torchvision
    version = [timm.__version__, torchvision.__version__, COUNTS, MOST_PARAMETERS, MOST_PIXELS]
    cache = HERE / "drawn.json"
    if cache.exists() and (kept := json.loads(cache.read_text()))["version"] == version:
        return [tuple(pair) for pair in kept["drawn"]]
    lists = {"timm": sorted(timm.list_models()),
             "torchvision": sorted(torchvision.models.list_models(module=torchvision.models))}
    drawn = []
    for source, count in COUNTS.items():
        names = lists[source]
        for number in range(count):
            at = number * len(names) // count
            while (source, names[at]) in drawn or not fits(source, names[at]):
                at = (at + 1) % len(names)
            drawn.append((source, names[at]))
    HERE.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({"version": version, "drawn": drawn}))
    return drawn


# ---------------------------------------------------------------------------------------------------- the verdict
def is_fast_enough(entry):
    """Whether default mode's map is as near as tests allow; None where only float64 could tell and there is none."""
    near = entry["fast"]
    if (near["relative"] <= FAST["relative"] and near["largest"] <= FAST["largest"]
            and near["cosine"] >= FAST["cosine"]):
        return True
    wide = entry.get("fast64")
    own = max([entry.get("float32", 0), *entry.get("rounded", [])])
    return bool(wide and wide["relative"] <= FAST_TO_FLOAT64 * own and wide["cosine"] >= FAST_COSINE)


def faults(row):
    """What is wrong with camlens in this row."""
    found = []
    if "failed" in row:
        where, message = row["failed"]
        return [] if where == "export" else [f"{where}: {message}"]
    for name, check in row["checks"].items():
        # doctor compares its own picture in both modes without knowing float32's error: the maps below do.
        if check["verdict"] == "bad" and name not in ("folded maps", "folded logits"):
            found.append(f"doctor: {name}: {check['seen']}")
    if row["layers"] and row["layer"]["verdict"] != "right":
        found.append(f"layer: {row['layer']['verdict']}")
    if not row["layers"] and not row.get("sentence"):
        found.append("no default layer and no sentence")
    if row["input_error"] > 1e-5:
        found.append(f"the input differs by {row['input_error']:.0e}")
    for kind, entry in row["maps"].items():
        if not math.isfinite(entry["norm"]):
            continue
        if not entry["exact"]["relative"] <= EXACT + entry.get("own", 0):
            found.append(f"exact {MAPS[kind]}: {entry['exact']['relative']:.1e}")
        if not is_fast_enough(entry):
            found.append(f"fast {MAPS[kind]}: {entry['fast']['relative']:.1e}")
    return found


def notes(row):
    found = []
    if "failed" in row:
        return [row["failed"][1]] if row["failed"][0] == "export" else []
    if row.get("reference_from") == "node":
        found.append(f"the layer is a node ({row['layer'].get('node', '?')}): its value is taken from the exported "
                     "program as PyTorch runs it")
    if row["rectifiers"] == 0:
        found.append("no rectifier")
    if row["layers"] and "why" in row["layer"] and row["layer"]["why"].startswith("a class token"):
        found.append(row["layer"]["why"])
    for kind, entry in row["maps"].items():
        if not math.isfinite(entry["norm"]):
            found.append(f"{MAPS[kind]} is not finite in PyTorch")
        elif entry["norm"] == 0:
            found.append(f"{MAPS[kind]} is zero")
        elif "own" not in entry:
            found.append(f"{MAPS[kind]}: the model does not run in float64")
        elif "rounded" in entry:
            found.append(f"gates near zero: float32 rounded otherwise is {number(min(entry['rounded']))} to "
                         f"{number(max(entry['rounded']))} from float64")
    if "unfed" in row:
        ideal = f"{row['unfed']:.0e}"
        found.append(f"batch normalisation keeps mean 0 and variance 1: else float32 is {ideal} from float64")
    for name in ("folded maps", "folded logits"):
        if row["checks"].get(name, {}).get("verdict") == "bad":
            found.append(f"doctor: {name}: {row['checks'][name]['seen'].split(',')[0]}")
    return found


# ---------------------------------------------------------------------------------------------------- the table
def number(value):
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def errors(row, mode):
    if "failed" in row:
        return "–"
    cells = []
    for kind in MAPS:
        entry = row["maps"].get(kind)
        if entry is None:
            cells.append("–")
        else:
            value = entry.get("float32") if mode == "float32" else entry[mode]["relative"]
            cells.append("–" if value is None else number(value))
    return " / ".join(cells)


def layer_cell(row):
    if row.get("layers"):
        return ", ".join(f"`{layer}`" for layer in row["layers"])
    return row.get("sentence", "–").replace("fit only with a named layer: ", "none: ")


def verdict_cell(row):
    if "failed" in row or not row.get("layers"):
        return "sentence" if row.get("sentence") else "–"
    if row["layer"]["verdict"] != "right":
        return "WRONG: " + row["layer"]["verdict"]
    h, w = row["layer"]["size"]
    return f"right: {h} × {w}, {row['layer']['rule']} says `{row['layer']['expected']}`"


def table(rows, binary):
    lines = [
        "| model | parameters, M | input | default layer | verdict on the layer | exact: Grad-CAM / guided | "
        "default: Grad-CAM / guided | float32's own | time ÷ PyTorch's | notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = "–" if "input" not in row else "{}²".format(row["input"][1])
        ratio = f"{row['camlens_ms'] / row['pytorch_ms']:.2f}" if "failed" not in row else "–"
        wrong = [f"FAULT: {fault}" for fault in faults(row)]
        cells = [f"{row['source']} {row['name']}", f"{row.get('parameters', 0) / 1e6:.1f}", size, layer_cell(row),
                 verdict_cell(row), errors(row, "exact"), errors(row, "fast"), errors(row, "float32"), ratio,
                 "; ".join(wrong + notes(row))]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(rows):
    unexported = sum(row.get("failed", [""])[0] == "export" for row in rows)
    failing = [row for row in rows if faults(row)]
    with_layer = [row for row in rows if row.get("layers") and "layer" in row]
    right = sum(row["layer"]["verdict"] == "right" for row in with_layer)
    sentences = sum(bool(row.get("sentence")) for row in rows)
    measured = [row for row in rows if "failed" not in row]
    equal = sum(all(entry["exact"]["relative"] == 0 for entry in row["maps"].values()) for row in measured)
    return (
        f"{len(rows)} classifiers: torch.export cannot export {unexported}. camlens names a default layer for "
        f"{len(with_layer)}, right for {right}, and says in a sentence why there is none for {sentences}. Maps are "
        f"compared for {len(measured)}; in exact mode those of {equal} equal PyTorch's bit for bit. "
        f"{len(failing)} rows fail{': ' + ', '.join(r['name'] for r in failing) if failing else ''}."
    )


HEAD = """# camlens beside plain autograd on drawn classifiers

`tests/reference/classifiers.py` writes this page; its first lines say how the classifiers are drawn. Weights are
random. The default layer is judged by timm's `feature_info` (the last module), for torchvision by the layer that
pytorch-grad-cam's README names for the family, else by the last map that a module returns: right is a map of the same
size, at or after it, through which alone the logits depend on the picture, or which a class token reads in the last
block. Errors are relative distances (L2) of maps from autograd's in float32 on one thread; "float32's own" is the
largest distance from float64 of three such runs: of the picture, and of the picture one unit in the last place away
in both directions, since a gate near zero flips in some roundings and not in others. PyTorch 2.11 computes LeViT's
gradient wrongly for one picture, by 140 % (`RightStrides` in `tests/reference/oracle.py`); the reference is mended
there. Allowed are {exact:g} beyond one run's distance in exact mode; in default mode {fast:g}, or {factor} times
float32's own distance from float64. Where three runs are nearer than that, ten more are made, with convolutions that
are rounded otherwise by a few units in the last place, and the notes say how far they are. The time is that of one
explanation (Grad-CAM and guided gradient), one thread on both sides, on a shared machine: it is no measurement of
speed.

"""


# ---------------------------------------------------------------------------------------------------- the run
def read_rows(path, digest):
    rows = {}
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["binary"] == digest:
                rows[row["source"], row["name"]] = row
    return rows


def compute(source, name, args):
    command = [sys.executable, ROOT / "tests/reference/classifier_row.py", source, name, "--camlens", args.camlens,
               "--folder", HERE / f"{source}-{name}"] + (["--keep"] if args.keep else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ROW_SECONDS)
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            return json.loads(lines[-1])
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        said = f"took more than {ROW_SECONDS} s"
    return {"source": source, "name": name, "failed": ["script", said]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="compute these alone, and again; default: all drawn")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, one thread each")
    parser.add_argument("--camlens", default=ROOT / "target/release/camlens", type=pathlib.Path)
    parser.add_argument("--rows", default=HERE / "rows.jsonl", type=pathlib.Path, help="where finished rows are kept")
    parser.add_argument("--table", default=HERE / "classifiers.md", type=pathlib.Path)
    parser.add_argument("--keep", action="store_true", help="keep each model and its maps in target/classifiers")
    parser.add_argument("--list", action="store_true", help="print the drawn names alone")
    args = parser.parse_args()
    drawn = draw()
    if args.list:
        print(*(f"{source} {name}" for source, name in drawn), sep="\n")
        return
    asked = [pair for pair in drawn if not args.names or pair[1] in args.names]
    if missing := set(args.names) - {name for _, name in asked}:
        parser.error(f"not drawn: {', '.join(sorted(missing))}; --list prints what is")
    if not args.camlens.is_file():
        parser.error(f"no {args.camlens}: cargo build --release --locked")
    digest = hashlib.sha256(args.camlens.read_bytes()).hexdigest()[:16]
    rows = read_rows(args.rows, digest)
    waiting = [pair for pair in asked if args.names or pair not in rows]
    lock = threading.Lock()

    def one(pair):
        row = compute(*pair, args) | {"binary": digest}
        with lock:
            with open(args.rows, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            rows[pair] = row
            state = "; ".join(faults(row)) or ("not exported" if "failed" in row else "ok")
            print(f"{len(rows):3} {pair[0]} {pair[1]}: {row.get('layers', '')} {state} ({row.get('seconds', 0):.0f} s)",
                  flush=True)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, waiting))
    done = [rows[pair] for pair in asked]
    if not args.names:
        head = HEAD.format(exact=EXACT, fast=FAST["relative"], factor=FAST_TO_FLOAT64)
        args.table.write_text(head + textwrap.fill(summary(done), 120) + "\n\n" + table(done, digest),
                              encoding="utf-8")
    counts = collections.Counter(bool(faults(row)) for row in done)
    print(summary(done))
    sys.exit(1 if counts[True] else 0)


if __name__ == "__main__":
    main()
