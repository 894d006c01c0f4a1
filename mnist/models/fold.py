"""Networks rewritten to compute the same with less: the normalisation and batch norm folded away.

Nothing is taken on trust: a layer is rewritten on a copy, the copy is compared with the
original in double precision, and what computes something else is left as it was.
"""

import collections
import copy
import functools

import numpy as np
import torch
from torch import nn

from MNISTmodel import calls

# What a rewritten network may differ by, in double precision: far below what a wrong fold does.
EXACT = 1e-4


def fold(net, image_set):
    """A copy of `net` that takes raw pixels 0…255, float32 (B, C, H, W), in eval mode.

    The image set's normalisation (x/255 - mean)/std is affine: it moves into the weights of the
    first layers where these are linear or unpadded convolutions, so that it costs nothing; else it
    stays a step of its own. Batch norm moves into the layer before it where that layer serves
    nothing else.
    """
    net = fold_batch_norms(net, image_set)
    fold_mean = functools.partial(fold_normalisation, image_set=image_set)
    return (fold_if_exact(net, [fold_mean], image_set, takes_pixels=True)
            or Normalised(net, image_set).eval())


def fold_batch_norms(net, image_set):
    """A copy of `net`, in eval mode on the CPU, without the batch norms that can be folded."""
    net = copy.deepcopy(net).cpu().eval()
    folds = batch_norm_folds(net, image_set)
    together = fold_if_exact(net, folds, image_set, takes_pixels=False)
    for fold_layers in [] if together else folds:  # then at least those that can be
        net = fold_if_exact(net, [fold_layers], image_set, takes_pixels=False) or net
    return together or net


class Normalised(nn.Module):
    """A network behind its normalisation: takes raw pixels, or those that the image set `given`
    has normalised its own way."""

    def __init__(self, net, image_set, given=None):
        super().__init__()
        self.net = net
        scale, shift = scale_and_shift(image_set)
        if given:
            given_scale, given_shift = scale_and_shift(given)
            scale, shift = scale / given_scale, shift - given_shift * scale / given_scale
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, x):
        return self.net(x * self.scale + self.shift)


def scale_and_shift(image_set):
    """What pixels are multiplied by and what is added to normalise them, double (1, C, 1, 1)."""
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
                 for values in (image_set.mean, image_set.std))
    return 1 / (255 * std), -mean / std


def fold_if_exact(net, folds, image_set, takes_pixels):
    """A copy of `net` after each of the `folds`, functions of it; None where it then computes
    something else."""
    folded = copy.deepcopy(net)
    scale, shift = scale_and_shift(image_set)
    try:
        with torch.no_grad():
            for fold_layers in folds:
                fold_layers(folded)
            pixels = np.random.RandomState(0).randint(0, 256, (5,) + tuple(image_set.shape))
            pixels = torch.from_numpy(pixels.astype(np.float64))
            normalised = pixels * scale + shift
            outputs = copy.deepcopy(folded).double()(pixels if takes_pixels else normalised)
            difference = (outputs - copy.deepcopy(net).double()(normalised)).abs().max()
    except (AttributeError, RuntimeError, TypeError, ValueError):  # not a network to rewrite
        return None
    return folded if difference < EXACT else None


def rounded(net, precision):
    """`net` itself, computing in "bf16" or "fp16" between its float32 input and output.

    Folded with its normalisation it loses nothing by that: whole pixel values are exact in both.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return RoundedInside(net, dtypes[precision]).eval() if precision in dtypes else net


class RoundedInside(nn.Module):
    """A network turned to another type of number, between its float32 input and output."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net.to(dtype), dtype

    def forward(self, x):
        return self.net(x.to(self.dtype)).float()


def channels_last(net, image_set):
    """Lay a network's maps out channels-last, which CPUs compute up to twice as fast; returns it.

    It stays as it was where it can't, because it takes a `view` of its maps, for instance.
    """
    net.to(memory_format=torch.channels_last)
    one, training = next(net.parameters()), net.training
    x = torch.zeros((2,) + tuple(image_set.shape), dtype=one.dtype, device=one.device)
    try:
        with torch.no_grad():
            net.eval()(x)
    except RuntimeError:
        net.to(memory_format=torch.contiguous_format)
    return net.train(training)


# --- The normalisation ----------------------------------------------------------------------------


def fold_normalisation(net, image_set):
    """Move the normalisation into every layer that reads the image itself.

    Raises ValueError where one of them can't take it.
    """
    image = torch.rand((2,) + tuple(image_set.shape))
    readers = [call.module for call in calls(net, image)[0]
               if call.input.data_ptr() == image.data_ptr()]
    if not readers:
        raise ValueError("no layer reads the image")
    for layer in readers:
        if not isinstance(layer, (nn.Conv2d, nn.Linear, nn.Flatten, nn.Identity)):
            raise ValueError(f"{type(layer).__name__} reads the image")
        if hasattr(layer, "weight"):
            weight = layer.weight.double()
            pixels = weight[0].numel() // image_set.shape[0]  # weights to a channel
            scale, shift = (values.flatten().repeat_interleave(pixels).reshape(weight[0].shape)
                            for values in scale_and_shift(image_set))
            scale_layer(layer, scale, (weight * shift).flatten(1).sum(1))


def scale_layer(layer, scale, shift):
    """Multiply a layer's weights by `scale`, of a shape that broadcasts to theirs, and add `shift`
    to its biases."""
    bias = 0 if layer.bias is None else layer.bias.double()
    layer.bias = nn.Parameter((bias + shift).to(layer.weight.dtype))
    layer.weight.copy_(layer.weight.double() * scale)


# --- Batch norm -----------------------------------------------------------------------------------


def batch_norm_folds(net, image_set):
    """For each batch norm that follows a linear layer or a convolution: a function of a copy of
    `net` that folds it away."""
    names = {module: name for name, module in net.named_modules()}
    with torch.no_grad():
        made, _ = calls(net, torch.rand((2,) + tuple(image_set.shape)))
    used = collections.Counter(call.module for call in made)
    folds = []
    for norm in made:
        for layer in made:
            if (isinstance(norm.module, (nn.BatchNorm1d, nn.BatchNorm2d))
                    and isinstance(layer.module, (nn.Conv2d, nn.Linear))
                    and norm.input is layer.output
                    and used[norm.module] == used[layer.module] == 1):
                folds.append(functools.partial(fold_batch_norm, layer_name=names[layer.module],
                                               norm_name=names[norm.module]))
    return folds


def fold_batch_norm(net, layer_name, norm_name):
    """Fold the batch norm of one name into the layer of another."""
    modules = dict(net.named_modules())
    layer, norm = modules[layer_name], modules[norm_name]
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight + norm.bias
    bias = 0 if layer.bias is None else layer.bias.double()
    scale_layer(layer, scale.reshape((-1,) + (1,) * (layer.weight.dim() - 1)),
                shift + bias * scale.flatten() - bias)
    parent, _, child = norm_name.rpartition(".")
    setattr(modules[parent], child, nn.Identity())
