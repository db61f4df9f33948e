#!/usr/bin/env python3
"""Writes small networks whose inputs may have some sizes and not others, to tests/fixtures/sizes/models.

    $(deploy/python-env reference) tests/reference/sizes.py
"""

import pathlib
import warnings

import torch
from heads import packed
from torch import nn
from torch.export import Dim

OUT = pathlib.Path(__file__).resolve().parents[1] / "fixtures/sizes/models"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.a(x)).mean((2, 3)))


class Upsampled(Net):
    """Adds a map to another of half its size, doubled: sizes of both agree for multiples of 4."""

    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = nn.functional.interpolate(torch.relu(self.b(a)), scale_factor=2.0)
        return self.fc((a + b).mean((2, 3)))


class Square(Net):
    """Takes pictures whose height is their width."""

    def forward(self, x):
        torch._check(x.shape[2] == x.shape[3])
        return super().forward(x)


FREE = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
NETS = {
    "ranged": (Net, {0: Dim("n", min=1, max=4), 2: Dim("h", min=32, max=128), 3: Dim("w", min=32)}),
    "multiple_of_4": (Upsampled, {0: Dim.AUTO, 2: 4 * Dim("_h"), 3: 4 * Dim("_w")}),
    "undeclared": (Upsampled, FREE),
    "square": (Square, FREE),
}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name, (net, shapes) in NETS.items():
        torch.manual_seed(5)
        program = torch.export.export(net().eval(), (torch.rand(2, 3, 64, 64),), dynamic_shapes=(shapes,))
        program._example_inputs = None
        folder = OUT / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        packed(program, folder / "model.pt2")
