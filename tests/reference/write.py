"""Writes one conformance case: the model's version directory and its references.

tests/fixtures/conformance/README.md describes every file.
"""

import copy
import dataclasses
import itertools
import json
import math
import pathlib
import shutil
import sys
import warnings
import zipfile

import numpy as np
import oracle
import torch
import weights
from cases import Case, heads

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "deploy"))
import camlens_export  # noqa: E402

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
NOT_RIGHT = 1e-5          # a peer further than this from the definition does not follow it (then it is off by tenths)


def relative(found, wanted):
    return camlens_export.relative_error(found.cpu(), wanted.cpu())


def array(tensor, dtype=torch.float32):
    return tensor.detach().cpu().to(dtype).contiguous().numpy().copy()


def choose_input(model, case, size, tries):
    """Of `tries` pictures, the one whose rectifier inputs are furthest from their kinks, so that another kernel flips
    no gate; and one class per row that has a map at every layer (`facts` names rows that must have none)."""
    pick = heads(case.head)
    pictures = [weights.picture(2, case.shape[0], *size, seed=seed).to(case.dtype) for seed in range(5, 5 + tries)]
    pictures.sort(key=lambda x: -oracle.run(model, x, case.targets, pick=pick).margin)
    empty = case.facts.get("no_positive_evidence", [False, False])

    def has_maps(x, targets):
        maps = (oracle.explain(model, x, targets, layer, case.to_nchw, pick).L for layer in case.layers)
        return all((m.amax((1, 2, 3)) == 0).tolist() == empty for m in maps)

    choices = [case.targets] if any(empty) else [case.targets, *itertools.permutations(range(10), 2)]
    return next((x, targets) for x in pictures for targets in choices if has_maps(x, targets))


def for_peers(model):
    """A copy for the peers. Its ReLU modules are not in place (Captum raises an error, pytorch-grad-cam reads a
    rewritten activation), and its weights require gradients (pytorch-grad-cam calls backward() on them)."""
    model = copy.deepcopy(model).requires_grad_(True)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    return model


def captum(model, layer, x, targets):
    """Captum's GuidedGradCam with bilinear upsampling, one array `[N, C, H, W]`."""
    from captum.attr import GuidedGradCam
    model = for_peers(model)
    method = GuidedGradCam(model, dict(model.named_modules())[layer])
    return [method.attribute(x.clone(), target=list(targets), interpolate_mode="bilinear").detach()]


def pytorch_grad_cam(model, layer, x, targets):
    """pytorch-grad-cam's heat maps `[N, 1, H, W]`, and its Guided Grad-CAM of row 0, `[1, C, H, W]`."""
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    model = for_peers(model)
    with GradCAM(model, [dict(model.named_modules())[layer]]) as method:
        heat = torch.from_numpy(method(x.clone(), [ClassifierOutputTarget(t) for t in targets]))[:, None]
    guided = GuidedBackpropReLUModel(model, device="cpu")(x[:1].clone(), target_category=targets[0])
    guided = torch.from_numpy(np.ascontiguousarray(np.moveaxis(guided.reshape(*x.shape[2:], x.shape[1]), 2, 0)))[None]
    return heat, guided * heat[:1]


def measure(method, names, wanted):
    """A peer's arrays if all of them follow the definition (else None), and its entry of case.json."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = method()
        errors = dict(zip(names, (relative(f, w) for f, w in zip(found, wanted))))
    except Exception as error:      # a peer that does not support this model raises any error
        return None, {"fails": f"{type(error).__name__}: {camlens_export.first_line(error)}"[:160]}
    return (found, errors) if max(errors.values()) < NOT_RIGHT else (None, {"differs": errors})


def right_peers(entry):
    """The peers that follow the definition at a layer of case.json."""
    return [peer for peer, found in entry["peers"].items() if not {"fails", "differs"} & found.keys()]


def explain_layer(arrays, number, case, model, model64, x):
    """Adds the references of layer `number` to `arrays`; returns its entry of case.json, and the explanation."""
    layer, at = case.layers[number], f"{number}/"
    e = oracle.explain(model, x, case.targets, layer, case.to_nchw, heads(case.head))
    arrays[at + "L"] = array(e.L)
    entry = {"name": layer, "directory": str(number), "size": list(e.L.shape[2:]), "reverses": e.reverses}
    heat = oracle.pytorch_grad_cam([e.L.float()], x.shape[-2:])
    if number == 0:
        arrays[at + "F"] = array(e.F)
        arrays[at + "pytorch_grad_cam_L"] = array(heat)
    entry["peers"] = {}
    if "@" not in layer and case.head is None and case.dtype == torch.float32:
        own, entry["peers"]["captum"] = measure(lambda: captum(model, layer, x, case.targets), ["F"], [e.F])
        if own and case.peers:
            arrays[at + "captum_own_F"] = array(own[0])
        own, entry["peers"]["pytorch_grad_cam"] = measure(lambda: pytorch_grad_cam(model, layer, x, case.targets),
                                                          ["L", "F_of_row_0"], [heat, e.R[:1] * heat[:1]])
        if own and case.peers:
            arrays[at + "pytorch_grad_cam_own_L"] = array(own[0])
            arrays[at + "pytorch_grad_cam_own_F"] = array(own[1])
    if model64:
        wide = oracle.explain(model64, x.double(), case.targets, layer, case.to_nchw, heads(case.head))
        arrays[at + "L64"] = array(wide.L, torch.float64)
        if number == 0:
            arrays["R64"] = array(wide.R, torch.float64)
        entry["float32_from_float64"] = {
            "L": relative(e.L, wide.L),
            "R": relative(e.R, wide.R),
            "F": relative(e.F, wide.F),
        }
    return entry, e


def write_reference(folder, name, case, model, model64, size, tries):
    x, targets = choose_input(model, case, size, tries)
    case = dataclasses.replace(case, targets=targets)
    arrays = {"input": array(x)}
    entries, heats = [], []
    for number in range(len(case.layers)):
        entry, e = explain_layer(arrays, number, case, model, model64, x)
        entries.append(entry)
        heats.append(e.L.float())
    arrays |= {"logits": array(e.logits), "R": array(e.R)}
    if case.peers and len(heats) > 1:
        arrays["pytorch_grad_cam_all_L"] = array(oracle.pytorch_grad_cam(heats, x.shape[-2:]))
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "arrays.npz", **dict(sorted(arrays.items())))
    facts = {
        "name": name,
        "network": case.factory.__name__,
        "dtype": DTYPES[case.dtype],
        "input": [case.shape[0], *size],
        "logits": case.head,
        "classes": e.logits.shape[1],
        "targets": list(case.targets),
        "rectifiers": e.rectifiers,
        "margin": e.margin if math.isfinite(e.margin) else None,
        "default_target": case.default_target,
        "token_grid": case.explain.get("token_grid"),
        "class_tokens": case.explain.get("class_tokens", 0),
        "channels_last": case.explain.get("channels_last", False),
        "layers": entries,
        "ambiguous_layers": case.ambiguous,
        "refused": None,
        **case.facts,
    }
    (folder / "case.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return facts


def deflate(path):
    """Deflates the documents of an exported program, most of a small network's file. Weights stay as they are."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in entries:
            is_document = info.filename.endswith(".json")
            kept = zipfile.ZipInfo(info.filename, info.date_time)
            kept.external_attr = info.external_attr
            kept.compress_type = zipfile.ZIP_DEFLATED if is_document else zipfile.ZIP_STORED
            archive.writestr(kept, data, compresslevel=9)


def set_up(case: Case):
    model = weights.build(case.factory, case.shape)
    with torch.no_grad():
        case.edit(model)
    return model.to(case.dtype)


def write_case(out, name, case: Case, tries=64, make=set_up):
    """Writes `out/name/1/` (the model) and `out/name/reference*/` (its references)."""
    folder = pathlib.Path(out) / name
    shutil.rmtree(folder, ignore_errors=True)
    if case.refused:
        dimensions = ({0: torch.export.Dim.AUTO},)
        program = camlens_export.run_export(make(case), weights.picture(2, *case.shape), dimensions)
        camlens_export.save(program, folder / "1" / "model.pt2")
        deflate(folder / "1" / "model.pt2")
        (folder / "reference").mkdir()
        facts = {"name": name, "network": case.factory.__name__, "refused": case.refused, "layers": []}
        (folder / "reference" / "case.json").write_text(json.dumps(facts, indent=1) + "\n")
        return facts
    description = {
        "explain": dict(case.explain),
        "output": {"logits": case.head},
        "input": {"color": "gray" if case.shape[0] == 1 else None},
    }
    camlens_export.export(
        make(case), folder / "1", list(case.shape), description=description, dynamic_size=case.dynamic_size, check=False
    )
    deflate(folder / "1" / "model.pt2")
    model = make(case)
    model64 = make(case).double() if case.float64 and case.dtype == torch.float32 else None
    facts = write_reference(folder / "reference", name, case, model, model64, case.shape[1:], tries)
    for size in case.more_sizes:
        write_reference(folder / f"reference_{size[0]}x{size[1]}", name, case, model, model64, size, tries)
    return facts
