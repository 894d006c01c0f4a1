"""Networks as strangers might write them, each with something that a careless program trips over.

Every one keeps the contract: normalised float32 (B, 1, 28, 28) in, float32 (B, 10)
log-probabilities out. `NETWORKS` lists them all.
"""

import torch
import torch.nn.functional as F
from torch import nn


class BatchNorm(nn.Sequential):
    """Batch norm after convolutions without bias and after a linear layer."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 5, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(200, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10),
            nn.LogSoftmax(1))


class Residual(nn.Module):
    """What a block reads is added to what it answers; group norm; pooled over the whole map."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.block(x)
        return F.log_softmax(self.out(self.pool(x).flatten(1)), dim=1)


class Branches(nn.Module):
    """Two branches from the digit, one padded, concatenated; dropout between dense layers."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.Conv2d(1, 4, 3, padding=1)
        self.wide = nn.Conv2d(1, 4, 7, padding=3)
        self.pool = nn.MaxPool2d(4)
        self.dropout = nn.Dropout(0.5)
        self.dense = nn.Linear(8 * 49, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, x):
        x = self.pool(torch.cat([self.narrow(x), self.wide(x)], 1))
        x = torch.tanh(self.dense(self.dropout(x.view(x.size(0), -1))))
        return F.log_softmax(self.out(x), dim=-1)


class Views(nn.Module):
    """A `view` of its maps, which only one layout of the memory allows."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 5, stride=2)
        self.b = nn.Conv2d(4, 6, 3, stride=2)
        self.out = nn.Linear(150, 10)

    def forward(self, x):
        return F.log_softmax(self.out(self.b(F.relu(self.a(x))).view(x.size(0), -1)), 1)


class ViewsOfColours(Views):
    """Of pictures in colour; with batch norm, which can't learn from one alone."""

    def __init__(self, size, number):  # any two names will do
        nn.Module.__init__(self)
        self.a = nn.Conv2d(3, 4, 5)
        self.b = nn.BatchNorm2d(4)
        self.out = nn.Linear(4 * (size[1] - 4) * (size[2] - 4), number)


class Depthwise(nn.Module):
    """Depthwise, pointwise and grouped convolutions."""

    def __init__(self):
        super().__init__()
        self.spread = nn.Conv2d(1, 8, 5, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, groups=3)
        self.out = nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu6(self.spread(x))
        x = F.relu6(self.pointwise(self.norm(self.depthwise(x))))
        return F.log_softmax(self.out(self.grouped(x).mean((2, 3))), 1)


class Dense(nn.Sequential):
    """No convolution; the first layer is linear and has no bias."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 40, bias=False), nn.Sigmoid(),
                         nn.Linear(40, 10), nn.LogSoftmax(1))


class Buffers(nn.Module):
    """A buffer of its own takes part, and one that no answer depends on counts in whole numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(28).outer(torch.hann_window(28)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.conv = nn.Conv2d(1, 5, 4, stride=4)
        self.out = nn.Linear(5 * 49, 10)

    def forward(self, x):
        return F.log_softmax(self.out(self.conv(x * self.window).flatten(1)), 1)


class Tied(nn.Module):
    """One layer used three times, and one matrix that two layers share."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(784, 24)
        self.again = nn.Linear(24, 24)
        self.also = nn.Linear(24, 24, bias=False)
        self.also.weight = self.again.weight
        self.out = nn.Linear(24, 10)

    def forward(self, x):
        x = F.elu(self.embed(torch.flatten(x, 1)))
        for _ in range(3):
            x = F.elu(self.again(x))
        return F.log_softmax(self.out(self.also(x)), 1)


class NormFirst(nn.Sequential):
    """Batch norm before anything else: it reads the digit itself."""

    def __init__(self):
        super().__init__(nn.BatchNorm2d(1), nn.Conv2d(1, 6, 5), nn.AvgPool2d(4), nn.GELU(),
                         nn.Flatten(), nn.Linear(6 * 36, 10), nn.LogSoftmax(1))


class SkipsFirst(nn.Module):
    """Its first layer could be folded, but the digit itself is also read further down."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 5)
        self.out = nn.Linear(576, 10)

    def forward(self, x):
        return F.log_softmax(self.out((self.conv(x) + x[:, :, 2:26, 2:26]).flatten(1)), 1)


class NormReadTwice(nn.Module):
    """What goes into its batch norm is read a second time: the norm can't be folded away."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 5, stride=3)
        self.norm = nn.BatchNorm2d(4)
        self.prelu = nn.PReLU(4)
        self.out = nn.Linear(4 * 64, 10)

    def forward(self, x):
        x = self.conv(x)
        return F.log_softmax(self.out(self.prelu(self.norm(x) + x).flatten(1)), 1)


class Named(nn.Module):
    """Layers in a list and a dictionary, under odd names, one of them twice in a container."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, 4, 5, stride=2), nn.Hardtanh()])
        self.parts = nn.ModuleDict({"weight": nn.Linear(4 * 144, 10), "out of": nn.Identity()})

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.parts["out of"](torch.log_softmax(self.parts["weight"](x.flatten(1)), 1))


def sequential():
    """A function in place of a class."""
    return nn.Sequential(nn.Unfold(7, stride=7), nn.Flatten(), nn.Linear(784, 16), nn.ReLU(True),
                         nn.Linear(16, 10), nn.LogSoftmax(dim=1))


NETWORKS = (BatchNorm, Residual, Branches, Views, Depthwise, Dense, Buffers, Tied, NormFirst,
            SkipsFirst, NormReadTwice, Named, sequential)
