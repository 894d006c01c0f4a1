"""The networks, and the registry of the built-in ones.

A network takes normalised float32 (B, C, H, W) and gives float32 (B, K): the log-probabilities of K
classes, or K values (regression). That is the whole contract, for these and for your own
(`--network FILE.py:CLASS`). The built-in ones are made for the shape of an image set's images and
its number of outputs.
"""

import collections
import functools

import torch
import torch.nn.functional as F
from torch import nn

MNIST_SHAPE = (1, 28, 28)  # what the networks are made for where nothing else is said: C, H, W


class Net(nn.Module):
    """LeNet-style classifier, 431,080 parameters on MNIST: the network of the project.

    Source: the network of NVIDIA's TensorRT sample `network_api_pytorch_mnist`, with the same
    state-dict keys, so that weights travel both ways.
    """

    def __init__(self, shape=MNIST_SHAPE, outputs=10):
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()  # as in the sample: there, without parameters, unused
        rows, columns = (((n - 4) // 2 - 4) // 2 for n in (height, width))
        self.fc1 = nn.Linear(50 * rows * columns, 500)
        self.fc2 = nn.Linear(500, outputs)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return F.log_softmax(self.fc2(x), dim=1)


class Small(nn.Module):
    """Five narrow convolutions with batch norm: 28,890 parameters and 0.57 million MACs on
    MNIST, where `Net` has 431,080 and 2.3 million.

    Distilled from `Net` it is nearly as accurate (see `TrainMNIST.py --teacher`). Depth does
    more for it than width; widths of 16 and 32 are what vector units are quickest with; the first
    layer has a stride, since maps of full size take most of the time; batch norm stands where it
    can be folded into the convolution before it.
    """

    def __init__(self, shape=MNIST_SHAPE, outputs=10):
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=5, stride=2, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, kernel_size=3, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.conv4 = nn.Conv2d(32, 32, kernel_size=3, bias=False)
        self.norm4 = nn.BatchNorm2d(32)
        self.conv5 = nn.Conv2d(32, 32, kernel_size=3, padding=1, bias=False)
        self.norm5 = nn.BatchNorm2d(32)
        rows, columns = (((n - 3) // 2 - 2) // 2 - 2 for n in (height, width))
        self.fc = nn.Linear(32 * rows * columns, outputs)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.relu(self.norm4(self.conv4(x)))
        x = F.relu(self.norm5(self.conv5(x)))
        return F.log_softmax(self.fc(x.flatten(1)), dim=1)


class LeNet5(nn.Module):
    """LeNet-5, from C1 to F6, 61,706 parameters on MNIST.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document
    Recognition", 1998. It differs from the paper's in this: every map of C3 reads all six of S2 (no
    connection table); S2 and S4 average, without coefficients, biases and a squashing of their own;
    the squashing is a plain tanh; the margin of 2 around the digit is the mean grey level, not the
    background; and the output is a softmax in place of Euclidean distances to drawn digits.
    """

    def __init__(self, shape=MNIST_SHAPE, outputs=10):
        super().__init__()
        channels, height, width = shape
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5, padding=2)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        rows, columns = ((n // 2 - 4) // 2 - 4 for n in (height, width))
        self.f6 = nn.Linear(120 * rows * columns, 84)
        self.output = nn.Linear(84, outputs)

    def forward(self, x):
        x = F.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.c3(x)), 2)
        x = torch.tanh(self.c5(x))
        x = torch.tanh(self.f6(x.flatten(1)))
        return F.log_softmax(self.output(x), dim=1)


class SeparableConv2d(nn.Sequential):
    """A convolution of each channel alone, then one of 1×1 across them; same size out as in.

    Before and after an even kernel's middle there isn't the same number of pixels: the odd one of
    the padding goes to the right and below, as in Keras, whose SeparableConv2D this is.
    """

    def __init__(self, inputs, outputs, kernel_size):
        before, after = (kernel_size - 1) // 2, kernel_size // 2
        super().__init__(
            nn.ZeroPad2d((before, after, before, after)),
            nn.Conv2d(inputs, inputs, kernel_size, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, kernel_size=1))


class Separable(nn.Module):
    """Separable convolutions with very large kernels, two branches, and 25 million parameters in
    the dense layers: 25,612,126 in all on MNIST.

    Source: a published table of a Keras model's layers, from which the kernels (28×28 and twice
    14×14) follow; its activations are taken to be ReLU. The reshaping there from 14×14×128 to
    7×7×512 before all is flattened changes nothing.

    `batch_norm` after each separable convolution and each hidden dense layer; `dropout`: the share
    of the hidden dense layers' outputs that is left out in training.
    """

    def __init__(self, shape=MNIST_SHAPE, outputs=10, batch_norm=False, dropout=0.0):
        super().__init__()
        channels, height, width = shape

        def norm(kind, width):
            return kind(width) if batch_norm else nn.Identity()

        self.conv1 = SeparableConv2d(channels, 32, kernel_size=28)
        self.norm1 = norm(nn.BatchNorm2d, 32)
        self.conv2a = SeparableConv2d(32, 64, kernel_size=14)
        self.conv2b = SeparableConv2d(32, 64, kernel_size=14)
        self.norm2 = norm(nn.BatchNorm2d, 128)
        self.fc1 = nn.Linear(128 * (height // 2) * (width // 2), 1000)
        self.norm3 = norm(nn.BatchNorm1d, 1000)
        self.fc2 = nn.Linear(1000, 500)
        self.norm4 = norm(nn.BatchNorm1d, 500)
        self.fc3 = nn.Linear(500, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = torch.cat([F.max_pool2d(branch(x), 2) for branch in (self.conv2a, self.conv2b)], dim=1)
        x = F.relu(self.norm2(x)).flatten(1)
        x = self.dropout(F.relu(self.norm3(self.fc1(x))))
        x = self.dropout(F.relu(self.norm4(self.fc2(x))))
        return F.log_softmax(self.fc3(x), dim=1)


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size, and batch norm, which folds into it."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs))


class ResNet8(nn.Module):
    """The residual network of the MLPerf Tiny benchmark, 77,850 parameters on CIFAR-10.

    Source: github.com/mlcommons/tiny, the Keras model of its image classification. Its biases
    before batch norm, which do nothing, are left out.
    """

    def __init__(self, shape=MNIST_SHAPE, outputs=10):
        super().__init__()
        self.stem = ConvNorm(shape[0], 16)
        self.block1 = ResidualBlock(16, 16, stride=1)
        self.block2 = ResidualBlock(16, 32, stride=2)
        self.block3 = ResidualBlock(32, 64, stride=2)
        self.fc = nn.Linear(64, outputs)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(F.relu(self.stem(x)))))
        return F.log_softmax(self.fc(x.mean((2, 3))), dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution of 1×1 where the size changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, stride)
        self.conv2 = ConvNorm(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(
            inputs, outputs, kernel_size=1, stride=stride)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class PooledResNet(nn.Module):
    """A stem, then three groups: a convolution, max-pooling, and convolutions beside a shortcut.

    Pooling where ResNets stride and residuals after it: for the time that it takes, this learned
    CIFAR-10 better than ResNet-20 (chosen on held-out training images). Every convolution has batch
    norm and ReLU, all of which fold; the shape is that of David Page's ResNet-9, much narrower.

    `widths`: of the groups; `depth`: how many convolutions stand beside each shortcut.
    """

    def __init__(self, shape=MNIST_SHAPE, outputs=10, widths=(32, 64, 80), depth=2):
        super().__init__()
        self.stem = ConvNorm(shape[0], 16)
        self.before = nn.ModuleList(ConvNorm(*pair) for pair in zip((16,) + widths, widths))
        self.beside = nn.ModuleList(
            nn.ModuleList(ConvNorm(width, width) for _ in range(depth)) for width in widths)
        self.fc = nn.Linear(widths[-1], outputs)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for conv, convs in zip(self.before, self.beside):
            x = y = F.max_pool2d(F.relu(conv(x)), 2)
            for each in convs:
                y = F.relu(each(y))
            x = x + y
        return F.log_softmax(self.fc(x.mean((2, 3))), dim=1)


# Those that `--network` takes by name, made with (shape, outputs); a variant has options besides.
NETWORKS = collections.OrderedDict((
    ("net", Net), ("small", Small), ("lenet5", LeNet5), ("separable", Separable),
    ("separable-bn", functools.partial(Separable, batch_norm=True)),
    ("separable-dropout", functools.partial(Separable, dropout=0.5)),
    ("separable-bn-dropout", functools.partial(Separable, batch_norm=True, dropout=0.5)),
    ("resnet8", ResNet8),
    ("pooled-64", functools.partial(PooledResNet, widths=(24, 48, 64), depth=1)),
    ("pooled-80", PooledResNet),
    ("pooled-96", functools.partial(PooledResNet, widths=(32, 64, 96))),
    ("pooled-256", functools.partial(PooledResNet, widths=(64, 128, 256)))))

# The network of an image set where none is named; of others see mnist/models/weights.py.
DEFAULT_NETWORKS = {"fashion-mnist": "pooled-64", "cifar10": "pooled-80", "gtsrb": "pooled-96"}


# --- Looking into a network -----------------------------------------------------------------------

Call = collections.namedtuple("Call", "module input output")


def calls(net, x, copied=False):
    """(each `Call` of an innermost module while net(x) is computed, in their order; net(x)).

    `copied`: its output as it was, where the next module may overwrite it in place.
    """
    made = []

    def note(module, inputs, output):
        if inputs and isinstance(inputs[0], torch.Tensor):
            made.append(Call(module, inputs[0], output.clone() if copied else output))

    hooks = [module.register_forward_hook(note) for module in net.modules()
             if not list(module.children())]
    try:
        output = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return made, output


def count_parameters(net):
    """How many parameters a network has; those that layers share count once."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net, shape=MNIST_SHAPE):
    """How many MACs (multiply-accumulates) one image (C, H, W) takes, in convolutions and linear
    layers."""
    with torch.no_grad():
        made, _ = calls(net, torch.zeros((1,) + tuple(shape)))
    return sum(call.output.numel() * call.module.weight[0].numel() for call in made
               if isinstance(call.module, (nn.Conv2d, nn.Linear)))
