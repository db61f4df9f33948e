"""ResNet-18 and ResNet-50 in plain PyTorch, seeded, exported as camlens reads them; a process of its own.

    python -m gpu_check.networks FOLDER resnet18 resnet50      writes FOLDER/NAME.pt2
"""

import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import nn

SIDE, CLASSES = 224, 1000
# Whether the blocks are bottlenecks, and how many each stage has.
SHAPES = {"resnet18": (False, (2, 2, 2, 2)), "resnet50": (True, (3, 4, 6, 3))}


def convolution(channels, out, size, stride=1):
    return nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """He et al. 2015, with the stride at the 3 × 3 convolution; one ReLU module is called after each addition too."""

    def __init__(self, channels, width, stride, is_bottleneck):
        super().__init__()
        out = 4 * width if is_bottleneck else width
        sizes = [(width, 1, 1), (width, 3, stride), (out, 1, 1)] if is_bottleneck else [(out, 3, stride), (out, 3, 1)]
        self.count = len(sizes)
        before = channels
        for number, (after, size, step) in enumerate(sizes, 1):
            setattr(self, f"conv{number}", convolution(before, after, size, step))
            setattr(self, f"bn{number}", nn.BatchNorm2d(after))
            before = after
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(convolution(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        value = x
        for number in range(1, self.count + 1):
            value = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(value))
            if number < self.count:
                value = self.relu(value)
        value += x if self.downsample is None else self.downsample(x)
        return self.relu(value)


class ResNet(nn.Module):
    def __init__(self, is_bottleneck, counts):
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, count in enumerate(counts):
            width, blocks = 64 << stage, []
            for number in range(count):
                blocks.append(Block(channels, width, 2 if stage and not number else 1, is_bottleneck))
                channels = 4 * width if is_bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, CLASSES)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def picture(rows, seed):
    """Low-frequency structure plus noise, `[rows, 3, 224, 224]`, so that maps are not white noise."""
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(rows, 3, 7, 7, generator=generator), (SIDE, SIDE), mode="bilinear")
    return smooth + 0.3 * torch.randn(rows, 3, SIDE, SIDE, generator=generator)


def build(name):
    """The network with seeded weights; batch normalisation has seen pictures, so that values keep their scale."""
    torch.manual_seed(0)
    model = ResNet(*SHAPES[name])
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.6, 1.4, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
            norm.momentum = None
        model.train()(picture(4, seed=100))
    return model.eval()


def export(name, path):
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(build(name), (picture(2, seed=1),), dynamic_shapes=dynamic), path)


def main(folder, *names):
    for name in names:
        export(name, pathlib.Path(folder) / f"{name}.pt2")


if __name__ == "__main__":
    main(*sys.argv[1:])
