"""Writes tests/fixtures/heads: small classifiers whose target layer, score or probability is easily got wrong.

Each net says in plain PyTorch what is right: the logits, the model's own probabilities, and the map [N, K, h, w] that
its classifier reads. Grad-CAM of that map is computed here by autograd alone, as Selvaraju et al. define it.

    PYTHON=$(deploy/python-env reference); $PYTHON tests/reference/heads.py
"""

import io
import json
import pathlib
import warnings
import zipfile

import torch
import torch.nn.functional as F
from torch import nn

OUT = pathlib.Path(__file__).parents[1] / "fixtures" / "heads"
SIZE, CLASSES = 32, 5


def block(inputs, outputs, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """A trunk `c` and what a subclass makes of its map."""

    layer = "c"
    classes = CLASSES
    gates = []
    example = (2, 3, SIZE, SIZE)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = block(3, 8, 2), block(8, 12, 1), block(12, 16, 2)
        self.fc = nn.Linear(16, self.classes)

    def trunk(self, x):
        return self.c(self.b(self.a(x)))

    def forward(self, x):
        return self.parts(x)["out"]

    def parts(self, x):
        """out: what the model gives; logits [N, classes]; value: what the layer gives; map: its order [N, K, h, w]."""
        value = self.trunk(x)
        logits = self.read(value)
        return {"out": logits, "logits": logits, "value": value, "map": lambda t: t}

    def read(self, value):
        return self.fc(value.mean((2, 3)))


class FlatMean(Net):
    def read(self, value):
        return self.fc(value.flatten(2).mean(2))


class ViewMean(Net):
    def read(self, value):
        return self.fc(value.view(value.shape[0], value.shape[1], -1).mean(dim=-1))


class MeanMean(Net):
    def read(self, value):
        return self.fc(value.mean(3).mean(2))


class MeanKeep(Net):
    def read(self, value):
        return self.fc(value.mean(-1, keepdim=True).mean(-2, keepdim=True).flatten(1))


class SumDivided(Net):
    def read(self, value):
        return self.fc(value.sum((2, 3)) / (value.shape[2] * value.shape[3]))


class Einsum(Net):
    def read(self, value):
        return torch.einsum("nkhw,ck->nc", value, self.fc.weight)


class Maximum(Net):
    def read(self, value):
        return self.fc(F.adaptive_max_pool2d(value, 1).flatten(1))


class Pyramid(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16 * 21, CLASSES)

    def read(self, value):
        return self.fc(torch.cat([F.adaptive_avg_pool2d(value, s).flatten(1) for s in (1, 2, 4)], 1))


class TwoPools(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(28, CLASSES)

    def parts(self, x):
        before = self.b(self.a(x))
        value = self.c(before)
        logits = self.fc(torch.cat([value.mean((2, 3)), before.mean((2, 3))], 1))
        return {"out": logits, "logits": logits, "value": value, "map": lambda t: t}


class Gated(Net):
    """Squeeze-and-excitation in the middle, whose average gates; the classifier reads a flattened map."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.fc = nn.Linear(16 * 64, CLASSES)

    def trunk(self, x):
        x = self.b(self.a(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.c(x * gate)

    def read(self, value):
        return self.fc(value.flatten(1))


class AttentionPool(Net):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(16, 1)

    def read(self, value):
        tokens = value.flatten(2).transpose(1, 2)
        return self.fc((tokens * self.q(tokens).softmax(1)).sum(1))


class ChannelsLast(Net):
    """LayerNorm over the last axis, then the mean of the two before it, as in Swin."""

    layer = "norm"

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def parts(self, x):
        value = self.norm(self.trunk(x).permute(0, 2, 3, 1))
        logits = self.fc(value.mean((1, 2)))
        return {"out": logits, "logits": logits, "value": value, "map": lambda t: t.permute(0, 3, 1, 2)}


class ChannelsLastFlat(Net):
    """As ported from Keras: the map is flattened with its channels last."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16 * 64, CLASSES)

    def read(self, value):
        return self.fc(value.permute(0, 2, 3, 1).flatten(1))


class ScoresAtEachPosition(Net):
    def read(self, value):
        return self.fc(value.permute(0, 2, 3, 1)).mean((1, 2))


class TokenMean(Net):
    """Attention over the positions, then their mean."""

    layer = "out"

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.LayerNorm(16)

    def parts(self, x):
        tokens = self.trunk(x).flatten(2).transpose(1, 2)
        value = self.out(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        logits = self.fc(value.mean(1))
        grid = lambda t: t.transpose(1, 2).unflatten(2, (8, 8))
        return {"out": logits, "logits": logits, "value": value, "map": grid}


class ClassToken(Net):
    """A class token that reads the others by attention, last of all: only what enters attention has a gradient."""

    layer = "norm"

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.place = nn.Parameter(torch.randn(1, 65, 16))
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.join = nn.Linear(16, 48), nn.Linear(16, 16)

    def parts(self, x):
        tokens = self.trunk(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.place
        value = self.norm(tokens)
        n, count, width = value.shape
        q, k, v = self.qkv(value).reshape(n, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, width)
        logits = self.fc(self.last(tokens + self.join(read))[:, 0])
        grid = lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
        return {"out": logits, "logits": logits, "value": value, "map": grid}


class SharedTokens(Net):
    """A class token that reads the same map in two blocks, as in CaiT and VOLO: neither of their norms has it all."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def read(self, value):
        tokens, token = value.flatten(2).transpose(1, 2), self.token.expand(value.shape[0], -1, -1)
        for norm, values in zip(self.norms, self.values):
            both = norm(torch.cat([token, tokens], 1))
            token = token + F.scaled_dot_product_attention(both[:, :1], both, values(both))
        return self.fc(token[:, 0])


class MeanToken(Net):
    """Attention pooling whose query is the mean of all tokens, as in CLIP's ResNets."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(65, 16))
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def read(self, value):
        tokens = value.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.place
        q, k, v = self.q(tokens), self.k(tokens), self.v(tokens)
        return self.fc(F.scaled_dot_product_attention(q, k, v)[:, 0])


class Mixed(nn.Module):
    """[N, h, w, 16] to [N, h/2, w/2, 16]: every second row and column, features by products of several kinds."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(16, 16) / 4 for _ in range(2))
        self.register_buffer("order", torch.arange(15, -1, -1))

    def forward(self, x):
        x = torch.tensordot(x[:, ::2, ::2], self.weights[0], dims=([3], [0]))
        return torch.einsum("...i,ij->...j", x, self.weights[1]).index_select(3, self.order)


class Rearranged(Net):
    """Tokens with an empty one before them and another one after them, which are cut off again."""

    layer = "mixed"

    def __init__(self):
        super().__init__()
        self.mixed = Mixed()
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def parts(self, x):
        value = self.mixed(self.trunk(x).permute(0, 2, 3, 1))
        tokens = F.pad(value.flatten(1, 2), (0, 0, 1, 0))
        tokens = torch.hstack([tokens, self.token.expand(tokens.shape[0], -1, -1)])
        logits = self.fc(tokens[:, 1:-1].mean(1))
        return {"out": logits, "logits": logits, "value": value, "map": lambda t: t.permute(0, 3, 1, 2)}


class UnevenlySampled(Net):
    """Takes 5 of 8 columns: those that are left do not span the picture."""

    layer = None

    def read(self, value):
        return self.fc(torch.relu(value[..., :5] * 2).mean((2, 3)))


class SequenceFirst(Net):
    """Attention with tokens first: no value after it has the batch as its first axis."""

    layer = None

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)

    def read(self, value):
        tokens = value.flatten(2).permute(2, 0, 1)
        return self.fc((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(0))


class Warped(Net):
    """A spatial transformer: positions of the map are not the picture's."""

    layer = None

    def __init__(self):
        super().__init__()
        self.where = nn.Linear(3, 6)

    def trunk(self, x):
        grid = F.affine_grid(self.where(x.mean((2, 3))).view(-1, 2, 3), list(x.shape), align_corners=False)
        return super().trunk(F.grid_sample(x, grid, align_corners=False))


class Branches(Net):
    """Two maps of the same rank are read: neither is the last."""

    layer = None

    def __init__(self):
        super().__init__()
        self.d = block(12, 16, 2)
        self.fc = nn.Linear(32, CLASSES)

    def parts(self, x):
        before = self.b(self.a(x))
        value = self.c(before)
        logits = self.fc(torch.cat([value.mean((2, 3)), self.d(before).mean((2, 3))], 1))
        return {"out": logits, "logits": logits, "value": value, "map": lambda t: t}


class Activated(Net):
    """Ends in an activation of `logits`."""

    def activation(self, logits):
        return logits.softmax(-1)

    def parts(self, x):
        parts = super().parts(x)
        return {**parts, "out": self.activation(parts["logits"])}


class Softmax(Activated):
    pass


class SoftmaxOfTemperature(Activated):
    def read(self, value):
        return super().read(value) * 40


class LogSoftmax(Activated):
    def activation(self, logits):
        return F.log_softmax(logits, dim=1)


class Sigmoids(Activated):
    def activation(self, logits):
        return logits.sigmoid()


class OneLogit(Net):
    classes = 1


class OneSigmoid(Sigmoids):
    classes = 1


class Squeezed(Activated):
    classes = 1

    def activation(self, logits):
        return logits.squeeze(-1)


class FullyConvolutional(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(16, CLASSES, 1)

    def parts(self, x):
        value = self.trunk(x)
        out = F.adaptive_avg_pool2d(self.head(value), 1)
        return {"out": out, "logits": out.flatten(1), "value": value, "map": lambda t: t}


class SoftmaxBeside(Softmax):
    """A class number and probabilities beside the logits, which come last."""

    def forward(self, x):
        parts = self.parts(x)
        return parts["logits"].argmax(1), parts["out"], parts["logits"]


class Guided(torch.autograd.Function):
    """A rectifier that stops negative gradients, with the slope `slope` below zero."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x)
        ctx.slope = slope
        return torch.where(x > 0, x, slope * x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.clamp(min=0) * torch.where(x > 0, 1.0, ctx.slope), None


class Written(nn.Module):
    """A rectifier that is no nn.ReLU."""

    slope = 0.0
    guided = False          # for all of them

    def forward(self, x):
        return Guided.apply(x, self.slope) if Written.guided else self.write(x)


class Where(Written):
    def write(self, x):
        return torch.where(x > 0, x, torch.zeros_like(x))


class Masked(Written):
    def write(self, x):
        return x.masked_fill(x < 0, 0.0)


class Multiplied(Written):
    def write(self, x):
        return x * (x > 0)


class HalfSum(Written):
    def write(self, x):
        return (x + x.abs()) / 2


class Parametric(Written):
    slope = 0.25

    def __init__(self):
        super().__init__()
        self.slopes = nn.Parameter(torch.full((1,), self.slope))

    def write(self, x):
        return F.prelu(x, self.slopes)


class Rectified(Net):
    """Its rectifiers are written in another way, and guided all the same."""

    rectifier = Where
    rectifiers = 3

    def __init__(self):
        super().__init__()
        self.a[2], self.b[2], self.c[2] = self.rectifier(), self.rectifier(), self.rectifier()

    def guided(self, class_index):
        Written.guided = True
        x = picture().requires_grad_()
        self.parts(x)["logits"][0, class_index].backward()
        Written.guided = False
        return x.grad[0]


class RectifiedMasked(Rectified):
    rectifier = Masked


class RectifiedMultiplied(Rectified):
    rectifier = Multiplied


class RectifiedHalfSum(Rectified):
    rectifier = HalfSum


class RectifiedParametric(Rectified):
    rectifier = Parametric


class Plain(Written):
    def write(self, x):
        return torch.relu(x)


class Concatenated(nn.Module):
    """CReLU (arXiv:1603.05201): both halves of the values, each rectified."""

    def __init__(self):
        super().__init__()
        self.positive, self.negative = Plain(), Plain()

    def forward(self, x):
        return torch.cat([self.positive(x), self.negative(-x)], 1)


class RectifiedConcatenated(Rectified):
    rectifier = Plain
    rectifiers = 4

    def __init__(self):
        super().__init__()
        self.b[0], self.b[1], self.b[2] = nn.Conv2d(8, 6, 3, 1, 1), nn.BatchNorm2d(6), Concatenated()


class Gates(Net):
    """Stops gradients at other bounds than 0."""

    gates = ["hardtanh", "where", "maximum"]

    def trunk(self, x):
        a = F.hardtanh(self.a[1](self.a[0](x)), -1.0, 1.0)
        b = self.b[1](self.b[0](a))
        return self.c(torch.maximum(torch.where(b > 0.2, b, 0.0), b / 8))


class PicturesChannelsLast(Rectified):
    """Takes [N, H, W, C], and normalises before it moves the channels."""

    rectifier = Plain
    example = (2, SIZE, SIZE, 3)

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, -0.2, 0.3]))

    def forward(self, x):
        return self.c(self.b(self.a(((x - self.mean) / 0.5).permute(0, 3, 1, 2)))).mean((2, 3)) @ self.fc.weight.T

    def trunk(self, x):
        return super().trunk((x - self.mean.view(1, 3, 1, 1)) / 0.5)

    def read(self, value):
        return value.mean((2, 3)) @ self.fc.weight.T


NETS = {
    "rectified_where": Rectified, "rectified_masked": RectifiedMasked, "rectified_multiplied": RectifiedMultiplied,
    "rectified_half_sum": RectifiedHalfSum, "rectified_parametric": RectifiedParametric,
    "rectified_concatenated": RectifiedConcatenated, "pictures_channels_last": PicturesChannelsLast,
    "gates": Gates,
    "flat_mean": FlatMean, "view_mean": ViewMean, "mean_mean": MeanMean, "mean_keep": MeanKeep,
    "sum_divided": SumDivided, "einsum": Einsum, "maximum": Maximum, "pyramid": Pyramid, "two_pools": TwoPools,
    "gated": Gated, "attention_pool": AttentionPool, "channels_last": ChannelsLast,
    "channels_last_flat": ChannelsLastFlat, "scores_at_each_position": ScoresAtEachPosition, "token_mean": TokenMean,
    "class_token": ClassToken, "shared_tokens": SharedTokens, "mean_token": MeanToken, "rearranged": Rearranged,
    "unevenly_sampled": UnevenlySampled, "sequence_first": SequenceFirst, "warped": Warped, "branches": Branches,
    "softmax": Softmax, "softmax_of_temperature": SoftmaxOfTemperature, "log_softmax": LogSoftmax,
    "sigmoids": Sigmoids, "one_logit": OneLogit, "one_sigmoid": OneSigmoid, "squeezed": Squeezed,
    "fully_convolutional": FullyConvolutional, "softmax_beside": SoftmaxBeside,
}


def probabilities(net, logits):
    if isinstance(net, Sigmoids) or net.classes == 1:
        positive = logits.sigmoid()
        return torch.cat([positive, 1 - positive], 1) if net.classes == 1 else positive
    return logits.softmax(1)


def picture():
    """[1, 3, 32, 32]; tests make the same one."""
    steps = torch.arange(3 * SIZE * SIZE, dtype=torch.float64)
    return (steps * 0.37).sin().view(1, 3, SIZE, SIZE).float()


def grad_cam(net, class_index):
    parts = net.parts(picture())
    parts["value"].retain_grad()
    logits = parts["logits"]
    score = -logits[0, 0] if net.classes == 1 and class_index == 1 else logits[0, class_index]
    score.backward()
    value, gradient = parts["map"](parts["value"].detach()), parts["map"](parts["value"].grad)
    return F.relu((gradient.mean((2, 3), keepdim=True) * value).sum(1))[0]


def packed(program, path):
    """Saves a program in a compressed archive, a fifth of the size."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as small:
        for name in stored.namelist():
            small.writestr(zipfile.ZipInfo(name), stored.read(name), zipfile.ZIP_DEFLATED)


def make(name):
    torch.manual_seed(3)
    net = NETS[name]().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    program = torch.export.export(net, (torch.rand(net.example),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    program._example_inputs = None
    folder = OUT / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    packed(program, folder / "model.pt2")
    logits = net.parts(picture())["logits"].detach()
    found = probabilities(net, logits)[0]
    wanted = {"layer": net.layer, "probabilities": found.tolist(), "gates": net.gates}
    if net.layer:
        maps = [grad_cam(net, class_index) for class_index in range(len(found))]
        # A class for which the layer speaks; of one logit, the class that it speaks against.
        class_index = 1 if net.classes == 1 else max(range(len(maps)), key=lambda index: maps[index].sum())
        values = maps[class_index].flatten().tolist()
        wanted |= {"class_index": class_index, "grad_cam": [float(f"{value:.8g}") for value in values]}
    if isinstance(net, Rectified):
        # The sum over the channels is enough to tell a guided gradient from a plain one.
        values = net.guided(wanted["class_index"]).sum(0).flatten().tolist()
        wanted["rectifiers"] = net.rectifiers
        wanted["guided_gradient"] = [float(f"{value:.7g}") for value in values]
    return wanted


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    wanted = {name: make(name) for name in NETS}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in wanted.items())
    (OUT / "wanted.json").write_text("{\n" + lines + "\n}\n")
