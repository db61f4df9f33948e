#!/usr/bin/env python3
"""Runs the libraries that camlens is compared with, one run per request, so that the bench can interleave them.

    $(deploy/python-env bench) tests/bench/peers.py --model NAME [--rows 1] [--threads 2] --export DIR

Writes the network, seeded, as `DIR/NAME/1/model.pt2` and its input as `DIR/NAME/input-ROWS.npy` (float32
`[rows, 3, 224, 224]`), then prints `{"ready": true, "runs": [...], "cannot": {RUN: REASON}, ...}` and answers each line
of standard input with a line of JSON:

    run NAME      {"run": NAME, "seconds": S}; the runs are
                  captum, captum-5                        GuidedGradCam, bilinear; one class for each row, and five
                  pytorch-grad-cam, pytorch-grad-cam-5    GradCAM times GuidedBackpropReLUModel, which takes one image
                                                          at a time
                  torch, openvino, onnxruntime            the forward run alone
                  openvino-bf16                           the same in bfloat16, if the processor supports it
    check FILE    {"captum": E, "oracle": E}: the relative L2 of FILE (`.npy`, F of the first row and its first
                  class, by Captum's convention) from each; Captum's is left out where Captum cannot run the network
    quit          ends, as the end of input does

A request that fails is answered with {"error": TEXT}. Objects are made once and reused. ReLU modules are not in place
here, because Captum raises an error on those; camlens takes the network as it is. Without ReLU modules in a network,
the libraries guide nothing, which is less work; `guided` in the first line says so.
"""

import argparse
import copy
import json
import pathlib
import sys
import tempfile
import time

import numpy as np
import torch
import torchvision

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "reference"), str(HERE.parents[1] / "deploy")]
import camlens_export  # noqa: E402
import oracle  # noqa: E402
import weights  # noqa: E402

SHAPE, CLASSES = (3, 224, 224), [281, 282, 7, 340, 999]
# As in `ours.rs`: the pause before each run in seconds, until threads of the previous run stop spinning; and the
# seconds below which a run is done twice and the second is measured.
PAUSE, LONG = 0.05, 0.3


def efficientnet_lite0():
    from efficientnet_lite_pytorch import EfficientNet
    return EfficientNet.from_name("efficientnet-lite0")


def tokens(values):
    """`[N, 1 + 14 · 14, C]` as `[N, C, 14, 14]`, for libraries that need a map."""
    return values[:, 1:].transpose(1, 2).reshape(values.shape[0], values.shape[2], 14, 14)


# The target layer of each network.
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "vgg16": "features.29",
    "densenet121": "features",
    "mobilenet_v2": "features.18",
    "efficientnet_lite0": "_bn1",
    "convnext_tiny": "features.7",
    "vit_b_16": "encoder.layers.encoder_layer_11.ln_1",
}
# Settings for the export of a network.
MORE = {"vit_b_16": {"token_grid": [14, 14], "class_tokens": 1}}


def network(name):
    own = {"efficientnet_lite0": efficientnet_lite0}.get(name, lambda: torchvision.models.get_model(name, weights=None))
    return weights.build(own, SHAPE)


def layer_of(model, name):
    return model.get_submodule(LAYERS[name])


class Peers:
    """The libraries' objects, each with its own copy of the network (they change it while they run)."""

    def __init__(self, name, model, x, threads):
        self.name, self.model, self.x = name, model, x
        self.rectified = any(isinstance(module, torch.nn.ReLU) for module in model.modules())
        self.runs = {"torch": self.torch}
        self.cannot = {}
        self.attempt("captum", self.captum_runs)
        self.attempt("pytorch-grad-cam", self.cam_runs)
        self.attempt("openvino", lambda: self.openvino_runs(threads))
        self.attempt("onnxruntime", lambda: self.onnxruntime_runs(threads))

    def attempt(self, name, make):
        """Runs each library once, for set-up; one that fails on the network is reported and left out."""
        try:
            runs = make()
            for run in runs.values():
                run()
            self.runs |= runs
        except Exception as error:
            self.cannot[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]

    def own_network(self):
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False
        return model

    def captum_runs(self):
        from captum.attr import GuidedGradCam
        model = self.own_network()
        attribution = GuidedGradCam(model, layer_of(model, self.name))

        def run(classes):
            for c in classes:
                targets = [c] * len(self.x)
                last = attribution.attribute(self.x.clone(), target=targets, interpolate_mode="bilinear").detach()
            return last
        self.captum = lambda: run(CLASSES[:1])
        return {"captum": self.captum, "captum-5": lambda: run(CLASSES)}

    def cam_runs(self):
        from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        for_cam, for_guided = self.own_network(), self.own_network()
        reshape = tokens if self.name.startswith("vit") else None
        cam = GradCAM(for_cam, [layer_of(for_cam, self.name)], reshape_transform=reshape)
        guided = GuidedBackpropReLUModel(for_guided, device="cpu")

        def run(classes):
            for c in classes:
                heat = cam(self.x.clone(), [ClassifierOutputTarget(c)] * len(self.x))
                for row in range(len(self.x)):
                    back = guided(self.x[row:row + 1].clone(), target_category=c)
                    np.moveaxis(back, 2, 0) * heat[row]
        return {"pytorch-grad-cam": lambda: run(CLASSES[:1]), "pytorch-grad-cam-5": lambda: run(CLASSES)}

    def openvino_runs(self, threads):
        import openvino
        converted = openvino.convert_model(self.model, example_input=self.x)
        converted.reshape(list(self.x.shape))
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        x = self.x.numpy()

        def run(**more):
            request = openvino.Core().compile_model(converted, "CPU", settings | more).create_infer_request()
            return lambda: request.infer([x])
        runs = {"openvino": run()}
        # If the processor supports bfloat16.
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            runs["openvino-bf16"] = run(INFERENCE_PRECISION_HINT="bf16")
        return runs

    def onnxruntime_runs(self, threads):
        import onnxruntime
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            torch.onnx.export(
                self.model, (self.x,), path, input_names=["x"], dynamo=True, external_data=False, verbose=False
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        x = self.x.numpy()
        return {"onnxruntime": lambda: session.run(None, {"x": x})}

    def torch(self):
        with torch.no_grad():
            return self.model(self.x)

    def check(self, path):
        ours, first = torch.from_numpy(np.load(path)), self.x[:1]
        to_nchw = tokens if self.name.startswith("vit") else lambda t: t
        definition = oracle.explain(copy.deepcopy(self.model), first, CLASSES[:1], LAYERS[self.name], to_nchw=to_nchw).F
        found = {"oracle": camlens_export.relative_error(ours, definition)}
        if "captum" in self.runs:
            found["captum"] = camlens_export.relative_error(ours, self.captum()[:1])
        return found

    def seconds(self, run):
        started = time.perf_counter()
        self.runs[run]()
        return time.perf_counter() - started

    def answer(self, line):
        command, _, argument = line.partition(" ")
        if command == "run" and argument in self.runs:
            time.sleep(PAUSE)
            seconds = self.seconds(argument)
            return {"run": argument, "seconds": seconds if seconds > LONG else self.seconds(argument)}
        if command == "check" and argument:
            return self.check(argument)
        return {"error": f"{line!r} is none of: run {'|'.join(self.runs)}, check FILE, quit"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=LAYERS)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--export", type=pathlib.Path, required=True, metavar="DIR", help="the network and the input go here"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, x = network(args.model), weights.picture(args.rows, *SHAPE, seed=5)
    folder = args.export / args.model
    if not (folder / "1" / "model.pt2").exists():
        explain = {"target_layers": [LAYERS[args.model]], **MORE.get(args.model, {})}
        camlens_export.export(
            network(args.model), folder / "1", list(SHAPE), description={"explain": explain}, check=False
        )
    camlens_export.save_npy(folder / f"input-{args.rows}.npy", x)
    peers = Peers(args.model, model, x, args.threads)
    ready = {
        "ready": True,
        "layer": LAYERS[args.model],
        "classes": CLASSES,
        "guided": peers.rectified,
        "runs": list(peers.runs),
        "cannot": peers.cannot,
        "torch": torch.__version__,
    }
    print(json.dumps(ready), flush=True)
    for line in map(str.strip, sys.stdin):
        if line == "quit":
            break
        if not line:
            continue
        try:
            reply = peers.answer(line)
        except Exception as error:      # reported to the bench; the process goes on
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
