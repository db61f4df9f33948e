#!/usr/bin/env python3
"""Classifiers of torchvision and timm at full size, from a `.pt2` and from ONNX, beside plain autograd.

    site=$(dirname "$(deploy/python-env onnx)")/../site
    PYTHONPATH=$site $(deploy/python-env reference) tests/onnx/classifiers.py OUT [NAME...] [--camlens BINARY]

Each network has random weights, seeded. It is exported as deploy/export does it, and by both exporters of PyTorch to
ONNX; one server has all three files, one thread, and explains the same picture with each. Compared with the definition
(tests/reference/oracle.py) are logits, Grad-CAM and Guided Grad-CAM, in exact mode and in default mode. The processor
time that each file takes is measured in turns.

Finished rows are kept in OUT/rows.jsonl: an interrupted run goes on, and rows of another binary are computed again.
The table is written to --table after each row. The exit status is 1 if camlens refuses a file that is not listed here,
or is further from PyTorch than is allowed.
"""

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import sys
import textwrap
import time
import traceback
import warnings
from typing import Callable, Optional

# Before torch: one thread on both sides, since kernels split their sums by the number of threads.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
import twins  # noqa: E402  (it finds tests/reference)
import cases  # noqa: E402
import classifier_row  # noqa: E402
import classifiers  # noqa: E402
import full  # noqa: E402
import oracle  # noqa: E402
import weights  # noqa: E402
from classifier_row import Failed, camlens_export, compare  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
FORMS = {"pt2": "`.pt2`", "older": "ONNX, older exporter", "newer": "ONNX, newer exporter"}
QUANTITIES = {"logits": "logits", "grad_cam": "Grad-CAM", "guided_grad_cam": "Guided Grad-CAM"}
MODES = ("exact", "float32")
# What may be between exact mode and PyTorch: the same operators in a `.pt2`; in a file of ONNX, the exporter has put
# constants together, and operators apart.
EXACT = {"pt2": 1e-5, "older": 1e-4, "newer": 1e-4}
LOGITS = {"exact": 1e-5, "float32": 1e-4}
ROUNDS, FRAMES = 6, 4          # of the timing: in each round, FRAMES frames from each file
SLOWER = 1.03


@dataclasses.dataclass
class Network:
    source: str
    name: str
    layer: str
    to_nchw: Callable = lambda t: t
    shape: Optional[list] = None        # [C, H, W]; None: the size that the network was designed for
    free_size: bool = False

    def build(self, fed):
        if self.shape is None:
            return classifier_row.build(self.source, self.name, fed)
        import torchvision
        torch.manual_seed(0)
        model = torchvision.models.get_model(self.name, weights=None)
        model.conv1 = torch.nn.Conv2d(self.shape[0], model.conv1.out_channels, 7, 2, 3, bias=False)
        return weights.settle(model, self.shape).requires_grad_(False), self.shape


def of_torchvision(name):
    case = full.MODELS[name]
    return Network("torchvision", name, case.layers[0], case.to_nchw)


# Small ones of many kinds first, for runs that are interrupted.
NETWORKS = {
    **{name: of_torchvision(name) for name in ("squeezenet1_1", "resnet18")},
    "timm_vit_tiny": Network("timm", "vit_tiny_patch16_224", "blocks.11.norm1", cases.tokens(14)),
    "mobilenet_v2": of_torchvision("mobilenet_v2"),
    "timm_convnext_atto": Network("timm", "convnext_atto", "stages.3"),
    "timm_swin_tiny": Network("timm", "swin_tiny_patch4_window7_224", "layers.3", cases.channels_last),
    "densenet121": of_torchvision("densenet121"),
    "resnet18_gray": Network("torchvision", "resnet18", "layer4", shape=[1, 160, 224], free_size=True),
    **{name: of_torchvision(name) for name in (
        "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small", "googlenet",
        "resnet50", "alexnet", "inception_v3", "swin_t", "convnext_tiny", "vit_b_16", "maxvit_t", "swin_v2_t",
        "resnext50_32x4d", "vgg11_bn", "wide_resnet50_2", "vgg16")},
}
# (network, exporter): what of camlens's refusal is known.
KNOWN = {}


# ---------------------------------------------------------------------------------------------------- references
class Reference:
    """A network's logits and maps for one picture and class, by definition, in float32 and float64."""

    def __init__(self, network, model, x):
        self.network, self.model, self.x = network, model, x
        self.wide_model = copy.deepcopy(model).double()
        with torch.no_grad():
            order = camlens_export.pick_logits(model(x.clone()))[0].argsort(descending=True).tolist()
        # The most probable class whose map is not empty.
        for self.target in order[:20]:
            self.narrow = self.quantities(model, x)
            if float(self.narrow["grad_cam"].max()) > 0:
                break
        self.wide = self.quantities(self.wide_model, x.double())

    def quantities(self, model, x):
        with oracle.RightStrides():
            e = oracle.explain(model, x, [self.target], self.network.layer, self.network.to_nchw,
                               camlens_export.pick_logits)
        return {"logits": e.logits[0], "grad_cam": oracle.upsample(e.L, x.shape[2:])[0, 0], "guided_grad_cam": e.F[0],
                "rectifiers": e.rectifiers}

    def distance(self, found, quantity):
        return compare(found[quantity], self.wide[quantity])["relative"]

    @functools.cached_property
    def float32(self):
        """How far float32 is from float64: of the picture, and of those one unit in the last place away."""
        moved = [torch.nextafter(self.x, torch.tensor(limit)) for limit in (float("inf"), float("-inf"))]
        runs = [self.narrow, *(self.quantities(self.model, x) for x in moved)]
        return {quantity: max(self.distance(run, quantity) for run in runs) for quantity in QUANTITIES}

    @functools.cached_property
    def rounded(self):
        """The same of runs whose convolutions are rounded otherwise."""
        generator, runs = torch.Generator().manual_seed(5), []
        for _ in range(classifier_row.ROUNDED_RUNS):
            with classifier_row.rounded_otherwise(self.model, generator):
                runs.append(self.quantities(self.model, self.x))
        return {quantity: max(self.distance(run, quantity) for run in runs) for quantity in QUANTITIES}

    def judge(self, found, quantity, mode, form):
        """How far a result is from the reference, and whether that is allowed."""
        near = compare(found, self.narrow[quantity])
        entry = {"relative": near["relative"]}
        if quantity == "logits":
            entry["conforms"] = near["relative"] <= LOGITS[mode]
        elif mode == "exact":
            entry["conforms"] = near["relative"] <= EXACT[form]
        else:
            allowed = classifiers.FAST
            entry["conforms"] = (near["relative"] <= allowed["relative"] and near["largest"] <= allowed["largest"]
                                 and near["cosine"] >= allowed["cosine"])
        if not entry["conforms"]:
            wide = compare(found, self.wide[quantity])
            entry["from_float64"], entry["float32"] = wide["relative"], self.float32[quantity]
            # A gate near zero flips in some roundings and not in others.
            for own in ("float32", "rounded"):
                bound = classifiers.FAST_TO_FLOAT64 * getattr(self, own)[quantity]
                if wide["relative"] <= bound and wide["cosine"] >= classifiers.FAST_COSINE:
                    entry |= {"conforms": True, "by": own}
                    break
        return entry


# ---------------------------------------------------------------------------------------------------- the row
def write_picture(path, shape):
    """Writes a picture, and returns what the network gets, `[1, C, H, W]`."""
    x = weights.picture(1, *shape, seed=7)[0]
    pixels = (128 + 60 * x).clamp(0, 255).round().to(torch.uint8)
    Image.fromarray(pixels[0].numpy() if shape[0] == 1 else pixels.permute(1, 2, 0).numpy()).save(path)
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(shape[0]))
    return ((pixels.float() / 255 - mean) / std)[None]


def normalisation(channels):
    return ([0.5], [0.25]) if channels == 1 else (classifier_row.MEAN, classifier_row.STD)


def export(network, model, shape, folder):
    """Writes a directory for each form; returns what exporters refuse, by form."""
    mean, std = normalisation(shape[0])
    description = {"input": {"mean": mean, "std": std, "color": "gray" if shape[0] == 1 else None}}
    refused = {}
    for form in FORMS:
        version = folder / "models" / form / "1"
        try:
            if form == "pt2":
                camlens_export.export(copy.deepcopy(model), version, shape, description=description,
                                      dynamic_size=network.free_size)
            else:
                twins.export(copy.deepcopy(model), weights.picture(2, *shape), form, version / "model.onnx",
                             network.free_size)
                shutil.copy(folder / "models/pt2/1/model.toml", version)
        except Exception as error:      # an exporter raises any error
            shutil.rmtree(version.parent, ignore_errors=True)
            refused[form] = f"{type(error).__name__}: {camlens_export.first_line(error)[:200]}"
    return refused


def onnxruntimes_logits(file, x):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0][0])


def explain(camlens, form, mode, network, target, frames):
    """Logits and maps of the last frame."""
    out = camlens.folder / "out"
    found = camlens.ask(mode, "explain", *[camlens.folder / "picture.png"] * frames, "--server", camlens.address,
                        "--out", out, "--model", form, "--precision", mode, "--target", target, "--layer",
                        network.layer, "--top", 1000, "--picture", "heat-map", "--map",
                        "grad-cam,guided-grad-cam,input", "--json")
    answer = found[-1]
    if "error" in answer:
        raise Failed(mode, answer["error"])
    files = answer["targets"][0]["files"]
    got = {kind: torch.from_numpy(np.load(files[kind])) for kind in ("grad_cam", "guided_grad_cam", "input")}
    got["logits"] = torch.zeros(len(answer["predictions"]))
    for prediction in answer["predictions"]:
        got["logits"][prediction["class_index"]] = prediction["logit"]
    return got


def why_not(camlens, form, error):
    """Why a file is not explained: the problem at loading, or else what the request was answered."""
    found = camlens.ask("load", "doctor", camlens.folder / "models" / form, "--threads", "1", "--json")
    return f"not loaded: {found[0]['checks'][0]['seen']}" if found[0]["model"] is None else str(error)


def write_row(row, network, binary, folder):
    model, shape = network.build(fed=True)
    x = write_picture(folder / "picture.png", shape)
    reference = Reference(network, model, x)
    if reference.distance(reference.narrow, "guided_grad_cam") > classifier_row.SANE:
        # Float32 itself is far from float64: such a network tells nothing.
        row["fed"] = False
        model, shape = network.build(fed=False)
        reference = Reference(network, model, x)
    row |= {"input": shape, "rectifiers": reference.narrow["rectifiers"],
            "parameters": sum(p.numel() for p in model.parameters()), "forms": {}}
    started = time.monotonic()
    for form, reason in export(network, model, shape, folder).items():
        row["forms"][form] = {"not_exported": reason}
    row["export_s"] = time.monotonic() - started
    with classifier_row.Camlens(binary, folder, "--poll", "3600") as camlens:
        for form in FORMS:
            if form not in row["forms"]:
                reference, row["forms"][form] = compare_form(camlens, form, reference)
        measured = [form for form, entry in row["forms"].items() if "exact" in entry]
        time_forms(row, camlens, measured, reference)


def compare_form(camlens, form, reference):
    """(the reference of the very picture that camlens gave the network, the entry of this form)."""
    network, entry = reference.network, {}
    try:
        for mode in MODES:
            got = explain(camlens, form, mode, network, reference.target, 1)
            seen = got["input"].reshape(reference.x.shape)
            if not torch.equal(seen, reference.x):
                if compare(seen, reference.x)["relative"] > 1e-5:
                    raise Failed("numbers", "the picture is prepared otherwise")
                reference = Reference(network, reference.model, seen)
            entry[mode] = {kind: reference.judge(got[kind], kind, mode, form) for kind in QUANTITIES}
    except Failed as failure:
        return reference, {"refused": why_not(camlens, form, failure)}
    if form != "pt2":
        logits = onnxruntimes_logits(camlens.folder / "models" / form / "1" / "model.onnx", reference.x)
        entry["onnxruntime"] = compare(logits, reference.narrow["logits"])["relative"]
    return reference, entry


def device_ns(camlens):
    """The processor time that the thread which runs models has used."""
    for thread in pathlib.Path(f"/proc/{camlens.server.pid}/task").iterdir():
        if (thread / "comm").read_text().strip() == "camlens-device":
            return int((thread / "schedstat").read_text().split()[0])
    raise RuntimeError("the server has no thread camlens-device")


def time_forms(row, camlens, forms, reference):
    """Times all files in turns; each ratio is of one round."""
    times = {form: [] for form in forms}
    for number in range(ROUNDS):
        turn = number % max(1, len(forms))
        for form in forms[turn:] + forms[:turn]:
            before = device_ns(camlens)
            explain(camlens, form, "float32", reference.network, reference.target, FRAMES)
            times[form].append((device_ns(camlens) - before) / FRAMES / 1e6)
    for form in forms:
        row["forms"][form]["ms"] = statistics.median(times[form])
        if form != "pt2" and "pt2" in forms:
            ratios = [own / pt2 for own, pt2 in zip(times[form], times["pt2"])]
            row["forms"][form]["ratio"] = statistics.quantiles(ratios, n=4, method="inclusive")


def compute(name, binary, folder):
    """A finished row."""
    row = {"name": name}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    try:
        write_row(row, NETWORKS[name], binary, folder)
    except Exception as error:
        traceback.print_exc()
        row["failed"] = f"{type(error).__name__}: {camlens_export.first_line(error)}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return row | {"seconds": time.monotonic() - started}


# ---------------------------------------------------------------------------------------------------- the table
def faults(row):
    """What is wrong with camlens in this row."""
    if "failed" in row:
        return [row["failed"]]
    found = []
    for form, entry in row["forms"].items():
        if "refused" in entry and not ((row["name"], form) in KNOWN and KNOWN[row["name"], form] in entry["refused"]):
            found.append(f"{form}: {entry['refused']}")
        for mode in MODES:
            for quantity, judged in entry.get(mode, {}).items():
                if not judged["conforms"]:
                    found.append(f"{form}, {mode}: {QUANTITIES[quantity]} is {judged['relative']:.1e} from PyTorch, "
                                 f"{judged['from_float64']:.1e} from float64 (float32: {judged['float32']:.1e})")
    return found


def pair(entry, quantity):
    cells = []
    for mode in MODES:
        judged = entry[mode][quantity]
        mark = "" if judged["conforms"] and "by" not in judged else "*" if judged["conforms"] else " WRONG"
        cells.append(classifiers.number(judged["relative"]) + mark)
    return " / ".join(cells)


def line(row, form):
    network, entry = NETWORKS[row["name"]], row["forms"][form]
    cells = [""] * 4
    if form == "pt2":
        cells = [f"{network.source} {network.name}", f"{row['parameters'] / 1e6:.1f}",
                 " × ".join(map(str, row["input"])) + (", any size" if network.free_size else ""),
                 f"`{network.layer}`"]
    if "not_exported" in entry or "refused" in entry:
        said = entry.get("refused") or f"not exported: {entry['not_exported']}"
        return [*cells, FORMS[form], "–", "–", "–", "–", said]
    notes = []
    if form == "pt2":
        speed = f"{entry['ms']:.1f} ms"
        if row["rectifiers"] == 0:
            notes.append("no rectifier")
        if not row.get("fed", True):
            notes.append("batch normalisation keeps mean 0 and variance 1")
    else:
        speed = "{1:.2f} ({0:.2f} to {2:.2f})".format(*entry["ratio"]) if "ratio" in entry else "–"
        if entry["onnxruntime"] > LOGITS["float32"]:
            notes.append(f"ONNX Runtime's logits are {classifiers.number(entry['onnxruntime'])} from PyTorch's")
    return [*cells, FORMS[form], *(pair(entry, quantity) for quantity in QUANTITIES), speed, "; ".join(notes)]


def table(rows):
    lines = [
        "| model | parameters, M | input | layer | file | logits: exact / default | Grad-CAM: exact / default | "
        "Guided Grad-CAM: exact / default | processor time | notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | – | – | – | – | – | – | – | – | {row['failed']} |")
            continue
        for form in FORMS:
            cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in line(row, form)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary(rows, missing):
    forms = [(row["name"], form, entry) for row in rows for form, entry in row.get("forms", {}).items()]
    files = [found for found in forms if found[1] != "pt2"]
    made = [found for found in files if "not_exported" not in found[2]]
    read = [found for found in made if "exact" in found[2]]
    equal = [found for found in read if all(j["conforms"] for mode in MODES for j in found[2][mode].values())]
    fast = [found for found in read if found[2].get("ratio", [2, 2, 2])[1] <= SLOWER]
    text = (f"{len(rows)} networks, {len(files)} exports to ONNX: PyTorch makes {len(made)} files, camlens reads "
            f"{len(read)} of them, and the logits and maps of {len(equal)} conform. {len(fast)} are served at the "
            f"speed of the `.pt2` (at most {SLOWER - 1:.0%} slower).")
    return text + (f" Not yet computed: {', '.join(missing)}." if missing else "")


HEAD = """# Classifiers from ONNX, beside the same networks from `.pt2`

`tests/onnx/classifiers.py` writes this page; its first lines say how. Weights are random and seeded. Both exporters of
PyTorch are tried: the older one (`dynamo=False`, operator set 17) and the newer one. Errors are relative distances (L2)
from plain autograd on the eager network, in float32 on one thread. Allowed are for logits {exact_logits:g} in exact
mode and {default_logits:g} in default mode, for maps {exact_pt2:g} (`.pt2`) and {exact_onnx:g} (ONNX) in exact mode and
{default:g} in default mode; beyond that, and marked with `*`, {factor} times float32's own distance from float64: of
the picture, of the picture one unit in the last place away, or of ten runs whose convolutions are rounded otherwise,
since a gate near zero flips in some roundings and not in others. The time of a `.pt2` is the processor time of one
explanation (Grad-CAM and Guided Grad-CAM) on the one thread that runs models; of ONNX it is the ratio to the `.pt2`,
the median of {rounds} rounds in turns and its quartiles, on a shared machine.

"""


def write_table(path, rows, missing):
    head = HEAD.format(exact_logits=LOGITS["exact"], default_logits=LOGITS["float32"], exact_pt2=EXACT["pt2"],
                       exact_onnx=EXACT["older"], default=classifiers.FAST["relative"],
                       factor=classifiers.FAST_TO_FLOAT64, rounds=ROUNDS)
    title, text = head.strip().split("\n\n")
    filled = [textwrap.fill(part, 120, break_on_hyphens=False) for part in (text, summary(rows, missing))]
    path.write_text("\n\n".join([title, *filled, table(rows)]), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"compute these again: {', '.join(NETWORKS)}")
    parser.add_argument("--camlens", default=ROOT / "target/release/camlens", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path, help="default: OUT/classifiers.md")
    args = parser.parse_args()
    if unknown := set(args.names) - NETWORKS.keys():
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    if not args.camlens.is_file():
        parser.error(f"no {args.camlens}: cargo build --release --locked")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = args.out / "rows.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(args.camlens.read_bytes()).hexdigest()[:16]
    rows = {}
    for text in kept.read_text().splitlines() if kept.exists() else []:
        row = json.loads(text)
        if row["binary"] == digest:
            rows[row["name"]] = row
    for name in NETWORKS:
        if args.names and name not in args.names or not args.names and name in rows:
            continue
        rows[name] = row = compute(name, args.camlens, args.out / "row") | {"binary": digest}
        with open(kept, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        write_table(args.table or args.out / "classifiers.md", [rows[n] for n in NETWORKS if n in rows],
                    [n for n in NETWORKS if n not in rows])
        print(f"{name}: {'; '.join(faults(row)) or 'ok'} ({row['seconds']:.0f} s)", flush=True)
    done = [rows[name] for name in NETWORKS if name in rows]
    print(summary(done, [name for name in NETWORKS if name not in rows]))
    sys.exit(1 if any(faults(row) for row in done) else 0)


if __name__ == "__main__":
    main()
