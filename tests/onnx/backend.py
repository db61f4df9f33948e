#!/usr/bin/env python3
"""ONNX's own backend node tests, as files that `cargo test --test onnx` reads.

    $(deploy/python-env onnx) tests/onnx/backend.py OUT

Each test becomes OUT/NAME/model.onnx with its first input as the only one (the others become constants), and
OUT/NAME/arrays.npz with the input and the outputs. What is expected comes from ONNX. Tests whose operators camlens does
not read, or of dtypes that NumPy does not have, are left out; OUT/left_out.txt says why.
"""

import argparse
import pathlib
import re
import shutil

import numpy as np
import onnx
import onnx.backend.test.loader as loader
from onnx import numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "src/model/import/onnx/lower/mod.rs"
NEWEST = 23
KINDS = {"float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}


def operators():
    """The operators in camlens's own table."""
    return set(re.findall(r'^    \("(\w+)", \d+, \d+, ', TABLE.read_text(), re.M)) | {"If"}


def array(value):
    if isinstance(value, np.ndarray) and value.dtype.name in KINDS:
        return value
    raise ValueError(f"a value of {getattr(value, 'dtype', type(value).__name__)}")


def convert(case, folder):
    model = case.model
    for imported in model.opset_import:
        # What newer operator sets add to an operator that is read are dtypes that NumPy does not have.
        if imported.domain == "" and imported.version > NEWEST:
            imported.version = NEWEST
    unknown = {node.op_type for node in model.graph.node} - operators()
    if unknown and not model.functions:
        raise ValueError(f"operator {', '.join(sorted(unknown))}")
    inputs, outputs = (
        [array(numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v) for v in values]
        for values in case.data_sets[0]
    )
    if not inputs:
        raise ValueError("no input")
    names = [value.name for value in model.graph.input]
    keep = next((i for i, value in enumerate(inputs) if value.dtype.kind == "f"), 0)
    if len(names) != len(inputs):
        raise ValueError("inputs that are left out")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [value for value in copy.graph.input if value.name == names[keep]]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    for i, value in enumerate(inputs):
        if i != keep:
            copy.graph.initializer.append(numpy_helper.from_array(value, names[i]))
    folder.mkdir(parents=True)
    onnx.save(copy, folder / "model.onnx")
    kind = np.frombuffer(inputs[keep].dtype.name.encode(), np.uint8)
    arrays = {"input": inputs[keep].astype(np.float64, order="C"), "kind": kind}
    arrays |= {f"output_{i}": value.astype(np.float64, order="C") for i, value in enumerate(outputs)}
    np.savez(folder / "arrays.npz", **arrays)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    left_out, count = [], 0
    for case in loader.load_model_tests(kind="node"):
        if not getattr(case, "data_sets", None) and case.model_dir:
            read_files(case)
        try:
            convert(case, args.out / case.name)
            count += 1
        except ValueError as reason:
            shutil.rmtree(args.out / case.name, ignore_errors=True)
            left_out.append(f"{case.name}: {reason}")
    (args.out / "left_out.txt").write_text("\n".join(left_out) + "\n")
    print(f"{count} tests, {len(left_out)} left out")


def read_files(case):
    """A test's model and arrays, from the files in the package."""
    folder = pathlib.Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")

    def values(kind):
        files = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"), key=lambda f: int(f.stem.split("_")[1]))
        found = []
        for file in files:
            tensor = onnx.TensorProto()
            tensor.ParseFromString(file.read_bytes())
            found.append(numpy_helper.to_array(tensor))
        return found

    object.__setattr__(case, "model", model)
    object.__setattr__(case, "data_sets", [(values("input"), values("output"))])


if __name__ == "__main__":
    main()
