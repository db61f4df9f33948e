"""The definition (conformance rules 1 to 4), on the eager model, with PyTorch's whole-graph autograd.

It shares nothing with camlens: no graph, no plan. Every rectifier, module or functional, in place or not, is seen as a
torch function call; in guided mode its derivative is applied to `max(grad_out, 0)`. A layer's value is the result of
the module's n-th call; a clone of it is passed on, so that later in-place operators cannot change it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MAXIMUM = ("max", "maximum")


class Guided(torch.autograd.Function):
    """Forward: `f`. Backward: f's derivative, applied to `max(grad_out, 0)`."""

    @staticmethod
    def forward(ctx, x, f):
        ctx.save_for_backward(x.clone())                        # an in-place rectifier overwrites x
        ctx.f = f
        return f(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (own,) = torch.autograd.grad(ctx.f(leaf), leaf, grad.clamp(min=0))
        return own, None


@dataclass
class Gate:
    """A rectifier call: its kinks (where the derivative jumps), and whether it writes its input."""

    kinks: tuple
    in_place: bool


def gate(func, args, kwargs):
    """The Gate of a torch function call; None if the call is not a rectifier."""

    def get(position, name, default=None):
        return args[position] if len(args) > position else kwargs.get(name, default)

    name = getattr(func, "__name__", "")
    dunder = name.startswith("__")
    base = name.strip("_")                                       # F.threshold is called `_threshold`
    in_place = (name.endswith("_") and not dunder) or bool(kwargs.get("inplace", False))
    if base == "relu":
        return Gate((0,), in_place or bool(func is F.relu and get(1, "inplace", False)))
    if base == "relu6":
        return Gate((0, 6), in_place or bool(get(1, "inplace", False)))
    if base == "leaky_relu":
        return Gate((0,), in_place or bool(get(2, "inplace", False)))
    if base == "hardtanh" and get(1, "min_val", -1) == 0:
        return Gate((0, get(2, "max_val", 1)), in_place or bool(get(3, "inplace", False)))
    if base == "threshold" and get(1, "threshold") == 0 and get(2, "value") == 0:
        return Gate((0,), in_place or bool(get(3, "inplace", False)))
    if base in ("clamp", "clip"):
        low, high = get(1, "min"), get(2, "max")
        if isinstance(low, (int, float)) and low == 0:
            return Gate((0,) if high is None else (0, high), in_place)
    if base == "clamp_min" and get(1, "min") == 0:
        return Gate((0,), in_place)
    if base in MAXIMUM and torch.is_tensor(get(1, "other")):
        other = get(1, "other")
        if not other.requires_grad and not bool(other.any()):
            return Gate((0,), False)
    return None


class RightStrides(TorchFunctionMode):
    """Lets autograd (PyTorch 2.11) read the gradient of a normalisation rightly on the CPU.

    `batch_norm`'s backward is silently wrong for one row and a gradient that is channels-last but for its batch stride:
    LeViT's gradient for one picture is 140 % from that for the same picture twice. The same memory with the usual batch
    stride is read rightly. `instance_norm`'s backward is wrong for one row and any channels-last gradient.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").split(".")[0]
        if name in ("batch_norm", "instance_norm") and torch.is_tensor(value) and value.requires_grad:
            value.register_hook(torch.Tensor.contiguous if name == "instance_norm" else usual_strides)
        return value


def usual_strides(gradient):
    """The same memory; a batch of one has the batch stride of a channels-last tensor."""
    if gradient.dim() != 4 or len(gradient) != 1:
        return gradient
    _, channels, height, width = gradient.shape
    strides = (channels * height * width, 1, width * channels, channels)
    is_channels_last = all(n == 1 or own == s for n, own, s in zip(gradient.shape, gradient.stride(), strides))
    return gradient.as_strided(gradient.shape, strides) if is_channels_last else gradient


class Rectifiers(TorchFunctionMode):
    """Sees every rectifier of a forward run; with `guide`, guides those that a gradient passes through.

    count    rectifier calls that depend on the input
    margin   the smallest distance of a rectifier's input from a kink, in units of that input's root mean square: with a
             large margin, rounding flips no gate
    """

    def __init__(self, guide):
        super().__init__()
        self.guide, self.count, self.margin = guide, 0, math.inf

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rectifies = args and torch.is_tensor(args[0]) and args[0].is_floating_point() and args[0].requires_grad
        found = gate(func, args, kwargs) if rectifies else None
        if found is None:
            return func(*args, **kwargs)
        x, rest = args[0], args[1:]
        self.count += 1
        value = x.detach().double()
        scale = float(value.square().mean().sqrt()) or 1.0
        for kink in found.kinks:
            distance = (value - kink).abs()
            distance = distance[distance > 0]       # exactly on the kink: a zero made by the graph, equal in all runs
            if distance.numel():
                self.margin = min(self.margin, float(distance.min()) / scale)
        if not self.guide:
            return func(*args, **kwargs)
        y = Guided.apply(x, lambda t: func(t.clone(), *rest, **kwargs))     # an in-place call writes into the clone
        if not found.in_place:
            return y
        x.copy_(y)
        return x


@dataclass
class Run:
    logits: torch.Tensor          # [N, classes]
    activations: torch.Tensor     # the result of the layer; None without a layer
    layer_gradient: torch.Tensor  # d score / d activations
    input_gradient: torch.Tensor  # d score / d x, [N, C, H, W]
    rectifiers: int
    margin: float
    gated: bool                   # whether a rectifier is between the layer's value and the score


def split(layer):
    """`relu@0` -> ("relu", 0): the module path and the index of its call (default: the last)."""
    path, at, call = layer.rpartition("@")
    return (path, int(call)) if at else (layer, -1)


def run(model, x, targets, layer=None, guided=False, pick=None):
    """One forward and one backward. `pick` takes the logits from the model's output."""
    modules = dict(model.named_modules(remove_duplicate=False))
    returned = []

    def keep(module, inputs, output):
        first = output if torch.is_tensor(output) else output[0]
        returned.append(first)
        return first.clone() if torch.is_tensor(output) else (first.clone(), *output[1:])

    path, call = split(layer) if layer else (None, -1)
    hook = modules[path].register_forward_hook(keep) if layer else None
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as in camlens; it affects the choice of matmul's kernel
    state = [(buffer, buffer.clone()) for buffer in model.buffers()]      # restored afterwards
    x = x.detach().clone().requires_grad_()
    rectifiers = Rectifiers(guided)
    try:
        with torch.enable_grad(), rectifiers:
            output = model(x.clone())
    finally:
        if hook:
            hook.remove()
        with torch.no_grad():
            for buffer, was in state:
                buffer.data.copy_(was)
    logits = pick(output) if pick else output
    seed = torch.zeros_like(logits)
    seed[torch.arange(len(logits)), torch.as_tensor(targets)] = 1
    value = returned[call] if layer else None
    wanted = [x] if value is None else [x, value]
    between = value is not None and gates_between(logits.grad_fn, value.grad_fn)
    gradients = torch.autograd.grad(logits, wanted, seed, allow_unused=True)
    gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients)]
    return Run(
        logits.detach(),
        None if value is None else value.detach(),
        gradients[1] if layer else None,
        gradients[0],
        rectifiers.count,
        rectifiers.margin,
        between,
    )


def gates_between(score, value):
    """Whether a guided rectifier is on a path of the autograd graph from the score to `value` (guided runs only)."""
    reaches = {value: True}
    order, stack = [], [(score, False)]
    while stack:
        node, done = stack.pop()
        if done:
            reaches[node] = any(reaches.get(n, False) for n, _ in node.next_functions if n is not None)
            order.append(node)
        elif node not in reaches:
            reaches[node] = False
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None and n not in reaches]
    return any(reaches[n] and type(n).__name__ == "GuidedBackward" for n in order)


@dataclass
class Explanation:
    logits: torch.Tensor     # [N, classes]
    L: torch.Tensor          # Grad-CAM, [N, 1, h, w]
    R: torch.Tensor          # guided gradient, [N, C, H, W]
    F: torch.Tensor          # Guided Grad-CAM, [N, C, H, W]
    rectifiers: int
    margin: float
    reverses: int            # 1 when one reverse run gives both gradients, 2 when a rectifier follows the layer


def upsample(heat, size):
    return F.interpolate(heat, tuple(size), mode="bilinear", align_corners=False)


def explain(model, x, targets, layer, to_nchw=lambda t: t, pick=None):
    """Guided Grad-CAM of `model` at `layer` for one class per row."""
    plain = run(model, x, targets, layer, guided=False, pick=pick)
    guided = run(model, x, targets, layer, guided=True, pick=pick)
    activations, gradient = to_nchw(plain.activations), to_nchw(plain.layer_gradient)
    alpha = gradient.mean((2, 3), keepdim=True)
    heat = torch.relu((alpha * activations).sum(1, keepdim=True))
    return Explanation(plain.logits, heat, guided.input_gradient, guided.input_gradient * upsample(heat, x.shape[-2:]),
                       guided.rectifiers, plain.margin, 2 if guided.gated else 1)


def scaled(heat):
    """pytorch-grad-cam's min-max scaling, row by row."""
    heat = heat - heat.amin((1, 2, 3), keepdim=True)
    return heat / (1e-7 + heat.amax((1, 2, 3), keepdim=True))


def pytorch_grad_cam(heats, size):
    """pytorch-grad-cam's convention: the heat maps `[N, 1, h, w]` of one or more layers as one map `[N, 1, H, W]`."""
    return scaled(torch.stack([upsample(scaled(heat), size) for heat in heats]).mean(0))
