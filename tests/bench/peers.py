#!/usr/bin/env python3
"""Times Captum and pytorch-grad-cam on ResNet-50, one run at a time, so that a bench can interleave them with camlens.

    $(deploy/python-env reference) tests/bench/peers.py [--threads 2] [--export DIR]

With --export, first writes the same network, seeded, as `DIR/resnet50/1/model.pt2` and the image as `DIR/resnet50/input.npy`
(float32 `[1, 3, 224, 224]`). Then prints `{"ready": true, ...}` and answers each line of standard input with one JSON line:

    run captum              {"run": "captum", "seconds": S}            GuidedGradCam, bilinear, target layer4
    run pytorch-grad-cam    {"run": "pytorch-grad-cam", "seconds": S}  GradCAM, then GuidedBackpropReLUModel, then their product
    run forward             {"run": "forward", "seconds": S}           the eager network alone, no gradients
    check FILE              {"check": FILE, "captum": E, "oracle": E}  relative L2 of FILE (`.npy`, F of this image and target
                                                                       by the CAPTUM convention) from each
    quit                    ends, as the end of input does

A line that cannot be done is answered with {"error": TEXT}. Objects are made once and used again. ReLU modules are not in
place here, since Captum raises on those; camlens takes the network as it is.
"""

import argparse
import copy
import json
import pathlib
import sys
import time

import numpy as np
import torch
import torchvision

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "reference"), str(HERE.parents[1] / "deploy")]
import camlens_export  # noqa: E402
import oracle  # noqa: E402
import weights  # noqa: E402

NAME, LAYER, SHAPE, TARGET = "resnet50", "layer4", (3, 224, 224), 281


def network():
    return weights.build(lambda: torchvision.models.get_model(NAME, weights=None), SHAPE)


def image():
    return weights.picture(1, *SHAPE, seed=5)


class Peers:
    """The libraries' objects, each over a network of its own (they change it while they run)."""

    def __init__(self, model, x):
        from captum.attr import GuidedGradCam
        from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        self.x, self.model = x, model
        for_captum, for_cam, for_guided = (self.not_in_place(model) for _ in range(3))
        self.guided_grad_cam = GuidedGradCam(for_captum, getattr(for_captum, LAYER))
        self.cam = GradCAM(for_cam, [getattr(for_cam, LAYER)])
        self.guided = GuidedBackpropReLUModel(for_guided, device="cpu")
        self.cam_target = [ClassifierOutputTarget(TARGET)]

    @staticmethod
    def not_in_place(model):
        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False
        return model

    def captum(self):
        return self.guided_grad_cam.attribute(self.x.clone(), target=TARGET, interpolate_mode="bilinear").detach()

    def pytorch_grad_cam(self):
        heat = self.cam(self.x.clone(), self.cam_target)
        guided = self.guided(self.x.clone(), target_category=TARGET)
        return torch.from_numpy(np.moveaxis(guided, 2, 0)[None] * heat[:, None])

    def forward(self):
        with torch.no_grad():
            return self.model(self.x)

    def check(self, path):
        ours = torch.from_numpy(np.load(path))
        definition = oracle.explain(copy.deepcopy(self.model), self.x, [TARGET], LAYER).F
        error = camlens_export.relative_error
        return {"check": path, "captum": error(ours, self.captum()), "oracle": error(ours, definition)}


def answer(peers, line):
    command, _, argument = line.partition(" ")
    runs = {"captum": peers.captum, "pytorch-grad-cam": peers.pytorch_grad_cam, "forward": peers.forward}
    if command == "run" and argument in runs:
        started = time.perf_counter()
        runs[argument]()
        return {"run": argument, "seconds": time.perf_counter() - started}
    if command == "check" and argument:
        return peers.check(argument)
    return {"error": f"{line!r} is none of: run {'|'.join(runs)}, check FILE, quit"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", type=pathlib.Path, metavar="DIR", help="write the network and the image here first")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, x = network(), image()
    if args.export:
        folder = args.export / NAME
        camlens_export.export(network(), folder / "1", list(SHAPE), check=False)
        camlens_export.save_npy(folder / "input.npy", x)
    peers = Peers(model, x)
    for run in (peers.captum, peers.pytorch_grad_cam, peers.forward):      # the first run of each pays for set-up
        run()
    print(json.dumps({"ready": True, "target": TARGET, "layer": LAYER, "threads": args.threads, "torch": torch.__version__}), flush=True)
    for line in map(str.strip, sys.stdin):
        if line == "quit":
            break
        if not line:
            continue
        try:
            reply = answer(peers, line)
        except Exception as error:      # the driver reads it; this process stays for the next line
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
