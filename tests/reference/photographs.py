"""Writes the top five classes of the demo's photographs, from PyTorch with torchvision's transforms.

    .venv/bin/pip install -r deploy/models/requirements.txt
    .venv/bin/python tests/reference/photographs.py        # writes tests/fixtures/photographs.json

The box of coffee.png was drawn by hand around the cup with its handle: [left, top, right, bottom] in the photograph's
pixels.
"""

import importlib.machinery
import importlib.util
import json
import pathlib

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
BOXES = {"coffee.png": [170, 15, 412, 310]}


def load_make():
    path = str(ROOT / "deploy/models/make")
    loader = importlib.machinery.SourceFileLoader("make_model", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_model", loader))
    loader.exec_module(module)
    return module


def main():
    make = load_make()
    torch.set_num_threads(2)
    model = make.build().eval()
    labels = make._IMAGENET_CATEGORIES
    out = {}
    for path in sorted((ROOT / "deploy/demo-assets/photographs").iterdir()):
        with torch.no_grad():
            probabilities = model(make.preprocess(path)).softmax(1)[0]
        top = probabilities.topk(5)
        out[path.name] = {
            "top5": [
                {"class_index": int(i), "label": labels[int(i)], "probability": round(float(p), 6)}
                for p, i in zip(top.values, top.indices)
            ]
        }
        if path.name in BOXES:
            out[path.name]["box"] = BOXES[path.name]
    target = ROOT / "tests/fixtures/photographs.json"
    target.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
