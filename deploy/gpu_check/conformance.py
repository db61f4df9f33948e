"""Maps from the card, beside the processor's and beside the definition in float64."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import numpy as np

from . import distances, fixtures
from .models import LAYERS, LITE0, RESNET18, RESNET50
from .program import REPORT, Server, last_lines
from .report import Trouble

PRECISIONS = ("exact", "float32")
# Where each map of a case of `tests/fixtures/conformance` stands in its arrays.
REFERENCES = {"guided_backprop": "R64", "heat": "0/L64", "guided_grad_cam": "0/F"}
DEFINITION_S = 600
# The input of the same picture, made by other code.
INPUT = distances.Bounds(1e-5, 1e-4, 0.99999)


def check(found, setting):
    for name in (LITE0, RESNET18, RESNET50):
        found.attempt(f"{name} on the card", network, found, setting, name)
    found.attempt(f"{LITE0} in bfloat16", bfloat16, found, setting)
    found.attempt("the committed references", committed, found, setting)


class Worst:
    """The largest distance of several maps, and those that are out of bounds."""

    def __init__(self):
        self.distance, self.bounds, self.of, self.beyond, self.count = None, None, "", [], 0

    def add(self, where, distance, bounds):
        self.count += 1
        if self.distance is None or distance.relative_l2 > self.distance.relative_l2:
            self.distance, self.bounds, self.of = distance, bounds, where
        if not distance.is_within(bounds):
            self.beyond.append(
                f"{where}: relative L2 {distance.relative_l2:.1e} (<= {bounds.relative_l2:.1e}), "
                f"cosine {distance.cosine:.6f} (>= {bounds.cosine})"
            )

    def record(self, found, name):
        if self.distance is None:
            raise Trouble(f"{name}: no map was compared", "the answers hold no maps", REPORT)
        shown = {"value": self.distance.relative_l2, "unit": "rel. L2", "target": f"<= {self.bounds.relative_l2:.1e}"}
        if self.bounds == distances.REDUCED:
            shown = {"value": self.distance.cosine, "unit": "cosine", "target": f">= {self.bounds.cosine}"}
        found.demand(
            name,
            not self.beyond,
            f"{len(self.beyond)} of {self.count} maps are out of bounds: {'; '.join(self.beyond[:3])}",
            meaning_of(self.distance),
            "see whether `exact` fails too: if not, a fused operator is wrong; if both do, a kernel or a copy is",
            figures={"maps": self.count, "the_farthest": self.of, **dataclasses.asdict(self.distance)},
            **shown,
        )


def meaning_of(distance):
    """What a distance of that size hints at."""
    if not np.isfinite(distance.relative_l2):
        return "a map has values that are not finite"
    if distance.cosine < 0.9:
        return "the maps are others: wrong weights, a wrong layer, or memory that is read too early"
    if distance.relative_l2 < 2e-2:
        return "an error of this size is that of TF32 or of a reduced precision"
    return "an operator computes something else on the card"


def explained(server, name, picture, layer, precision, out, target="top:1"):
    flags = ["--model", name, "--layer", layer, "--precision", precision, "--target", target, "--map", "input"]
    answer = server.explain(picture, out, *flags)
    (only,) = answer["targets"]
    logits = {one["class_index"]: one["logit"] for one in answer["predictions"]}
    return {"class": only["class_index"], "maps": only["maps"], "logits": logits, "files": only["files"]}


def definitions(setting, jobs):
    """The maps of each job by the definition; `definition.py` says what a job is. None without PyTorch."""
    if not setting.has_torch:
        return None
    path = setting.work / "jobs.json"
    path.write_text(json.dumps(jobs))
    command = [sys.executable, "-W", "ignore", "-m", "gpu_check.definition", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEFINITION_S)
    if done.returncode:
        raise Trouble(
            f"the definition cannot be computed: {last_lines(done.stderr)}",
            "PyTorch on the processor is the reference of this check",
            "see that `import torch` works in this Python, and that there is memory for float64",
        )
    return [dict(np.load(job["out"])) for job in jobs]


def network(found, setting, name):
    """One network: photographs and layers, in exact and default precision."""
    layers = LAYERS[name][:1] if setting.is_quick else LAYERS[name]
    cases = [(picture, layer) for picture in setting.photographs() for layer in layers]
    answers, jobs = answered(setting, name, cases)
    wanted = definitions(setting, jobs)
    for precision in PRECISIONS:
        beside_processor, beside_definition, logits = Worst(), Worst(), []
        for number, (picture, layer) in enumerate(cases):
            exact, own, card = (
                answers[number, *which] for which in (("exact", "cpu"), (precision, "cpu"), (precision, "card"))
            )
            logits.append(distances.logits_agree(card["logits"], own["logits"]))
            for kind in distances.MAPS:
                where, error = f"{kind} of {picture.name} at {layer}", 0.0
                if wanted:
                    truth = wanted[number][kind][0]
                    error = distances.distance(exact["maps"][kind], truth).relative_l2
                    beside_definition.add(
                        where, distances.distance(card["maps"][kind], truth), distances.allowed(error)
                    )
                # Each of the two may be 3 times that error from the definition.
                apart = distances.distance(card["maps"][kind], own["maps"][kind])
                beside_processor.add(where, apart, distances.allowed(error, times=6))
        beside_processor.record(found, f"{name}, {precision}, beside the processor")
        if wanted:
            beside_definition.record(found, f"{name}, {precision}, beside the definition")
        else:
            found.not_run(f"{name}, {precision}, beside the definition", "it needs PyTorch, and this Python has none")
        found.demand(
            f"{name}, {precision}, logits",
            all(agrees for agrees, _ in logits),
            "the logits of the same picture differ between card and processor",
            "the forward run already differs: weights, preprocessing or an operator",
            "see whether `exact` fails too; look for TF32",
            value=max(worst for _, worst in logits),
            unit="relative",
            target=f"<= {distances.LOGITS_RELATIVE:g}",
        )
    inputs = Worst()
    for number, (picture, _) in enumerate(cases):
        pair = [answers[number, "exact", where]["maps"]["input"] for where in ("card", "cpu")]
        inputs.add(f"input of {picture.name}", distances.distance(*pair), INPUT)
    inputs.record(found, f"{name}, the input after preprocessing")


def answered(setting, name, cases):
    """What card and processor say of each case, by its number, precision and place; and the jobs of the definition."""
    shelf = setting.networks.shelf(name)
    flags = ["--kernel-timing", "never"]
    answers, jobs = {}, []
    with contextlib.ExitStack() as stack:
        processor = stack.enter_context(Server(setting, shelf, *flags))
        card = stack.enter_context(Server(setting, shelf, *flags, *setting.on_device()))
        rest = [("float32", "cpu", processor), ("exact", "card", card), ("float32", "card", card)]
        for number, (picture, layer) in enumerate(cases):
            out = setting.work / "maps" / name / str(number)
            own = explained(processor, name, picture, layer, "exact", out / "cpu-exact")
            answers[number, "exact", "cpu"] = own
            for precision, where, server in rest:
                folder, target = out / f"{where}-{precision}", str(own["class"])
                answers[number, precision, where] = explained(server, name, picture, layer, precision, folder, target)
            paths = {"model": setting.networks.program(name), "input": own["files"]["input"]}
            paths["out"] = out / "definition.npz"
            jobs.append({key: str(path) for key, path in paths.items()} | {"layer": layer, "target": own["class"]})
    return answers, jobs


def bfloat16(found, setting):
    """Trained weights in bfloat16, beside float32 on the processor."""
    worst = Worst()
    with contextlib.ExitStack() as stack:
        processor = stack.enter_context(Server(setting, setting.networks.shelf(LITE0)))
        shelf = setting.networks.shelf(LITE0, precision="bfloat16")
        card = stack.enter_context(Server(setting, shelf, *setting.on_device()))
        for number, picture in enumerate(setting.photographs()):
            out, layer = setting.work / "maps/bfloat16" / str(number), LAYERS[LITE0][0]
            own = explained(processor, LITE0, picture, layer, "float32", out / "cpu")
            reduced = explained(card, LITE0, picture, layer, "bfloat16", out / "card", str(own["class"]))
            for kind in distances.MAPS:
                distance = distances.distance(reduced["maps"][kind], own["maps"][kind])
                worst.add(f"{kind} of {picture.name}", distance, distances.REDUCED)
    worst.record(found, f"{LITE0}, bfloat16, beside float32 on the processor")


def committed(found, setting):
    """Small networks of every kind, with the references of the repository."""
    fixtures.needed()
    shelf = setting.networks.shelf(*fixtures.CASES)
    with Server(setting, shelf, *setting.on_device()) as server, fixtures.Client(server.address) as client:
        for name in fixtures.CASES:
            case, arrays = fixtures.case(name)
            layer = case["layers"][0]["name"]
            for precision in PRECISIONS:
                worst = Worst()
                for row, target in enumerate(case["targets"]):
                    maps, score = client.explain(name, arrays["input"][row], target, layer, precision)
                    for kind, reference in REFERENCES.items():
                        distance = distances.distance(maps[kind], arrays[reference][row].reshape(maps[kind].shape))
                        worst.add(f"{kind} of row {row} at {layer}", distance, distances.FLOAT32)
                    away = abs(score - arrays["logits"][row, target]) / np.abs(arrays["logits"][row]).max()
                    if away > distances.LOGITS_RELATIVE:
                        worst.beyond.append(f"the logit of row {row} is {away:.1e} from PyTorch's")
                worst.record(found, f"{name}, {precision}, beside its committed reference")
