#!/usr/bin/env python3
"""Writes references for torchvision's full-size models, in the layout of tests/fixtures/conformance.

    $(deploy/python-env reference) tests/reference/full.py --out DIR [NAME...]

Weights are random and seeded. Everything is computed on this machine with one thread, with weights that do not require
gradients, so that exact mode on the same machine (OMP_NUM_THREADS=1) agrees to 1e-6. Models that have references
already are skipped.
"""

import argparse
import pathlib
import time

import torch
import torchvision
import write
from cases import Case, channels_last, tokens


def network(name):
    """A factory of torchvision's `name` with random weights."""
    options = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}

    def build():
        return torchvision.models.get_model(name, weights=None, **options)
    build.__name__ = f"torchvision.models.{name}"
    return build


def case(name, layers, default_target=None, side=224, **more):
    return Case(network(name), (3, side, side), layers, default_target, peers=True, **more)


SWIN = {"explain": {"target_layers": ["features.7"], "channels_last": True}, "to_nchw": channels_last}
VIT = {
    "explain": {"target_layers": ["encoder.layers.encoder_layer_11.ln_1"], "token_grid": [14, 14], "class_tokens": 1},
    "to_nchw": tokens(14),
}
MODELS = {
    "alexnet": case("alexnet", ["features.10", "features.11"], "features"),
    "vgg11_bn": case("vgg11_bn", ["features.25", "features.27"], "features"),
    "vgg16": case("vgg16", ["features.28", "features.29"], "features"),
    "resnet18": case("resnet18", ["layer4"], "layer4"),
    "resnet50": case("resnet50", ["layer4", "layer2"], "layer4"),
    "resnext50_32x4d": case("resnext50_32x4d", ["layer4"], "layer4"),
    "wide_resnet50_2": case("wide_resnet50_2", ["layer4"], "layer4"),
    "densenet121": case("densenet121", ["features", "features.denseblock3"]),
    "googlenet": case("googlenet", ["inception5b", "inception4e"], "inception5b"),
    "inception_v3": case("inception_v3", ["Mixed_7c", "Mixed_6e"], "Mixed_7c", side=299),
    "squeezenet1_1": case("squeezenet1_1", ["features.12", "features.9"], "classifier.2"),
    "shufflenet_v2_x0_5": case("shufflenet_v2_x0_5", ["conv5", "stage3"], "conv5"),
    "mnasnet0_5": case("mnasnet0_5", ["layers", "layers.12"], "layers"),
    "mobilenet_v2": case("mobilenet_v2", ["features.18", "features.13"], "features"),
    "mobilenet_v3_small": case("mobilenet_v3_small", ["features.12", "features.8"], "features"),
    "efficientnet_b0": case("efficientnet_b0", ["features.8", "features.5"], "features"),
    "regnet_y_400mf": case("regnet_y_400mf", ["trunk_output", "trunk_output.block3"], "trunk_output"),
    "convnext_tiny": case("convnext_tiny", ["features.7", "features.5"], "features"),
    "vit_b_16": case("vit_b_16", ["encoder.layers.encoder_layer_11.ln_1"], **VIT),
    "swin_t": case("swin_t", ["features.7", "features.5"], **SWIN),
    "swin_v2_t": case("swin_v2_t", ["features.7"], **SWIN),
    "maxvit_t": case("maxvit_t", ["blocks.3", "blocks.2"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    if unknown := set(args.names) - MODELS.keys():
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for name in args.names or MODELS:
        written = args.out / name / "reference"
        if all((written / file).exists() for file in ("arrays.npz", "case.json")):      # in this order
            continue
        started = time.monotonic()
        facts = write.write_case(args.out, name, MODELS[name], tries=1)
        right = [f"{layer['name']}: {', '.join(write.right_peers(layer)) or 'none'}" for layer in facts["layers"]]
        print(
            f"{name}: {time.monotonic() - started:.0f} s, rectifiers {facts['rectifiers']}; "
            f"right peers: {'; '.join(right)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
