"""Captum and pytorch-grad-cam on ResNet-50, one run per request, so that camlens and they can take turns.

    python -m gpu_check.peers --rows 1 --device cuda:0 --seconds 1 [--more FOLDER]

Prints `{"ready": true, "runs": [...], "cannot": {PEER: REASON}}`, then answers each line of standard input, a run's
name, with `{"seconds": S}`: the median of several runs. A run begins with the input in host memory and ends with the
map there, as camlens's does; the device is synchronised around it. The runs are `forward` (the eager network,
predictions only), `captum` (GuidedGradCam, bilinear) and `pytorch-grad-cam` (GradCAM times GuidedBackpropReLUModel,
which takes one image at a time, both made once), each also with `-tf32` behind its name. cuDNN may choose its
algorithms by time.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import statistics
import sys
import time
import types

import numpy as np
import torch

from .networks import build, picture

CLASS, LAYER = 7, "layer4"
# pytorch-grad-cam and Captum import these, and what is measured does not compute with them.
UNUSED = ("torchvision", "sklearn", "matplotlib", "mpl_toolkits", "ttach", "tqdm", "PIL")


class StandIn(types.ModuleType):
    """A module that has whatever is imported from it: classes whose objects do nothing."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_, **__: None})


class StandIns:
    """Finds a stand-in for each package of UNUSED that is not installed."""

    def __init__(self):
        self.names = {name for name in UNUSED if importlib.util.find_spec(name) is None}

    def find_spec(self, name, *_):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in self.names else None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        """There is nothing to run."""


class Peers:
    def __init__(self, rows, device, timed_s):
        self.timed_s = timed_s
        self.device, self.x = torch.device(device), picture(rows, seed=5)
        self.classes = [CLASS] * rows
        self.runs = {"forward": self.forward()}
        self.cannot = {}
        for name, make in (("captum", self.captum), ("pytorch-grad-cam", self.cam)):
            try:
                run = make()
                run()
                self.runs[name] = run
            except Exception as error:      # one that cannot run is reported and left out
                self.cannot[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]

    def network(self):
        model = build("resnet50").to(self.device)
        for module in model.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False      # Captum refuses the others
        return model

    def forward(self):
        model = self.network()

        def run():
            with torch.no_grad():
                return model(self.x.to(self.device)).cpu()
        return run

    def captum(self):
        from captum.attr import GuidedGradCam
        model = self.network()
        attribution = GuidedGradCam(model, model.get_submodule(LAYER))
        return lambda: attribution.attribute(
            self.x.to(self.device), target=self.classes, interpolate_mode="bilinear"
        ).detach().cpu()

    def cam(self):
        from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        for_cam, for_guided = self.network(), self.network()
        cam = GradCAM(for_cam, [for_cam.get_submodule(LAYER)])
        guided = GuidedBackpropReLUModel(for_guided, device=self.device)

        def run():
            heat = cam(self.x.to(self.device), [ClassifierOutputTarget(c) for c in self.classes])
            rows = [guided(self.x[row:row + 1].to(self.device), target_category=CLASS) for row in range(len(self.x))]
            return [np.moveaxis(row, 2, 0) * own for row, own in zip(rows, heat, strict=True)]
        return run

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, name):
        """The median of one run, of those that fit into the time; the first one is not counted."""
        plain = name.removesuffix("-tf32")
        is_rounded = plain != name
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_rounded
        run, times = self.runs[plain], []
        run()
        deadline = time.perf_counter() + self.timed_s
        while not times or time.perf_counter() < deadline:
            self.synchronize()
            began = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="measured time of each answer")
    parser.add_argument("--more", help="a folder of packages that this Python lacks")
    args = parser.parse_args()
    if args.more:
        sys.path.append(args.more)
    sys.meta_path.append(StandIns())
    torch.backends.cudnn.benchmark = True
    peers = Peers(args.rows, args.device, args.seconds)
    print(json.dumps({"ready": True, "runs": list(peers.runs), "cannot": peers.cannot}), flush=True)
    for line in map(str.strip, sys.stdin):
        print(json.dumps({"seconds": peers.seconds(line)}), flush=True)


if __name__ == "__main__":
    main()
