"""The table of conformance cases: which network, which input, which layers, and what is known about each."""

from dataclasses import dataclass, field
from typing import Callable, Optional

import scaled
import small
import torch

TARGETS = (3, 7)


def tokens(side):
    """Vision Transformer: `[N, 1 + side², K]` -> `[N, K, side, side]`."""
    return lambda t: t[:, 1:].reshape(len(t), side, side, -1).permute(0, 3, 1, 2)


def channels_last(t):
    return t.permute(0, 3, 1, 2)


@dataclass
class Case:
    factory: Callable
    shape: tuple                            # [C, H, W] of one input
    layers: list                            # target layers; the first one also gets F and the other convention
    default_target: Optional[str] = None    # module or node that the default rule must find; None: not checked
    dtype: torch.dtype = torch.float32
    head: Optional[str] = None              # the output that holds the logits
    dynamic_size: bool = False
    more_sizes: list = field(default_factory=list)      # further [H, W] to explain
    targets: tuple = TARGETS
    explain: dict = field(default_factory=dict)         # model.toml's [explain]
    to_nchw: Callable = lambda t: t
    float64: bool = True                    # references in float64 as well (of a float32 model)
    peers: bool = False                     # keep Captum's and pytorch-grad-cam's own arrays
    refused: Optional[str] = None           # loading must fail with a message that contains this
    ambiguous: list = field(default_factory=list)       # layer names that must be refused: several values
    edit: Callable = lambda model: None     # changes the weights after they are set
    facts: dict = field(default_factory=dict)           # further keys of case.json


S, T = 24, 33


def heads(index):
    return {"species": lambda y: y["species"], "1": lambda y: y[1], None: None}[index]


def against_class_three(model):
    """Makes all weights of class 3 negative: after a ReLU there is no positive evidence for it."""
    model.fc.weight[3] = -model.fc.weight[3].abs() - 0.01


def eight_times(model):
    model.fc.weight.mul_(8)
    model.fc.bias.mul_(8)


def other_last_layer(model):
    generator = torch.Generator().manual_seed(12)
    model.fc.weight.copy_(torch.randn(model.fc.weight.shape, generator=generator) * model.fc.weight.std())


HAND_WRITTEN = {
    "functional": Case(small.Functional, (3, S, S), ["c", "b"], "relu_2"),
    "functional_inplace": Case(small.FunctionalInplace, (3, S, S), ["c", "b", "a"]),
    "twice": Case(small.Twice, (3, S, S), ["relu", "relu@0", "c2"], "relu"),
    "max_zeros": Case(small.MaxZeros, (3, S, S), ["b", "a"], "maximum"),
    "clamps": Case(small.Clamps, (3, S, S), ["l.9", "l.4", "r6"]),
    "view_mutated": Case(small.ViewMutated, (3, S, S), ["b", "a"]),
    # In float64 `.to(torch.float32)` copies, and the network is another one.
    "dropout_alias": Case(small.DropoutAlias, (3, S, S), ["b", "a"], "relu", float64=False),
    "grey": Case(small.Grey, (1, 36, 28), ["f.2", "f.3", "f"], "f", peers=True),
    "dyn_hw": Case(small.DynamicSize, (3, 32, 24), ["r", "b", "a"], dynamic_size=True, more_sizes=[(27, 36)]),
    "heads_dict": Case(small.HeadsDict, (3, S, S), ["f", "f.3"], "f", head="species"),
    "heads_tuple": Case(small.HeadsTuple, (3, S, S), ["f", "f.3"], "f", head="1"),
    "buffer_mutated": Case(small.BufferMutated, (3, S, S), ["b", "a"], "relu_1"),
    "constants": Case(small.Constants, (3, S, S), ["b", "a"]),
    "attention": Case(small.Attention, (3, 32, 32), ["c"]),
    "conv_lstm": Case(small.ConvLstm, (3, S, S), ["f", "f.3"]),
    "grouped_transposed": Case(small.GroupedTransposed, (3, S, S), ["sm", "g", "t"], "r"),
    "multi_out": Case(small.MultiOut, (3, S, S), ["b", "a"]),
    "no_grad_inside": Case(small.NoGradInside, (3, S, S), ["b", "a"], "relu_1"),
    "input_mutated": Case(small.InputMutated, (3, S, S), ["b", "a"], "relu_1"),
    "naming": Case(small.Naming, (3, S, S), ["block", "seq", "block@0"], ambiguous=["two", "first"]),
    "half": Case(small.SmallCnn, (3, S, S), ["f.3", "f"], "f", dtype=torch.float16),
    "bfloat16": Case(small.SmallCnn, (3, S, S), ["f.3", "f"], "f", dtype=torch.bfloat16),
    "cond": Case(small.Branch, (3, S, S), [], refused="cond"),
    # Rules that compare two models, or rows, with each other.
    "zero_evidence": Case(small.Twice, (3, S, S), ["relu"], "relu", edit=against_class_three,
                          facts={"no_positive_evidence": [True, False]}),
    "scaled_logits": Case(small.Twice, (3, S, S), ["relu", "relu@0", "c2"], "relu", edit=eight_times,
                          facts={"scaled": {"model": "twice", "factor": 8.0}}),
    "other_last_layer": Case(small.Twice, (3, S, S), ["relu", "relu@0", "c2"], "relu", edit=other_last_layer,
                             facts={"randomised": {"model": "twice"}}),
}

SCALED = {
    "resnet_basic": Case(scaled.resnet_basic, (3, T, T), ["layer4", "layer3", "layer2"], "layer4", peers=True),
    "resnet_bottleneck": Case(scaled.resnet_bottleneck, (3, T, T), ["layer4", "layer2", "layer4.0.bn3"], "layer4"),
    # features.13 is the last convolution, .14 its batch-norm, .15 the in-place ReLU that overwrites it.
    "vgg_bn": Case(scaled.vgg_bn, (3, T, T), ["features.15", "features.14", "features.13"], "features"),
    "vgg": Case(scaled.vgg_plain, (3, T, T), ["features.10", "features.11"], "features"),
    "densenet": Case(scaled.densenet_small, (3, T, T), ["features", "features.denseblock2"]),
    "googlenet": Case(scaled.GoogLeNetLike, (3, T, T), ["inception4a", "inception3b"], "inception4a"),
    "inception": Case(scaled.InceptionLike, (3, T, T), ["Mixed_7c", "branch_pool"], "Mixed_7c"),
    "squeezenet": Case(
        scaled.squeezenet_small, (3, T, T), ["features.5", "features.3", "classifier.1"], "classifier.2"
    ),
    "shufflenet": Case(scaled.shufflenet_small, (3, T, T), ["conv5", "stage3"], "conv5"),
    "regnet": Case(scaled.regnet_small, (3, T, T), ["trunk_output", "trunk_output.block2"], "trunk_output"),
    "mobilenet_v2": Case(scaled.mobilenet_v2_small, (3, T, T), ["features.6", "features.3"], "features.6"),
    "mobilenet_v3": Case(scaled.mobilenet_v3_small, (3, T, T), ["features.4", "features.1"], "features.4"),
    "efficientnet": Case(scaled.efficientnet_small, (3, T, T), ["features.4", "features.2"], "features.4"),
    "convnext": Case(scaled.convnext_small, (3, T, T), ["features.5", "features.3"], "features.5"),
    "vit": Case(
        scaled.vit_small,
        (3, 32, 32),
        ["encoder.layers.encoder_layer_1.ln_1"],
        to_nchw=tokens(8),
        explain={"target_layers": ["encoder.layers.encoder_layer_1.ln_1"], "token_grid": [8, 8], "class_tokens": 1},
    ),
    "swin": Case(
        scaled.swin_small,
        (3, T, T),
        ["features.3", "features.1"],
        to_nchw=channels_last,
        explain={"target_layers": ["features.3"], "channels_last": True},
    ),
}

CASES = HAND_WRITTEN | SCALED
