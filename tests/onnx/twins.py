#!/usr/bin/env python3
"""Exports the networks of the conformance cases to ONNX, with both exporters of PyTorch.

    site=$(dirname "$(deploy/python-env onnx)")/../site
    PYTHONPATH=$site $(deploy/python-env reference) tests/onnx/twins.py OUT [NAME...]

Writes OUT/older/NAME and OUT/newer/NAME: the ONNX file, and the references of the `.pt2` of the same weights. What an
exporter refuses is printed.
"""

import argparse
import pathlib
import shutil
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
import weights  # noqa: E402
import write  # noqa: E402
from cases import CASES  # noqa: E402

FIXTURES = HERE.parent / "fixtures" / "conformance"
# What ONNX, or an exporter, does not keep of a network.
NOT_KEPT = {
    "bfloat16": "the newer exporter mixes bfloat16 and float32 in a convolution",
    "conv_lstm": "GRU and LSTM are not read",
    "dyn_hw": "adaptive pooling is fixed to the size at export",
    "heads_dict": "names of results",
    "heads_tuple": "results that are no tensors",
    "multi_out": "DFT and TopK are not read",
    "no_grad_inside": "torch.no_grad()",
}
EXPORTERS = {"older": {"dynamo": False, "opset_version": 17}, "newer": {"dynamo": True}}


def free_axes(exporter, dynamic_size):
    """The batch, and with `dynamic_size` the sides, may have any size."""
    axes = {0: "batch", **({2: "height", 3: "width"} if dynamic_size else {})}
    if exporter == "older":
        return {"dynamic_axes": {"x": axes}}
    return {"dynamic_shapes": ({axis: torch.export.Dim.DYNAMIC for axis in axes},)}


def export(model, x, exporter, path, dynamic_size):
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), input_names=["x"], external_data=False, verbose=False,
                          **EXPORTERS[exporter], **free_axes(exporter, dynamic_size))


def strip(path):
    """Leaves out what only the exporting machine knew, such as its paths, and what camlens does not read."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
    for value in [*model.graph.initializer, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    onnx.save(model, path)


def from_reference(folder):
    """How far ONNX Runtime's logits of an exported file are from the network's."""
    arrays = np.load(folder / "reference" / "arrays.npz")
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    x = arrays["input"].astype(np.float16 if "float16" in given.type else np.float32)
    wanted = arrays["logits"]
    return np.linalg.norm(session.run(None, {given.name: x})[0] - wanted) / np.linalg.norm(wanted)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, case in CASES.items():
        if case.refused or name in NOT_KEPT or (args.names and name not in args.names):
            continue
        for exporter in EXPORTERS:
            folder = args.out / exporter / name
            shutil.rmtree(folder, ignore_errors=True)
            try:
                x = weights.picture(2, *case.shape).to(case.dtype)
                export(write.set_up(case), x, exporter, folder / "1" / "model.onnx", case.dynamic_size)
                strip(folder / "1" / "model.onnx")
            except Exception as error:      # an exporter raises any error
                shutil.rmtree(folder, ignore_errors=True)
                print(f"{name}: the {exporter} exporter: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
                continue
            shutil.copy(FIXTURES / name / "1" / "model.toml", folder / "1")
            for reference in FIXTURES.glob(f"{name}/reference*"):
                shutil.copytree(reference, folder / reference.name)
            if (distance := from_reference(folder)) > 1e-2:
                shutil.rmtree(folder)
                print(f"{name}: the {exporter} exporter's file computes something else ({distance:.1e})")
                continue
            print(f"{name}: {exporter}, {(folder / '1' / 'model.onnx').stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()
