"""Guided Grad-CAM as it is defined, in float64, by PyTorch's autograd on the CPU; a process of its own.

    python -m gpu_check.definition JOBS.json

JOBS is a list of `{"model", "layer", "target", "input", "out"}`: an exported program, the path of the target layer, the
class, a float32 `[C, H, W]` (`.npy`), and the `.npz` to write, arrays of one row: `logits`, `grad_cam` (U(L),
`[1, H, W]`), `heat` (L, `[1, h, w]`), `guided_backprop` (R) and `guided_grad_cam` (F), `[1, C, H, W]`.

The program is run node by node, and shares nothing with camlens. `A` is the target layer's value, `G` the plain
gradient of the class's logit at it: `L = relu(sum_k mean(G_k) A_k)`, `U` bilinear with half-pixel centres,
`F = R * U(L)`. For `R` every rectifier's derivative is applied to `max(grad_out, 0)`.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

# Operators that are rectifiers, and those that are if they cut at zero from below: by the name of that argument.
RECTIFIERS = {"relu", "relu6", "leaky_relu"}
CUTS = {"hardtanh": "min_val", "clamp": "min", "clamp_min": "min", "clip": "min", "threshold": "threshold"}


class Guided(torch.autograd.Function):
    """Forward: `f`. Backward: f's derivative, applied to `max(grad_out, 0)`."""

    @staticmethod
    def forward(context, x, f):
        context.save_for_backward(x.clone())
        context.f = f
        return f(x.clone())

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (own,) = torch.autograd.grad(context.f(leaf.clone()), leaf, gradient.clamp(min=0))
        return own, None


def is_rectifier(operator, arguments, named):
    """Whether a call of an ATen operator is a rectifier."""
    name = operator._schema.name.partition("::")[2].rstrip("_")
    if name in CUTS:
        defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}
        given = dict(zip(defaults, arguments, strict=False))
        return (defaults | given | named)[CUTS[name]] == 0
    return name in RECTIFIERS


class Interpreter(torch.fx.Interpreter):
    """Runs an exported program and keeps the value of a layer; `is_guided`: rectifiers pass positive gradients only."""

    def __init__(self, module, layer, is_guided):
        super().__init__(module, garbage_collect_values=False)
        self.is_guided = is_guided
        self.last = last_node(module.graph, layer)
        self.value = None

    def run_node(self, node):
        result = super().run_node(node)
        if node is not self.last:
            return result
        # A later operator may change the value in place.
        self.value = result
        return result.clone()

    def call_function(self, operator, arguments, named):
        is_operator = isinstance(operator, torch._ops.OpOverload)
        if not (self.is_guided and is_operator and is_rectifier(operator, arguments, named)):
            return super().call_function(operator, arguments, named)
        x, *rest = arguments
        result = Guided.apply(x, lambda value: operator(value, *rest, **named))
        if not operator._schema.is_mutable:
            return result
        x.copy_(result)
        return x


def last_node(graph, layer):
    """The node whose value the layer's last call returns."""
    found = None
    for node in graph.nodes:
        inside = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        names = {path.removeprefix("L['self'].").removeprefix("L__self___") for path in inside}
        if node.op == "call_function" and layer in names:
            found = node
    if found is None:
        raise ValueError(f"no value of the program belongs to the layer {layer}")
    return found


def gradients(module, x, target, layer, is_guided):
    """The logits, the layer's value, the gradients of the class's logit at it and at the input."""
    x = x.clone().requires_grad_()
    interpreter = Interpreter(module, layer, is_guided)
    output = interpreter.run(x.clone())
    logits = output[0] if isinstance(output, (tuple, list)) else output
    at_layer, at_input = torch.autograd.grad(logits[:, target].sum(), [interpreter.value, x])
    return logits.detach(), interpreter.value.detach(), at_layer, at_input


def loaded(path):
    """The program in float64, its parameters without gradients."""
    module = torch.export.load(path).module(check_guards=False).double()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def explain(module, x, target, layer):
    """The maps of `x`, `[N, C, H, W]` in float64, for one class."""
    logits, values, at_layer, _ = gradients(module, x, target, layer, is_guided=False)
    at_input = gradients(module, x, target, layer, is_guided=True)[3]
    alpha = at_layer.mean((2, 3), keepdim=True)
    heat = torch.relu((alpha * values).sum(1, keepdim=True))
    upsampled = F.interpolate(heat, x.shape[-2:], mode="bilinear", align_corners=False)
    fused = at_input * upsampled
    flat = {"grad_cam": upsampled.squeeze(1), "heat": heat.squeeze(1)}
    return {"logits": logits, "guided_backprop": at_input, "guided_grad_cam": fused} | flat


def main(path):
    modules = {}
    for job in json.loads(pathlib.Path(path).read_text()):
        module = modules.get(job["model"]) or modules.setdefault(job["model"], loaded(job["model"]))
        x = torch.from_numpy(np.load(job["input"])).double()
        found = explain(module, x[None], job["target"], job["layer"])
        np.savez(job["out"], **{name: value.numpy() for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
