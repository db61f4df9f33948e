"""Hand-written networks: each is small and has one feature of the exported graphs of real models."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


def conv_bn(i, o, kernel=3, stride=1):
    return nn.Sequential(nn.Conv2d(i, o, kernel, stride, kernel // 2), nn.BatchNorm2d(o))


class Functional(nn.Module):
    """`F.relu`, `torch.relu` and `x.relu()`."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8, stride=2), conv_bn(8, 12), conv_bn(12, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.relu(self.b(x))
        x = self.c(x).relu()
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class FunctionalInplace(nn.Module):
    """In-place rectifiers whose return value is unused: later nodes read the old value."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8, stride=2), conv_bn(8, 8), conv_bn(8, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.a(x)
        F.relu(x, inplace=True)
        y = self.b(x)
        y += x
        y.clamp_(min=0)
        z = self.c(y)
        torch.relu_(z)
        return self.fc(z.mean((2, 3)))


class Twice(nn.Module):
    """One ReLU module called twice, as in a residual basic block."""

    def __init__(self):
        super().__init__()
        self.stem, self.c1, self.c2 = conv_bn(3, 8, stride=2), conv_bn(8, 8), conv_bn(8, 8)
        self.relu, self.fc = nn.ReLU(), nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu(self.c1(x))
        y = self.relu(self.c2(y) + x)
        return self.fc(y.mean((2, 3)))


class MaxZeros(nn.Module):
    """`torch.max(x, zeros)` and `torch.maximum(x, 0-d tensor)`."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = conv_bn(3, 8, stride=2), conv_bn(8, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.a(x)
        x = self.b(torch.max(x, torch.zeros_like(x)))
        x = torch.maximum(x, torch.tensor(0.0))
        return self.fc(x.mean((2, 3)))


class Clamps(nn.Module):
    """Every other way to write a rectifier."""

    def __init__(self):
        super().__init__()
        self.l = nn.ModuleList([conv_bn(3, 8, stride=2)] + [conv_bn(8, 8) for _ in range(9)])
        self.fc = nn.Linear(8, 10)
        self.t, self.r6 = nn.Threshold(0.0, 0.0), nn.ReLU6()
        self.h, self.lr = nn.Hardtanh(0.0, 4.0, inplace=True), nn.LeakyReLU(0.1)

    def forward(self, x):
        l = self.l
        x = l[0](x).clamp(min=0)
        x = torch.clamp_min(l[1](x), 0)
        x = torch.clip(l[2](x), 0, 6)
        x = self.t(l[3](x))
        x = self.r6(l[4](x))
        x = self.h(l[5](x))
        x = self.lr(l[6](x))
        x = F.relu6(l[7](x), inplace=True)
        x = F.threshold(l[8](x), 0, 0, inplace=True)
        x = F.leaky_relu(l[9](x), 0.2, inplace=True)
        return self.fc(x.mean((2, 3)))


class ViewMutated(nn.Module):
    """Views are mutated in place; the base, and a view taken before, are read after."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8, stride=2), conv_bn(8, 16)
        self.fc, self.fc2 = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x):
        x = self.a(x)
        sibling = x[:, 2:6]
        half = x[:, :4]
        half.clamp_(min=0)
        x[:, 4] = 0.5 * x[:, 3]
        x[:, 5] += 1.0
        x.view(x.shape[0], 8, -1).mul_(1.5)
        sibling.add_(0.1)
        a, b = x[:, :4], x[:, 4:]
        a.mul_(0.5)
        y = self.b(x)
        F.relu_(y.permute(0, 2, 3, 1))
        return self.fc(y.mean((2, 3))) + self.fc2(torch.cat([sibling, a, b, half], 1).mean((2, 3)))


class DropoutAlias(nn.Module):
    """Evaluation-mode dropout returns its input: aliasing that no schema declares."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.d, self.i = conv_bn(3, 8, stride=2), conv_bn(8, 8), nn.Dropout(0.5), nn.Identity()
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.a(x)
        d = self.d(x)
        x.relu_()                               # d changes too
        y = self.b(self.i(d).contiguous())
        z = y.to(torch.float32)
        z.add_(d)                               # y changes too
        return self.fc(F.relu(y).mean((2, 3)))


class Grey(nn.Module):
    """One input channel, higher than wide, no batch-norm."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.f(x).mean((2, 3)))


class DynamicSize(nn.Module):
    """Any height and width; sizes are computed in the graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8, stride=2), conv_bn(8, 16, stride=2)
        self.r, self.fc = nn.ReLU(inplace=True), nn.Linear(16 * 4, 10)

    def forward(self, x):
        h, w = x.shape[-2:]
        y = self.r(self.b(self.r(self.a(x))))
        z = F.interpolate(y, size=(h // 2, w // 2), mode="bilinear", align_corners=False)
        return self.fc(F.adaptive_avg_pool2d(z, 2).flatten(1))


class HeadsDict(nn.Module):
    """Several outputs in a dict."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(*conv_bn(3, 8, stride=2), nn.ReLU(), *conv_bn(8, 8), nn.ReLU())
        self.p, self.q = nn.Linear(8, 10), nn.Linear(8, 5)

    def forward(self, x):
        y = self.f(x).mean((2, 3))
        return {"species": self.p(y), "age": self.q(y), "nested": [y, {"k": y * 2}]}


class HeadsTuple(HeadsDict):
    """Several outputs in a tuple, some of which are not tensors."""

    def forward(self, x):
        y = self.f(x).mean((2, 3))
        return self.q(y), self.p(y), 3, None


class BufferMutated(nn.Module):
    """A counter and a running mean that forward() updates; a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = conv_bn(3, 8, stride=2), conv_bn(8, 8), nn.Linear(8, 10)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.ones(8))
        self.register_buffer("once", torch.ones(8), persistent=False)

    def forward(self, x):
        self.seen += 1
        y = F.relu(self.a(x))
        # A constant: the rows of a batch must not influence each other.
        self.mean.mul_(0.9).add_(0.1)
        return self.fc(F.relu(self.b(y * self.mean.view(1, -1, 1, 1) * self.once.view(1, -1, 1, 1))).mean((2, 3)))


class Constants(nn.Module):
    """Literals made in forward(), a tensor attribute, a tied weight, a transposed one, slices of one storage."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8, stride=2), conv_bn(8, 8)
        self.fc, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.fc.weight
        self.scale = torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1)
        self.t = nn.Parameter(torch.randn(10, 8).t())
        base = torch.randn(4, 8)
        self.register_buffer("row1", base[1])
        self.register_buffer("row3", base[3])
        self.register_buffer("empty", torch.zeros(0, 4))

    def forward(self, x):
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        x = (x - mean) / torch.tensor(0.25)
        x = F.relu(self.a(x)) * self.scale
        x = F.relu(self.b(x)) + torch.arange(8).view(1, 8, 1, 1) * torch.ones(8, 1, 1)
        x = x.mean((2, 3)) + self.row1 - self.row3 + self.empty.sum()
        return torch.relu(self.tied(self.fc(x))) @ self.t


class Attention(nn.Module):
    """nn.MultiheadAttention that returns a tuple, sequence first, and an encoder layer."""

    def __init__(self):
        super().__init__()
        self.c, self.att, self.n = nn.Conv2d(3, 16, 8, 8), nn.MultiheadAttention(16, 4), nn.LayerNorm(16)
        self.enc, self.fc = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        t = self.c(x).flatten(2).permute(2, 0, 1)
        u, w = self.att(t, t, t, need_weights=True)
        t = self.n(t + u) * (1 + w.mean((1, 2))).view(1, -1, 1)
        return self.fc(self.enc(t.transpose(0, 1)).mean(1))


class ConvLstm(nn.Module):
    """A two-layer bidirectional LSTM and a GRU over the positions of a feature map."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(*conv_bn(3, 8, stride=4), nn.ReLU(), *conv_bn(8, 12, stride=2), nn.ReLU())
        self.rnn = nn.LSTM(12, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.gru, self.fc = nn.GRU(16, 8), nn.Linear(8, 10)

    def forward(self, x):
        o, (h, _) = self.rnn(self.f(x).flatten(2).transpose(1, 2))
        o2, h2 = self.gru(o.transpose(0, 1))
        return self.fc(h2[-1] + o2.mean(0)) + F.pad(h[-1], (0, 2)) * 0.1


class GroupedTransposed(nn.Module):
    """Grouped, dilated, depthwise, transposed, reflection-padded and same-padded convolutions."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, 2, 1)
        self.g = nn.Conv2d(12, 24, 3, 1, 2, dilation=2, groups=4)
        self.dw = nn.Conv2d(24, 24, 5, 2, 2, groups=24)
        self.t = nn.ConvTranspose2d(24, 16, 4, 2, 1, groups=2)
        self.tp = nn.Conv2d(16, 16, 3, padding="same", padding_mode="reflect")
        self.sm = nn.Conv2d(16, 16, 3, padding="same")
        self.fc, self.r = nn.Linear(16, 10), nn.ReLU()

    def forward(self, x):
        for layer in (self.a, self.g, self.dw, self.t, self.tp, self.sm):
            x = self.r(layer(x))
        return self.fc(x.mean((2, 3)))


class MultiOut(nn.Module):
    """Operators with several outputs or with indices: split, chunk, unbind, topk, sort, max, unpool, gather, fft."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc, self.ln = conv_bn(3, 12, stride=2), conv_bn(6, 12), nn.Linear(12, 10), nn.LayerNorm(12)
        self.pool, self.un = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        y = F.relu(self.a(x))
        pooled, index = self.pool(y)
        y = self.un(pooled, index) + y
        q, r = y.chunk(2, 1)
        a, b, c = torch.split(y, [2, 4, 6], 1)
        u = y.unbind(1)
        y = self.b(F.relu(q * r) + c)
        y = torch.where(y > 0, y, y * 0.1) + torch.cat([u[0].unsqueeze(1)] * 2 + [a, a] + [c], 1)
        most, at = y.flatten(2).max(2)
        top = y.flatten(2).topk(5, 2)[0]
        ordered = y.flatten(2).sort(2)[0]
        spectrum = torch.fft.rfft2(y).abs().mean((2, 3))
        gathered = torch.gather(y.flatten(2), 2, at.unsqueeze(2)).squeeze(2)
        mixed = most + top.mean(2) + ordered[:, :, -3] + spectrum * 0.1 + gathered + b.mean((1, 2, 3)).unsqueeze(1)
        return self.fc(self.ln(mixed))


class NoGradInside(nn.Module):
    """A detach and a `torch.no_grad()` block inside forward()."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = conv_bn(3, 8, stride=2), conv_bn(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        y = F.relu(self.a(x))
        g = torch.sigmoid(y.detach().mean((2, 3), keepdim=True))
        with torch.no_grad():
            w = y.abs().mean((2, 3), keepdim=True)
        return self.fc(F.relu(self.b(y * g / (w + 0.1))).mean((2, 3)))


class InputMutated(nn.Module):
    """forward() normalises its input in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = conv_bn(3, 8, stride=2), conv_bn(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        x.sub_(0.1).div_(0.5)
        y = F.relu(self.a(x))
        return self.fc(F.relu(self.b(y)).mean((2, 3)) + x.mean((1, 2, 3)).unsqueeze(1))


class Branch(nn.Module):
    """torch.cond: a graph within the graph, which camlens refuses."""

    def __init__(self):
        super().__init__()
        self.a, self.fc = conv_bn(3, 8, stride=2), nn.Linear(8, 10)

    def forward(self, x):
        y = self.a(x)
        y = torch.cond(y.mean() > 0, lambda t: t.relu(), lambda t: t * 2.0, (y,))
        return self.fc(y.mean((2, 3)))


class SmallCnn(nn.Module):
    """Convolutions, batch-norm, in-place ReLU and pooling, for reduced precision."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(*conv_bn(3, 16, stride=2), nn.ReLU(inplace=True), *conv_bn(16, 32, stride=2),
                               nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.f(x).mean((2, 3)))


class Returns(nn.Module):
    """Returns two values."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        a = self.c(x)
        return a, a * 2


class Leaks(nn.Module):
    """Returns one value and keeps another in an attribute that the caller reads."""

    def __init__(self):
        super().__init__()
        self.c, self.d, self.stash = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), None

    def forward(self, x):
        a = self.c(x)
        self.stash = self.d(a)
        return a


class PassesOn(nn.Module):
    """Returns its input."""

    def forward(self, x):
        return x


class Naming(nn.Module):
    """Containers, a module under two names, modules that return several values, their input, or are called twice."""

    def __init__(self):
        super().__init__()
        self.seq = nn.Sequential(*conv_bn(3, 8, stride=2), nn.ReLU())
        self.ml, self.md = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.ReLU()]), nn.ModuleDict({"k": nn.Conv2d(8, 8, 1)})
        self.idt, self.two, self.first, self.early = nn.Identity(), Returns(), Leaks(), PassesOn()
        self.drop, self.relu, self.fc = nn.Dropout(), nn.ReLU(), nn.Linear(8, 10)
        self.alias = self.relu
        self.block = torchvision.ops.Conv2dNormActivation(8, 8)

    def forward(self, x):
        x = self.seq(x)
        x = self.ml[1](self.ml[0](x))
        x = self.idt(self.relu(self.md["k"](x)))
        a, b = self.two(x)
        x = self.alias(a + b)
        x = self.first(x) + self.first.stash
        x = self.drop(self.early(x))
        x = self.block(self.block(x))
        x = F.relu(x) + self.relu(x)
        return self.fc(x.mean((2, 3)))
