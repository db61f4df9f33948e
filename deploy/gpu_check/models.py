"""Networks as folders that camlens serves, `NAME/1/model.pt2`, made once a run."""

import os
import pathlib
import shutil
import subprocess
import sys

from . import setting as places
from .program import last_lines
from .report import Trouble

LITE0, RESNET18, RESNET50 = "efficientnet-lite0", "resnet18", "resnet50"
# Stands in for ResNet-50 on the fake device; the bundled network does, where there is no repository.
SMALL = "resnet_bottleneck"
LAYERS = {LITE0: ("_bn1",), RESNET18: ("layer4",), RESNET50: ("layer4", "layer2")}
EXPORT_S = 600


def settings(layer, precision=None):
    """`model.toml` of a ResNet: a picture becomes 224 × 224 pixels at once."""
    chosen = f'precision = "{precision}"\n' if precision else ""
    norm = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
    return f'[input]\n{norm}\n[explain]\ntarget_layers = ["{layer}"]\n{chosen}'


def link(file, to):
    """The file under another name, without a copy where the file system allows it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


class Networks:
    """The programs there are, by name."""

    def __init__(self, setting):
        self.setting = setting
        self.folder = setting.work / "networks"
        self.folder.mkdir()
        self.exports = {}

    def resnets(self):
        """The exported ResNets; raises CannotRun without PyTorch, and Trouble if they cannot be exported."""
        self.setting.needs_torch("a ResNet")
        if not self.exports:
            command = [sys.executable, "-W", "ignore", "-m", "gpu_check.networks", self.folder, RESNET18, RESNET50]
            done = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_S)
            if done.returncode:
                raise Trouble(
                    f"PyTorch cannot export a ResNet: {last_lines(done.stderr)}",
                    "the larger models of this check are made with torch.export",
                    "see that `import torch` works in this Python",
                )
            self.exports = {name: self.folder / f"{name}.pt2" for name in (RESNET18, RESNET50)}
        return self.exports

    def program(self, name):
        """The exported program of a network."""
        if name == LITE0:
            return places.LITE0 / "1/model.pt2"
        return self.resnets()[name]

    def main(self):
        """The network whose speed and memory are measured; the fake device is too slow for ResNet-50."""
        if self.setting.has_torch and not self.setting.fake:
            return RESNET50
        return SMALL if (places.FIXTURES / SMALL).is_dir() else LITE0

    def shelf(self, *wanted, precision=None):
        """A folder of models for a server. `wanted`: names, or (name as served, name of the network)."""
        folder = pathlib.Path(self.setting.work) / "shelves" / str(len(list(self.setting.work.glob("shelves/*"))))
        for entry in wanted:
            served, name = entry if isinstance(entry, tuple) else (entry, entry)
            version = folder / served / "1"
            if name in LAYERS:
                link(self.program(name), version / "model.pt2")
            self._describe(name, version, precision)
        return folder

    def _describe(self, name, version, precision):
        if name in (RESNET18, RESNET50):
            (version / "model.toml").write_text(settings(LAYERS[name][0], precision))
            return
        source = places.LITE0 / "1" if name == LITE0 else places.FIXTURES / name / "1"
        for file in source.iterdir():
            if file.is_file() and not (version / file.name).exists():
                link(file, version / file.name)
        if precision:
            text = (version / "model.toml").read_text()
            chosen = f'[explain]\nprecision = "{precision}"'
            text = text.replace("[explain]", chosen) if "[explain]" in text else f"{text}\n{chosen}\n"
            (version / "model.toml").unlink()
            (version / "model.toml").write_text(text)
