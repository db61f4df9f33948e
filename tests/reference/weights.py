"""Seeded weights and pictures."""

import torch
import torch.nn.functional as F
from torch import nn


def picture(rows, channels, height, width, seed=0):
    """Low-frequency structure plus noise, `[rows, channels, height, width]`, so that maps are not white noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(rows, channels, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(rows, channels, height, width, generator=generator)


def settle(model, shape):
    """Gives the model usable weights: fills heads and layer scales that start at zero, and feeds data to batch-norm."""
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.6, 1.4, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter.uniform_(0.1, 0.4, generator=generator)
            elif float(parameter.abs().max()) == 0:
                parameter.normal_(0, 0.05, generator=generator)
        if norms:
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = None
            model.train()
            for seed in (100, 101):
                model(picture(4, *shape, seed=seed))
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
    return model.eval()


def build(factory, shape, seed=0):
    torch.manual_seed(seed)
    return settle(factory(), shape)
