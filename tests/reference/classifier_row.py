"""One row of classifiers.py: a classifier as camlens explains it, beside plain autograd on the eager model.

The script runs in a process of its own and prints the row, one JSON object. It judges nothing but the layer, which
needs the network; classifiers.py judges the numbers.
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import oracle
import torch
import weights
from PIL import Image
from torch.overrides import TorchFunctionMode

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
import camlens_export  # noqa: E402

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TIMED_FRAMES = 3
# Where float32 itself is further from float64, the network is chaotic and tells nothing of camlens: it gets other
# statistics of batch normalisation.
SANE = 1e-3
# A map in default mode that is FLIPPED times as far from float64 as float32's own runs has gates on the other side of
# zero. Whether float32 flips them too, runs tell whose convolutions are rounded otherwise: by ROUNDING of the root mean
# square of their results, a few units in the last place, as by another order of summation.
FLIPPED, FAR = 3, 1e-4
ROUNDED_RUNS, ROUNDING = 10, 5e-7
CAMLENS_SECONDS = 3600          # a command of camlens that takes longer has failed


class Failed(Exception):
    """The row ends here. `key` of the row says where, the message why."""

    def __init__(self, key, message):
        super().__init__(message)
        self.key = key


# ---------------------------------------------------------------------------------------------------- the network
def make(source, name):
    """The untrained network, and [C, H, W] of the input it was designed for."""
    if source == "torchvision":
        model, known = camlens_export.build_torchvision(name, "none")
        return model, known["input"]
    import timm
    # A configuration without classes, such as that of self-supervised weights, gets ImageNet's number of them.
    classes = timm.get_pretrained_cfg(name, allow_unregistered=False)
    more = {} if classes is None or classes.num_classes else {"num_classes": 1000}
    model = timm.create_model(name, **more)
    return model, list(model.pretrained_cfg["input_size"])


def build(source, name, fed=True):
    """The network with seeded weights that no layer ignores, in evaluation mode, and its input's size.

    `fed`: batch normalisation has the statistics of pictures; else mean 0 and variance 1.
    """
    torch.manual_seed(0)
    model, shape = make(source, name)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            # Layer scales start at 1e-6 or so: each block would be an identity.
            start = float(parameter.flatten()[0])
            if 0 < abs(start) <= 0.01 and bool((parameter == start).all()):
                parameter.uniform_(0.1, 0.4, generator=generator)
    weights.settle(model, shape)
    if not fed:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
    return model.requires_grad_(False), shape


# ---------------------------------------------------------------------------------------------------- runs
class Guide(TorchFunctionMode):
    """Guides every rectifier that a gradient passes through, as oracle.Rectifiers does, without measuring margins."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = None
        if args and torch.is_tensor(args[0]) and args[0].is_floating_point() and args[0].requires_grad:
            found = oracle.gate(func, args, kwargs)
        if found is None:
            return func(*args, **kwargs)
        x, rest = args[0], args[1:]
        y = oracle.Guided.apply(x, lambda t: func(t.clone(), *rest, **kwargs))
        return x.copy_(y) if found.in_place else y


def tensors_of(output):
    """The float tensors in what a module returned, in order."""
    if torch.is_tensor(output):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def replaced(output, old, new):
    if output is old:
        return new
    if isinstance(output, dict):
        return type(output)((key, replaced(part, old, new)) for key, part in output.items())
    if isinstance(output, (list, tuple)):
        parts = [replaced(part, old, new) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


class Eager:
    """The model; `at` names one of the values that its modules return: (path, number of the call, which tensor)."""

    def __init__(self, model, at=None):
        self.model, self.at = model, at

    def __call__(self, x, tap):
        if self.at is None:
            return self.model(x)
        path, number, which = self.at
        calls = []

        def hook(module, inputs, output):
            calls.append(None)
            if len(calls) - 1 == number:
                value = tensors_of(output)[which]
                return replaced(output, value, tap(value))

        handle = self.model.get_submodule(path).register_forward_hook(hook)
        try:
            return self.model(x)
        finally:
            handle.remove()


class Exported:
    """The exported program as PyTorch runs it, node by node; `at` is a node's name."""

    def __init__(self, module, at):
        self.module, self.at = module, at

    def __call__(self, x, tap):
        wanted = self.at

        class Run(torch.fx.Interpreter):
            def run_node(self, node):
                value = super().run_node(node)
                return tap(value) if node.name == wanted else value

        return Run(self.module).run(x)


@dataclasses.dataclass
class Run:
    logits: torch.Tensor
    value: torch.Tensor             # at the layer; None without a layer
    gradient: torch.Tensor          # of the score, there
    input_gradient: torch.Tensor


def run(network, x, target, guided=False):
    """One forward and one backward run."""
    kept = []

    def tap(value):
        # What follows gets a copy, so that writing in place does not change the value.
        kept.append(value)
        return value.clone()

    x = x.detach().clone().requires_grad_()
    with torch.enable_grad(), oracle.RightStrides(), Guide() if guided else contextlib.nullcontext():
        output = network(x.clone(), tap)
    logits = camlens_export.pick_logits(output)
    gradients = torch.autograd.grad(logits[0, target], [x, *kept], allow_unused=True)
    gradients = [torch.zeros_like(t) if g is None else g for t, g in zip([x, *kept], gradients)]
    return Run(logits.detach(), *([kept[0].detach(), gradients[1]] if kept else [None, None]), gradients[0])


def is_cut(network, x):
    """Whether the logits depend on the picture through the layer's value alone."""
    with torch.enable_grad():
        logits = camlens_export.pick_logits(network(x.clone().requires_grad_(), lambda value: value.detach()))
    return not logits.requires_grad


@contextlib.contextmanager
def rounded_otherwise(model, generator):
    """Adds noise of the size of ROUNDING to the result of each convolution."""
    def hook(module, inputs, output):
        size = ROUNDING * output.detach().square().mean().sqrt()
        return output + size * torch.randn(output.shape, generator=generator)

    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------------------------------------------- layouts
@dataclasses.dataclass
class Layout:
    """How a value `[1, …]` of a square picture is a map: its size, and the value as `[1, K, h, w]`."""

    size: tuple
    to_nchw: object


def layout(shape, prefix):
    """The layout that a shape shows; None where it shows none. `prefix`: how many tokens precede the grid."""
    shape = tuple(shape)
    if len(shape) == 4 and shape[0] == 1:
        _, a, b, c = shape
        if b == c:
            return Layout((b, c), lambda t: t)
        if a == b:
            return Layout((a, b), lambda t: t.permute(0, 3, 1, 2))
    if len(shape) == 3 and shape[0] == 1:
        for axis in (1, 2):
            for before in dict.fromkeys((prefix, 0, 1, 2)):
                side = math.isqrt(max(0, shape[axis] - before))
                if side > 1 and side * side + before == shape[axis]:
                    return Layout((side, side), grid(axis, before, side))
    return None


def grid(axis, before, side):
    def to_nchw(t):
        tokens = t if axis == 2 else t.transpose(1, 2)
        return tokens[:, :, before:].reshape(len(t), -1, side, side)
    return to_nchw


def prefix_tokens(model):
    if hasattr(model, "num_prefix_tokens"):
        return int(model.num_prefix_tokens)
    return int(hasattr(model, "class_token") or hasattr(model, "cls_token"))


# ---------------------------------------------------------------------------------------------------- the layer
@dataclasses.dataclass
class Call:
    paths: list
    number: int                     # of this module's calls
    values: list                    # the tensors that it returned
    maps: list                      # the layout of each


def trace_calls(model, x):
    """Every call of a module, in the order in which they end, and the graph that computed them."""
    paths = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            paths.setdefault(module, []).append(path)
    calls, counts, prefix = [], {}, prefix_tokens(model)

    def hook(module, inputs, output):
        values = tensors_of(output)
        number = counts.get(module, 0)
        counts[module] = number + 1
        calls.append(Call(paths[module], number, values, [layout(v.shape, prefix) for v in values]))

    handles = [module.register_forward_hook(hook) for module in paths]
    try:
        with torch.enable_grad():
            output = model(x.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return calls, camlens_export.pick_logits(output)


def is_picture(found):
    return found is not None and found.size > (1, 1)


def expected_module(source, name, model, calls):
    """The module whose output is the last map, by what others say of the family; None: the last map of all."""
    if source == "timm":
        info = getattr(model, "feature_info", None)
        info = info if isinstance(info, list) else getattr(info, "info", None)
        path = info[-1].get("module", "") if info else ""
        return (path, "feature_info") if path else (None, None)
    # pytorch-grad-cam's README.
    for pattern, path in [
        (r"(wide_)?resne(x)?t\d.*", f"layer4.{len(getattr(model, 'layer4', [])) - 1}"),
        (r"(vgg|densenet|mobilenet).*", "features." + list(getattr(model, "features", torch.nn.Sequential())
                                                           ._modules or [""])[-1]),
        (r"mnasnet.*", f"layers.{len(getattr(model, 'layers', [])) - 1}"),
        (r"vit_.*", f"encoder.layers.encoder_layer_{len(getattr(getattr(model, 'encoder', None), 'layers', [])) - 1}"
                    ".ln_1"),
        (r"swin_.*", "features.7.1.norm1"),
    ]:
        if re.fullmatch(pattern, name):
            return path, "pytorch-grad-cam"
    return None, None


def last_map(calls, path):
    """(index of the call, which tensor) of the last map that `path`, or any module, returns."""
    for index in reversed(range(len(calls))):
        call = calls[index]
        if path is None or path in call.paths:
            maps = [which for which, found in enumerate(call.maps) if is_picture(found)]
            # Class tokens beside a map may have the shape of tokens on a grid.
            maps.sort(key=lambda which: call.values[which].dim())
            if maps:
                return index, maps[-1]
            if path is not None:
                return None
    return None


BLOCK = re.compile(r"(.*\.)?\w*(block|layer|stage|transformer)s\w*\.(\w*_)?\d+")


def judge_layer(source, name, model, traced, x, target, network, plain):
    """The facts and the verdict on a default layer. None of it comes from camlens but the layer's name."""
    calls, logits = traced
    path, rule = expected_module(source, name, model, calls)
    expected = last_map(calls, path) if path else None
    if expected is None:
        path, rule, expected = None, "last map", last_map(calls, None)
    if expected is None:
        raise Failed("script", "no module returns a map")
    index, which = expected
    wanted, wanted_map = calls[index].values[which], calls[index].maps[which]
    facts = {"rule": rule, "expected": path or calls[index].paths[0], "expected_size": list(wanted_map.size)}

    if isinstance(network, Eager):
        at, number, chosen = network.at
        position = next(i for i, c in enumerate(calls) if at in c.paths and c.number == number)
        value = calls[position].values[chosen]
        found = calls[position].maps[chosen]
        # An adaptive pooling to the size that its input has changes nothing.
        is_after = position >= index or is_moved(value, wanted) or torch.equal(value, wanted)
    else:
        nodes = list(network.module.graph.nodes)
        node = next(n for n in nodes if n.name == network.at)
        inside = [i for i, n in enumerate(nodes) if calls[index].paths[0] in modules_of(n)]
        value = position = None
        found = layout(plain.value.shape, prefix_tokens(model))
        is_after = bool(inside) and nodes.index(node) >= inside[-1]
        facts["node"] = str(node.target)
    if not is_picture(found):
        return facts | {"verdict": f"its shape {list(plain.value.shape)} is no map"}
    facts["size"] = list(found.size)
    if found.size != wanted_map.size:
        return facts | {"verdict": f"its map is {found.size}, that of {facts['expected']} {wanted_map.size}"}
    if not found.to_nchw(plain.gradient).any():
        return facts | {"verdict": "no gradient reaches its map"}
    if value is not None and is_moved(value, wanted) and rule == "pytorch-grad-cam":
        return facts | {"verdict": "right", "why": "the layer that is named there"}
    if is_after and is_cut(network, x):
        return facts | {"verdict": "right", "why": "the trunk's last map"}

    # A class token reads the picture inside the last block: what is after it has no gradient on the grid.
    def speaks(value, found):
        (gradient,) = torch.autograd.grad(logits[0, target], value, retain_graph=True, allow_unused=True)
        return gradient is not None and bool(found.to_nchw(gradient).any())

    has_class_token = any(hasattr(model, name) for name in ("cls_token", "class_token"))
    if speaks(wanted, wanted_map) and not has_class_token:
        said = "a gradient passes beside it" if is_after else f"it comes before {facts['expected']}"
        return facts | {"verdict": said}
    # A block may return other values beside its map.
    blocks = [i for i, c in enumerate(calls) if any(BLOCK.fullmatch(p) for p in c.paths)
              and any(is_picture(m) and m.size == found.size and speaks(v, m) for v, m in zip(c.values, c.maps))]
    if value is None:
        return facts | {"verdict": "a node inside a block that ends in a class token: judge it by hand"}
    if found.to_nchw(value).shape[1] != wanted_map.to_nchw(wanted).shape[1]:
        return facts | {"verdict": f"its channels are not those of {facts['expected']}"}
    if blocks and position >= blocks[-1] and speaks(value, found):
        return facts | {"verdict": "right", "why": f"a class token reads it after {calls[blocks[-1]].paths[0]}"}
    return facts | {"verdict": "a later block's map is read: " + ", ".join(calls[i].paths[0] for i in blocks[-1:])}


MOVES = re.compile(r"(Permute|Transpose|View|UnsafeView|ReshapeAlias|Clone|Alias)Backward\d")


def is_moved(value, later):
    """Whether `later` is `value`, or holds its elements in another order or shape."""
    node = later.grad_fn
    while node is not None and node is not value.grad_fn and MOVES.fullmatch(type(node).__name__):
        node = node.next_functions[0][0]
    return later is value or (node is not None and node is value.grad_fn)


def modules_of(node):
    return {path for path, _ in (node.meta.get("nn_module_stack") or {}).values()}


# ---------------------------------------------------------------------------------------------------- camlens
class Camlens:
    """The built binary with the models of a folder, on one thread. `more`: further arguments of `serve`."""

    def __init__(self, binary, folder, *more):
        self.binary, self.folder, self.more, self.server = binary, folder, more, None
        self.sockets = tempfile.TemporaryDirectory()            # a socket's path is short
        self.address = f"unix:{self.sockets.name}/camlens.sock"
        # Kernels are timed before the first frame, so that the frame that is judged runs on the fastest.
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
                            "CAMLENS_KERNEL_TIMING": "at-start"}

    def ask(self, key, *arguments):
        """What a command prints as JSON."""
        try:
            done = subprocess.run([self.binary, *map(str, arguments)], env=self.environment, capture_output=True,
                                  text=True, timeout=CAMLENS_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(key, f"camlens {arguments[0]} took more than {CAMLENS_SECONDS} s") from None
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise Failed(key, said[-600:]) from None

    def doctor(self):
        found = self.ask("doctor", "doctor", self.folder / "models", "--layers", "--threads", "1", "--json")
        return found[0] if isinstance(found, list) else found

    def __enter__(self):
        log = self.folder / "serve.log"
        with open(log, "w", encoding="utf-8") as file:
            self.server = subprocess.Popen(
                [self.binary, "serve", "--models", self.folder / "models", "--listen", self.address, "--threads", "1",
                 *self.more],
                env=self.environment, stdout=file, stderr=file)
        deadline = time.monotonic() + CAMLENS_SECONDS
        while time.monotonic() < deadline and self.server.poll() is None:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(self.address.removeprefix("unix:"))
                return self                     # it listens once it has explained a frame with the model
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise Failed("serve", log.read_text(encoding="utf-8")[-600:] or "the server did not become ready")

    def __exit__(self, *_):
        self.server.kill()
        self.server.wait()
        self.sockets.cleanup()

    def explain(self, precision, target, has_layer, frames=1):
        """(the answer of the last frame, its maps by name, the median of the frames' computing times in ms)."""
        out = self.folder / precision
        shutil.rmtree(out, ignore_errors=True)
        maps = ["guided-backprop", "input", *(["grad-cam"] if has_layer else [])]
        found = self.ask(precision, "explain", *[self.folder / "picture.png"] * frames, "--server", self.address,
                         "--out", out, "--precision", precision, "--target", target, "--picture", "guided-backprop",
                         "--map", ",".join(maps), "--json")
        answer = found[-1]
        if "error" in answer:
            raise Failed(precision, answer["error"])
        files = answer["targets"][0]["files"]
        arrays = {kind: torch.from_numpy(np.load(file)) for kind, file in files.items() if file.endswith(".npy")}
        stages = ("forward", "backward", "fuse")
        times = [sum(f["timings_ms"].get(stage, 0) for stage in stages) for f in found[1:] or found]
        return answer, arrays, statistics.median(times)


# ---------------------------------------------------------------------------------------------------- the row
def write_picture(path, shape):
    x = weights.picture(1, *shape, seed=7)[0]
    pixels = (128 + 60 * x).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
    return (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD)[:, None, None]


def grad_cam(done, to_nchw, size):
    """Grad-CAM `[H, W]`, resized to the picture as in an answer."""
    value, gradient = to_nchw(done.value), to_nchw(done.gradient)
    heat = torch.relu((gradient.mean((2, 3), keepdim=True) * value).sum(1, keepdim=True))
    return oracle.upsample(heat, size)[0, 0]


def compare(found, wanted):
    """Distances of a map from a reference."""
    found, wanted = found.double().flatten(), wanted.double().flatten()
    norm, difference = float(wanted.norm()), float((found - wanted).norm())
    if difference == 0:
        return {"relative": 0.0, "largest": 0.0, "cosine": 1.0}
    return {
        "relative": difference / norm if norm else math.inf,
        "largest": float((found - wanted).abs().max() / wanted.abs().max()) if norm else math.inf,
        "cosine": float(found @ wanted / (found.norm() * wanted.norm())) if norm and float(found.norm()) else 0.0,
    }


def find_network(model, program, layer, shape, calls):
    """The network whose layer is the one that camlens names."""
    path, number = oracle.split(layer)
    of_path = [call for call in calls if path in call.paths]
    if of_path:
        call = of_path[number]
        fitting = [i for i, value in enumerate(call.values) if list(value.shape[1:]) == list(shape[1:])]
        if not fitting:
            shapes = ", ".join(str(list(value.shape)) for value in call.values)
            raise Failed("layer_name", f"{layer} is {shape} in camlens; the module returns {shapes}")
        return Eager(model, (path, call.number, fitting[0]))
    if any(node.name == layer for node in program.graph.nodes):
        return Exported(program, layer)
    raise Failed("layer_name", f"neither a module nor a node is named {layer}")


def float64_run(folder, name, wide, network, x, target, guided):
    """The same run in float64; None where the network cannot run in it."""
    try:
        if isinstance(network, Exported):
            other = Exported(camlens_export.load(folder / "models" / name / "1" / "model.pt2").double(), network.at)
        else:
            other = Eager(wide, network.at)
        done = run(other, x.double(), target, guided)
        return done if done.input_gradient.dtype == torch.float64 else None
    except (RuntimeError, TypeError, AssertionError):
        return None


def write_row(row, source, name, binary, folder, fed=True):
    model, shape = build(source, name, fed)
    row |= {"parameters": sum(p.numel() for p in model.parameters()), "input": shape}
    exported, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    started = time.monotonic()
    version = folder / "models" / name / "1"
    try:
        camlens_export.export(exported, version, shape, description={"input": {"mean": MEAN, "std": STD}})
    except camlens_export.ExportError as error:
        # What deploy/export refuses although torch.export can export it is camlens's affair.
        is_own = not str(error).startswith("torch.export failed")
        raise Failed("deploy/export" if is_own else "export", str(error)) from None
    row["export_s"] = time.monotonic() - started
    del exported
    x = write_picture(folder / "picture.png", shape)[None]
    camlens = Camlens(binary, folder)

    started = time.monotonic()
    doctor = camlens.doctor()
    row["doctor_s"] = time.monotonic() - started
    row["checks"] = {c["check"]: c for c in doctor["checks"] if c["verdict"] != "good"}
    if doctor["model"] is None:
        raise Failed("load", doctor["checks"][0]["seen"])
    row |= {"rectifiers": doctor["model"]["rectifiers"], "layers": doctor["model"]["default_target_layers"]}
    problem = row["checks"].get("target layer", {}).get("seen")
    if problem:
        row["sentence"] = problem
    with camlens:
        compare_maps(row, source, name, camlens, doctor["model"], model, wide, x)


def compare_maps(row, source, name, camlens, described, model, wide, x):
    has_layer = bool(row["layers"])
    started = time.monotonic()
    answer, exact, _ = camlens.explain("exact", "top:1", has_layer)
    row["exact_s"] = time.monotonic() - started
    started = time.monotonic()
    row["target"] = target = answer["targets"][0]["class_index"]
    _, fast, row["camlens_ms"] = camlens.explain("float32", target, has_layer, frames=TIMED_FRAMES)
    row["fast_s"] = time.monotonic() - started
    row["input_error"] = compare(exact["input"].reshape(x.shape), x)["relative"]
    x = exact["input"].reshape(x.shape).clone()

    traced = trace_calls(model, x)
    highest = int(traced[1][0].argmax())
    if highest != target:
        raise Failed("numbers", f"camlens explains class {target}, PyTorch's highest is {highest}")
    network = Eager(model)
    if has_layer:
        (layer,) = row["layers"]
        program = camlens_export.load(camlens.folder / "models" / name / "1" / "model.pt2").requires_grad_(False)
        entry = next((e for e in described["layers"] if layer in e["names"]), None)
        row["names"] = entry["names"] if entry else []
        network = find_network(model, program, layer, entry["shape"] if entry else [], traced[0])
        row["reference_from"] = "module" if isinstance(network, Eager) else "node"
    started = time.monotonic()
    plain = run(network, x, target)
    guided = run(Eager(model), x, target, guided=True)
    row["pytorch_ms"] = (time.monotonic() - started) * 1e3
    wanted = {"guided_backprop": guided.input_gradient[0]}
    if has_layer:
        row["layer"] = judge_layer(source, name, model, traced, x, target, network, plain)
    del traced
    plain64 = float64_run(camlens.folder, name, wide, network, x, target, False) if has_layer else None
    guided64 = float64_run(camlens.folder, name, wide, Eager(model), x, target, True)
    wanted64 = {"guided_backprop": guided64.input_gradient[0] if guided64 else None}
    if has_layer:
        found = layout(plain.value.shape, prefix_tokens(model))
        if found is None:
            raise Failed("script", f"the layer's shape {list(plain.value.shape)} is no map")
        wanted["grad_cam"] = grad_cam(plain, found.to_nchw, x.shape[2:])
        wanted64["grad_cam"] = grad_cam(plain64, found.to_nchw, x.shape[2:]) if plain64 else None

    # A gate whose input is near zero flips in some of float32's roundings and not in others: the distance of a single
    # run from float64 says little. Inputs one unit in the last place away are float32's rounding of the same picture.
    others = {kind: [] for kind in wanted}
    for limit in (math.inf, -math.inf):
        moved = torch.nextafter(x, torch.tensor(limit))
        others["guided_backprop"].append(run(Eager(model), moved, target, guided=True).input_gradient[0])
        if has_layer:
            others["grad_cam"].append(grad_cam(run(network, moved, target), found.to_nchw, x.shape[2:]))

    row["maps"] = {}
    for kind, reference in wanted.items():
        if exact[kind].numel() != reference.numel():
            raise Failed("numbers", f"{kind} is {list(exact[kind].shape)}, PyTorch's {list(reference.shape)}")
        entry = row["maps"][kind] = {"norm": float(reference.double().norm())}
        for mode, maps in (("exact", exact), ("fast", fast)):
            entry[mode] = compare(maps[kind], reference)
            if wanted64[kind] is not None:
                entry[f"{mode}64"] = compare(maps[kind], wanted64[kind])
        if wanted64[kind] is not None:
            entry["own"] = compare(reference, wanted64[kind])["relative"]
            entry["float32"] = max(
                [entry["own"], *(compare(other, wanted64[kind])["relative"] for other in others[kind])]
            )
    entry = row["maps"]["guided_backprop"]
    if "own" in entry and entry["fast64"]["relative"] > max(FAR, FLIPPED * entry["float32"]):
        generator, entry["rounded"] = torch.Generator().manual_seed(5), []
        for _ in range(ROUNDED_RUNS):
            with rounded_otherwise(model, generator):
                again = run(Eager(model), x, target, guided=True).input_gradient[0]
            entry["rounded"].append(compare(again, wanted64["guided_backprop"])["relative"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=["timm", "torchvision"])
    parser.add_argument("name")
    parser.add_argument("--camlens", required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row = {"source": args.source, "name": args.name}
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    started = time.monotonic()
    try:
        write_row(row, args.source, args.name, args.camlens, args.folder)
        if row["maps"]["guided_backprop"].get("own", 0) > SANE:
            shutil.rmtree(args.folder)
            args.folder.mkdir()
            row = {"source": args.source, "name": args.name, "unfed": row["maps"]["guided_backprop"]["own"]}
            write_row(row, args.source, args.name, args.camlens, args.folder, fed=False)
    except Failed as failure:
        row["failed"] = [failure.key, str(failure)]
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)
    row["seconds"] = time.monotonic() - started
    print(json.dumps(row))


if __name__ == "__main__":
    main()
