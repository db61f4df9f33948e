"""Exports an image model as a directory that camlens serves: `model.pt2`, `model.toml`, labels and a check.

    deploy/export my_package.my_module:build --out models/my_model/1 --input 3x224x224
    deploy/export path/to/file.py:build --out models/my_model/1 --input 1x96x128 --mean 0.5 --std 0.25
    deploy/export torchvision:resnet50 --out models/resnet50/1
    deploy/export timm:resnet18.a1_in1k --out models/resnet18/1
    deploy/export timm:resnet18 --checkpoint best.pth --classes 2 --labels labels.txt --out models/mine/1

`build` is a function (or a class) without arguments that returns a `torch.nn.Module` with its weights loaded, or such a
module itself. A name of torchvision or timm brings its pretrained weights, preprocessing and labels along; with
`--checkpoint` it takes its weights from a file that `torch.save` or safetensors wrote, and the labels are yours.

The directory then holds:

    model.pt2           the exported program, without sample inputs (a pickle) and without paths of this machine
    model.toml          what the model file cannot say: preprocessing, labels, target layers
    labels.txt          one label a line, in class order, where labels are known
    check/input.npy     float32 [1, C, H, W]: an input after preprocessing
    check/logits.npy    float32 [1, classes]: PyTorch's logits for it, which `camlens doctor` compares with camlens's

It needs PyTorch 2.9 or newer and nothing else. You may copy this file and use it alone, from the shell or as a module.
"""

import argparse
import contextlib
import copy
import ctypes
import difflib
import functools
import importlib
import importlib.util
import io
import json
import logging
import math
import os
import pathlib
import re
import struct
import sys
import tempfile
import warnings
import zipfile

OLDEST_TORCH = (2, 9)
EXAMPLE_BATCH = 2
# Metadata of a node that a reader needs. The rest (stack traces above all) tells where the model was exported.
KEPT_METADATA = ("nn_module_stack",)
# Token models cannot say their grid themselves: (name pattern, the `[explain]` table for an input of `side` pixels).
TOKEN_MODELS = [
    (r"vit_[blh]_(?P<patch>\d+)", lambda m, side, layers: {
        "target_layers": [f"encoder.layers.encoder_layer_{layers - 1}.ln_1"],
        "token_grid": [side // int(m["patch"])] * 2, "class_tokens": 1}),
    (r"swin_(v2_)?[tsb]", lambda m, side, layers: {"target_layers": ["features.7"], "channels_last": True}),
]


class ExportError(Exception):
    """The model cannot be exported; the message says why and what would help."""


def import_torch():
    try:
        import torch
    except ImportError:
        raise ExportError(f"PyTorch is not installed in {sys.executable}: pip install torch") from None
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < OLDEST_TORCH:
        raise ExportError(f"PyTorch {torch.__version__} writes weights as a pickle, which camlens never opens; "
                          "PyTorch 2.9 or newer is needed")
    return torch


# ---------------------------------------------------------------------------------------------------- the model
def build_model(spec, weights="DEFAULT", checkpoint=None, classes=None):
    """`module:attribute`, `file.py:attribute`, `torchvision:name` or `timm:name` -> (module, what is known about it).

    What is known: a dict with `description` (tables of model.toml), `labels` and `input` ([C, H, W]), each optional.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise ExportError(f"{spec!r} is not MODULE:ATTRIBUTE, FILE.py:ATTRIBUTE, torchvision:NAME or timm:NAME")
    if where in ("torchvision", "timm"):
        if checkpoint is None and classes is not None:
            raise ExportError("--classes goes with --checkpoint: pretrained weights have their own classes")
        build = build_torchvision if where == "torchvision" else build_timm
        if checkpoint is None:
            return build(name, weights)
        tensors = read_checkpoint(checkpoint)
        model, known = build(name, "none", classes)
        load_tensors(model, tensors, checkpoint)
        known.get("description", {}).pop("summary", None)
        return model, known
    if checkpoint is not None or classes is not None:
        raise ExportError("--checkpoint and --classes go with torchvision:NAME or timm:NAME; build() loads its own")
    sys.path.insert(0, os.getcwd())
    try:
        if where.endswith(".py"):
            sys.path.insert(0, os.path.dirname(os.path.abspath(where)))
            found = importlib.util.spec_from_file_location(pathlib.Path(where).stem, where)
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except FileNotFoundError:
        raise ExportError(f"no file {where}") from None
    except ModuleNotFoundError as error:
        raise ExportError(f"importing {where}: {error} (run this where `import {where}` works)") from None
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ExportError(f"{where} has no {name!r}; it has {', '.join(public) or 'nothing public'}")
    return as_module(getattr(module, name), spec), {}


def as_module(thing, spec):
    import torch
    if isinstance(thing, torch.jit.ScriptModule):
        raise ExportError(f"{spec} is TorchScript; give the nn.Module that it was made from")
    if isinstance(thing, torch.nn.Module):
        return thing
    if not callable(thing):
        kind = type(thing).__name__
        raise ExportError(f"{spec} is of type {kind}, neither an nn.Module nor a function that returns one")
    try:
        made = thing()
    except TypeError as error:
        raise ExportError(f"{spec} must work without arguments: {error}") from error
    if not isinstance(made, torch.nn.Module):
        raise ExportError(f"{spec}() returned a value of type {type(made).__name__}, not an nn.Module")
    return made


def read_checkpoint(path):
    """The tensors of a checkpoint by name. Only tensors are unpickled: a file may hold code."""
    import torch
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ExportError("safetensors is not installed: pip install safetensors") from None
        return load_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"{path}: {error}") from error
    except Exception as error:
        raise ExportError(f"{path} is no checkpoint of tensors alone. One with Python objects may run code and is not "
                          "read: save model.state_dict() with torch.save") from error
    # As training scripts nest it: Lightning and most others, timm with the averaged weights first.
    for key in ("state_dict_ema", "state_dict", "model_state_dict", "model", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ExportError(f"{path} holds no dictionary of tensors: save model.state_dict() with torch.save")
    return found


def load_tensors(model, tensors, path):
    """Loads tensors into a model, every one of it; names may have the prefix that a wrapper gave them."""
    own = model.state_dict()
    for prefix in ("", "module.", "model.", "_orig_mod."):
        cut = {name.removeprefix(prefix): value for name, value in tensors.items()}
        if set(own) <= set(cut):
            break
    else:
        cut = tensors
    missing, others = sorted(set(own) - set(cut)), sorted(set(cut) - set(own))
    if missing or others:
        listed = [f"{len(names)} {what}, such as {names[0]}" for what, names in
                  (("are missing", missing), ("are not the model's", others)) if names]
        raise ExportError(f"{path} does not fit the model: of its tensors {'; '.join(listed)}")
    for name, value in own.items():
        if value.shape != cut[name].shape:
            raise ExportError(f"{path}: {name} is {list(cut[name].shape)}, and the model's is {list(value.shape)}; "
                              "does --classes say how many classes it was trained for?")
    model.load_state_dict(cut)


def build_timm(name, weights, classes=None):
    try:
        import timm
    except ImportError:
        raise ExportError("timm is not installed: pip install timm") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 8)
        raise ExportError(f"timm has no model {name!r}" + (f"; it has {', '.join(near)}" if near else ""))
    random = weights.lower() == "none"
    if not random and weights != "DEFAULT":
        raise ExportError(f"timm has the weights in the model's name, timm:{name}.{weights}: --weights is DEFAULT or "
                          "none")
    try:
        model = timm.create_model(name, pretrained=not random, **({} if classes is None else {"num_classes": classes}))
    except (OSError, RuntimeError) as error:
        raise ExportError(f"timm cannot make {name}: {first_line(error)}; "
                          "--weights none exports random ones") from error
    config = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    description = {"input": {"interpolation": config["interpolation"], "mean": list(config["mean"]),
                             "std": list(config["std"])}}
    # As timm.data.create_transform does it: the shorter side, or both sides, of a picture larger than the crop.
    scaled = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    if config["crop_mode"] == "center" and height == width:
        description["input"] |= {"resize": scaled[0], "crop": [height, width]}
    elif config["crop_mode"] == "squash":
        description["input"] |= {"resize": scaled, "crop": [height, width]}
    else:
        raise ExportError(f"timm prepares pictures of {name} with crop_mode {config['crop_mode']!r} for "
                          f"{height}x{width}, which model.toml cannot say")
    patches = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    blocks = getattr(model, "blocks", None)
    if patches and blocks is not None and hasattr(model, "num_prefix_tokens"):
        description["explain"] = {"target_layers": [f"blocks.{len(blocks) - 1}.norm1"], "token_grid": list(patches),
                                  "class_tokens": model.num_prefix_tokens}
    known = {"input": [channels, height, width], "description": description}
    if not random:
        description["summary"] = f"timm's {name}"
        labels = timm_labels(model, timm)
        if labels:
            known["labels"] = labels
    return model, known


def timm_labels(model, timm):
    """The labels of pretrained weights, where timm knows them."""
    known = model.pretrained_cfg.get("label_names")
    if known:
        return list(known)
    if model.num_classes != 1000:
        return None
    info = timm.data.ImageNetInfo()
    return [info.index_to_description(index) for index in range(1000)]


def build_torchvision(name, weights, classes=None):
    try:
        import torchvision
    except ImportError:
        raise ExportError("torchvision is not installed: pip install torchvision") from None
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ExportError(f"torchvision has no image classifier {name!r}; it has {', '.join(known)}")
    side = 299 if name == "inception_v3" else 224
    if weights.lower() == "none":
        import torch
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torchvision.models.get_model(name, weights=None, **({} if classes is None else
                                                                       {"num_classes": classes}))
        return model, {"input": [3, side, side], "description": {"explain": token_description(name, side, model)}}
    try:
        chosen = torchvision.models.get_model_weights(name)[weights]
    except KeyError:
        raise ExportError(f"{name} has no weights {weights!r}: none, "
                          f"{', '.join(w.name for w in torchvision.models.get_model_weights(name))}") from None
    try:
        model = torchvision.models.get_model(name, weights=chosen)
    except OSError as error:
        raise ExportError(f"the weights of {name} could not be downloaded ({error}); "
                          "--weights none exports random ones") from error
    preset = chosen.transforms()
    side = preset.crop_size[0]
    return model, {
        "input": [3, side, side],
        "labels": list(chosen.meta["categories"]),
        "description": {
            "summary": f"torchvision's {name}, weights {chosen.name}",
            "input": {"resize": preset.resize_size[0], "crop": [side, side],
                      "interpolation": preset.interpolation.value, "mean": list(preset.mean), "std": list(preset.std)},
            "explain": token_description(name, side, model),
        },
    }


def token_description(name, side, model):
    for pattern, describe in TOKEN_MODELS:
        if match := re.fullmatch(pattern, name):
            return describe(match, side, len(getattr(getattr(model, "encoder", None), "layers", ())))
    return {}


# ---------------------------------------------------------------------------------------------------- the trace
def picture(rows, channels, height, width, seed=0):
    """Smooth structure plus noise, `[rows, channels, height, width]`, about mean 0 and deviation 1."""
    import torch
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(rows, channels, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(rows, channels, height, width, generator=generator)


def input_dtype(model):
    """The dtype that the model's first floating-point weight has."""
    import torch
    tensors = [*model.parameters(), *model.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def trace(model, shape, dynamic_size=False, note=lambda text: None):
    """Exports `model` for inputs `[N, *shape]`: for any batch size where forward() allows it, else for one row."""
    import torch
    auto = torch.export.Dim.AUTO
    dimensions = {0: auto, 2: auto, 3: auto} if dynamic_size else {0: auto}
    example = picture(EXAMPLE_BATCH, *shape).to(input_dtype(model))
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)      # the fused operator has no derivative
    try:
        with torch.inference_mode(False), torch.enable_grad():
            program = run_export(model, example, (dimensions,))
            sizes = input_sizes(program)
            if is_fixed(sizes[0]):
                note("forward() fixes the batch size (a reshape with a number in it, or int(x.shape[0])): "
                     "exported for one image at a time. camlens will not batch this model.")
                program = run_export(model, example[:1], None if not dynamic_size else ({2: auto, 3: auto},))
                sizes = input_sizes(program)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    if dynamic_size and (is_fixed(sizes[2]) or is_fixed(sizes[3])):
        raise ExportError(f"forward() fixes the height or width to {shape[1]}x{shape[2]}: "
                          "export without --dynamic-size")
    refuse_what_cannot_be_explained(program)
    return program


def run_export(model, example, dynamic_shapes):
    import torch
    logging.disable(logging.ERROR)                      # the exporter's own dumps; what matters is in the exception
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example,), dynamic_shapes=dynamic_shapes, strict=False)
    except TypeError as error:
        if "forward()" in str(error) or "argument" in str(error):
            raise ExportError(f"the model must take exactly one tensor [N, C, H, W]: {error}") from error
        raise ExportError(f"torch.export failed: {first_line(error)}") from error
    except Exception as error:
        raise ExportError(f"torch.export failed ({type(error).__name__}): {first_line(error)}\n"
                          "  It cannot follow Python that branches on pixel values. Does the model take "
                          f"{list(example.shape)} of {example.dtype}?") from error
    finally:
        logging.disable(logging.NOTSET)


def first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def input_sizes(program):
    users = [s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    return next(n for n in program.graph.nodes if n.name == users[0]).meta["val"].shape


def is_fixed(size):
    """Did tracing settle on one number? (A symbol may have become one: then its expression is that number.)"""
    return isinstance(size, int) or size.node.expr.is_number


RANDOM = {"rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "bernoulli", "bernoulli_", "normal",
          "normal_", "uniform_", "multinomial", "randperm", "exponential_"}


def refuse_what_cannot_be_explained(program):
    """Finds what camlens would refuse at load, while the author is still here to change it."""
    import torch
    pictures = set(program.graph_signature.user_inputs)
    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        # Values that depend on the picture; in an inner graph, all of them.
        outermost = module is program.graph_module
        dependent = {n for n in module.graph.nodes if n.op == "placeholder" and (not outermost or n.name in pictures)}
        for node in module.graph.nodes:
            if dependent.intersection(node.all_input_nodes):
                dependent.add(node)
            if node.op != "call_function":
                continue
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                if not is_inlined(node):
                    raise ExportError(f"{place(node)} uses {node.target.__name__} (torch.cond, autocast, scan ...): "
                                      "camlens cannot explain a graph within the graph; export one branch, without "
                                      "autocast")
                continue
            if not isinstance(node.target, torch._ops.OpOverload):
                continue
            schema = node.target._schema
            given = dict(zip((a.name for a in schema.arguments), node.args)) | node.kwargs
            name = schema.name.split("::")[1]
            trains = given.get("train") is True or given.get("training") is True or given.get("dropout_p", 0.0)
            if trains and node in dependent:
                raise ExportError(f"{place(node)} runs {name} in training mode although the model is in evaluation "
                                  "mode: pass training=self.training to the functional call in forward()")
            if name in RANDOM:
                raise ExportError(f"{place(node)} draws random numbers ({name}): each run would give another "
                                  "explanation")


def is_inlined(node):
    """Whether camlens inlines a graph within the graph: torch.no_grad, and an autocast that is off or of another
    device than the CPU."""
    name = node.target.__name__
    if name == "wrap_with_autocast":
        device, _, enabled = node.args[:3]
        return not enabled or device != "cpu"
    return name == "wrap_with_set_grad_enabled"


def place(node):
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return f"module {paths[-1]!r}" if paths else "forward()"


# ---------------------------------------------------------------------------------------------------- the file
def save(program, path):
    """Writes `program` to `path`, stripped, in one step (a reader sees the old file or the new one)."""
    import torch
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        raw, stripped = os.path.join(scratch, "raw.pt2"), os.path.join(scratch, "stripped.pt2")
        torch.export.save(program, raw)
        strip(raw, stripped)
        os.replace(stripped, path)


def load(path):
    """The program in `path` as a callable; the file that was just written, so nothing in it is foreign."""
    import torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                 # torch 2.11 warns about its own read-only buffers
        return torch.export.load(path).module()


def strip(source, target):
    """Copies a `.pt2` without what the exporter's machine left in it; the same program gives the same bytes each time.

    Node metadata keeps KEPT_METADATA alone. `sample_inputs` becomes an empty entry: PyTorch's own reader insists on one
    and takes an empty one for "none". Entries stay uncompressed and their data 64-byte aligned, as PyTorch writes them.
    """
    with (zipfile.ZipFile(source) as read, open(target, "wb") as file,
          zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as write):
        for entry in read.infolist():
            name = entry.filename.partition("/")[2]
            data = read.read(entry)
            if name == ".data/serialization_id":
                continue
            if name.startswith("data/sample_inputs/"):
                data = b""
            elif name.startswith("models/") and name.endswith(".json"):
                data = json.dumps(without_traces(json.loads(data)), separators=(",", ":"), ensure_ascii=False).encode()
            info = zipfile.ZipInfo("model/" + name, (1980, 1, 1, 0, 0, 0))
            header = file.tell() + 30 + len(info.filename.encode())
            padding = -(header + 4) % 64
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            write.writestr(info, data)


def without_traces(value):
    """The JSON document with each node's metadata cut to KEPT_METADATA, sub-graphs included."""
    if isinstance(value, list):
        return [without_traces(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "target" in value and isinstance(value.get("metadata"), dict):
        value = value | {"metadata": {k: v for k, v in value["metadata"].items() if k in KEPT_METADATA}}
    return {k: without_traces(v) for k, v in value.items()}


def save_npy(path, tensor):
    """A tensor as float32 `.npy` (format 1.0, C order), without NumPy."""
    import torch
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    shape = "".join(f"{n}, " for n in tensor.shape)
    shape = shape.strip() if tensor.dim() == 1 else shape.rstrip(", ")
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ctypes.string_at(tensor.data_ptr(), tensor.numel() * 4) if tensor.numel() else b""
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)


# ---------------------------------------------------------------------------------------------------- logits
def named_outputs(output, at=()):
    """Tensors of a model's output by the names that camlens gives them: `species`, `nested.1.k`, `0`, or '' for one."""
    if hasattr(output, "shape"):
        return [(".".join(at), output)]
    if isinstance(output, dict):
        pairs = output.items()
    elif isinstance(output, (list, tuple)):
        pairs = enumerate(output)
    else:
        return []
    return [found for key, value in pairs for found in named_outputs(value, (*at, str(key)))]


def pick_logits(output, name=None):
    """The tensor `[N, classes]` to explain: output `name`, or the first."""
    outputs = named_outputs(output)
    if not outputs:
        raise ExportError(f"forward() returns {type(output).__name__} without a tensor in it")
    names = ", ".join(f"{n or '(the only one)'} {list(t.shape)}" for n, t in outputs)
    chosen = outputs[0][1] if name is None else dict(outputs).get(name)
    if chosen is None:
        raise ExportError(f"no output {name!r}; the model has {names}")
    if chosen.dim() != 2 or chosen.shape[1] < 1:
        raise ExportError(f"the output has shape {list(chosen.shape)}, logits are [N, classes]; "
                          f"--logits NAME picks one of: {names}")
    return chosen


def relative_error(found, wanted):
    found, wanted = found.double(), wanted.double()
    norm = float(wanted.norm())
    return float((found - wanted).norm()) / norm if norm else float(found.norm())


# ---------------------------------------------------------------------------------------------------- model.toml
def toml_value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def toml(description):
    """model.toml's text: keys before tables, empty values left out (each key has a default)."""
    filled = {k: v for k, v in description.items() if v not in (None, "", [], {})}
    lines = [f"{k} = {toml_value(v)}" for k, v in filled.items() if not isinstance(v, dict)]
    for table, keys in filled.items():
        if isinstance(keys, dict):
            pairs = [f"{k} = {toml_value(v)}" for k, v in keys.items() if v not in (None, "", [], {})]
            lines += ["", f"[{table}]", *pairs] if pairs else []
    return "\n".join(lines).strip("\n") + "\n"


# ---------------------------------------------------------------------------------------------------- all together
def export(model, out, shape, *, description=None, labels=None, dynamic_size=False, check=True, check_input=None,
           note=lambda text: None):
    """Writes the directory `out` for `model` and inputs `[N, *shape]`; returns the logits of the check input, or None.

    description   tables of model.toml
    labels        one text per class
    check_input   `[1, C, H, W]` after preprocessing, instead of a made-up picture
    """
    import torch
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = model.cpu().eval()
    program = trace(model, shape, dynamic_size, note)
    description = {k: dict(v) if isinstance(v, dict) else v for k, v in (description or {}).items()}
    logits_name = description.get("output", {}).get("logits")
    given = check_input if check_input is not None else picture(1, *shape, seed=1)
    given = given.to(input_dtype(model))
    with tempfile.TemporaryDirectory(dir=out) as scratch:       # a failed export leaves nothing behind
        made = pathlib.Path(scratch)
        save(program, made / "model.pt2")
        with torch.no_grad():
            # The reloaded file first: what the model's forward() changes in its own buffers must not reach it.
            exported = pick_logits(load(made / "model.pt2")(given.clone()), logits_name)
            wanted = pick_logits(model(given.clone()), logits_name)
        error = relative_error(exported, wanted)
        if not error <= 1e-4 * max(1.0, torch.finfo(wanted.dtype).eps / torch.finfo(torch.float32).eps):
            raise ExportError(f"the exported program gives other logits than the model (relative error {error:.1e}): "
                              "forward() depends on something that was fixed at export, such as a Python value "
                              "computed from pixels")
        if labels is not None:
            if len(labels) != wanted.shape[1]:
                raise ExportError(f"{len(labels)} labels for {wanted.shape[1]} classes")
            lines = "".join(label.replace("\n", " ") + "\n" for label in labels)
            (made / "labels.txt").write_text(lines, encoding="utf-8")
            description.setdefault("output", {})["labels_file"] = "labels.txt"
        (made / "model.toml").write_text(toml(description), encoding="utf-8")
        if check:
            save_npy(made / "check" / "input.npy", given)
            save_npy(made / "check" / "logits.npy", wanted)
            (out / "check").mkdir(exist_ok=True)
        for file in [f for f in made.rglob("*") if f.is_file()]:
            os.replace(file, out / file.relative_to(made))
    return wanted if check else None


def numbers(text):
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: one number, or one per channel with commas between") from None


def sizes(count):
    def parse(text):
        parts = text.lower().split("x")
        if len(parts) not in count or not all(p.isdigit() and int(p) > 0 for p in parts):
            raise argparse.ArgumentTypeError(f"{text!r}: like {'x'.join(['3', '224', '224'][-max(count):])}")
        return [int(p) for p in parts]
    return parse


def arguments():
    lines = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(prog="deploy/export", description=lines[0] + "\n\n" + lines[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="MODULE:ATTRIBUTE, FILE.py:ATTRIBUTE, torchvision:NAME or timm:NAME")
    add("--out", required=True, type=pathlib.Path, help="the version directory, MODELS/NAME/VERSION")
    add("--input", type=sizes([3]), metavar="CxHxW", help="size of one input (known for torchvision and timm)")
    add("--labels", type=pathlib.Path, help="a text file with one label a line, in class order")
    add("--mean", type=numbers, help="per channel, after division by 255 (default 0)")
    add("--std", type=numbers, help="per channel, after division by 255 (default 1)")
    add("--resize", type=sizes([1, 2]), metavar="N|HxW", help="shorter side, or height x width, before the crop")
    add("--crop", type=sizes([2]), metavar="HxW", help="centre crop")
    add("--interpolation", choices=["nearest", "bilinear", "bicubic", "lanczos"])
    add("--color", choices=["rgb", "bgr", "gray"], help="channels that the model takes")
    add("--logits", metavar="NAME", help="which output holds the logits, when the model has several")
    add("--target-layer", action="append", metavar="PATH", help="layer that Grad-CAM looks at (may be given again)")
    add("--token-grid", type=sizes([2]), metavar="HxW", help="grid of a token layer [N, tokens, channels]")
    add("--class-tokens", type=int, metavar="N", help="leading tokens outside the grid")
    add("--channels-last", action="store_true", help="target layers give [N, H, W, C]")
    add("--dynamic-size", action="store_true", help="inputs of any height and width")
    add("--summary", help="one sentence for people")
    add("--license", help="the weights' licence and origin, for people")
    add("--weights", default="DEFAULT", help="torchvision: which weights; none: random ones")
    add("--checkpoint", type=pathlib.Path, metavar="FILE",
        help="torchvision, timm: a state_dict that torch.save wrote, or .safetensors, instead of pretrained weights")
    add("--classes", type=int, metavar="N", help="with --checkpoint: how many classes it was trained for")
    add("--check", action=argparse.BooleanOptionalAction, default=True, help="write check/ for camlens doctor")
    add("--force", action="store_true", help="replace a model that is already there")
    return parser.parse_args()


def described(args, known, shape):
    """model.toml's tables: what is known about the model, overruled by what was asked for."""
    base = copy.deepcopy(known.get("description", {}))
    color = args.color or ("gray" if shape[0] == 1 else None)
    resize = args.resize[0] if args.resize and len(args.resize) == 1 else args.resize
    asked = {
        "summary": args.summary, "license": args.license,
        "input": {"resize": resize, "crop": args.crop, "interpolation": args.interpolation, "color": color,
                  "mean": args.mean, "std": args.std},
        "output": {"logits": args.logits},
        "explain": {"target_layers": args.target_layer, "token_grid": args.token_grid,
                    "class_tokens": args.class_tokens, "channels_last": args.channels_last or None},
    }
    for key, value in asked.items():
        if isinstance(value, dict):
            base[key] = base.get(key, {}) | {k: v for k, v in value.items() if v is not None}
        elif value is not None:
            base[key] = value
    for key in ("mean", "std"):
        if len(base["input"].get(key, [])) not in (0, 1, shape[0]):
            raise ExportError(f"--{key} has {len(base['input'][key])} numbers for {shape[0]} channels")
    return base


def main():
    args = arguments()
    note = functools.partial(print, "note:", file=sys.stderr, flush=True)
    try:
        import_torch()
        if (args.out / "model.pt2").exists() and not args.force:
            raise ExportError(f"{args.out} already holds a model; give the next version's directory, or --force")
        if not re.fullmatch(r"[1-9]\d*", args.out.name):
            note(f"camlens serves NAME/VERSION with a whole number as VERSION; {args.out.name!r} is none")
        model, known = build_model(args.model, args.weights, args.checkpoint, args.classes)
        shape = args.input or known.get("input")
        if not shape:
            raise ExportError("--input CxHxW is needed: the size of one input, such as 3x224x224")
        labels = known.get("labels")
        if args.labels:
            labels = args.labels.read_text(encoding="utf-8").splitlines()
        description = described(args, known, shape)
        if not description["input"].get("std"):
            note("neither --mean nor --std: camlens will feed pixels divided by 255")
        logits = export(model, args.out, shape, description=description, labels=labels, dynamic_size=args.dynamic_size,
                        check=args.check, note=note)
    except (ExportError, OSError) as error:
        sys.exit(f"deploy/export: {error}")
    size = (args.out / "model.pt2").stat().st_size
    megabytes = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{math.ceil(size / 1e3)} kB"
    print(f"{args.out}: model.pt2 ({megabytes}), model.toml{', labels.txt' if labels else ''}")
    if logits is not None:
        highest = int(logits[0].argmax())
        print(f"PyTorch's logits for check/input.npy: {logits.shape[1]} classes, the highest is {highest}. "
              f"Compare camlens with them: camlens doctor {args.out}")


if __name__ == "__main__":
    main()
