"""What the convolutions of any network respond to in an image: filters, maps, receptive fields.

Everything comes through hooks on the network's innermost modules, nothing from knowing it.
"""

import collections
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from MNISTmodel import calls

PIXELS_AT_ONCE = 2 ** 15  # of the images that receptive fields are found with: memory


class Layer(NamedTuple):
    """One convolution, as the network computes with it."""

    name: str  # what the network calls it: "conv1", "features.0"
    module: nn.Conv2d
    filters: Any  # float32 (N, C, H, W), one for each map, where it reads the image itself; or None
    biases: Any  # float32 (N,), zeros where it has none
    # int64 (H, W, 4): for each place of its maps the patch of the image that it sees: row, column,
    # height, width
    patches: Any


class Maps(NamedTuple):
    """What a layer makes of one image."""

    maps: Any  # float32 (N, H, W)
    # float32 (N, h, w), the same maps made smaller, as the next layer receives them; None where it
    # receives them as they are
    pooled: Any


class FeatureReader:
    """A network with its inner layers, as `mnist.gui.window.ImageWindow` wants it."""

    batch_size = 64

    def __init__(self, network):
        """`network`: a `mnist.models.weights.Network`."""
        self.network = network
        self.layers = convolutions(network.net, network.image_set.shape)

    def look(self, image):
        """uint8 (C, H, W) → (the `Maps` of each layer, the network's outputs float32 (K,))."""
        x = self.network.image_set.normalise(image[np.newaxis])
        with torch.no_grad():
            made, outputs = calls(self.network.net, torch.from_numpy(x), copied=True)
        return [maps_of(made, layer.module) for layer in self.layers], outputs[0].numpy()

    def read(self, images):
        """uint8 (B, C, H, W) → the network's outputs, float32 (B, K)."""
        x = self.network.image_set.normalise(images)
        with torch.no_grad():
            return self.network.net(torch.from_numpy(x)).numpy()


def convolutions(net, shape):
    """A `Layer` for each convolution that takes part, in their order, for images of `shape`."""
    names = {module: name for name, module in net.named_modules()}
    image = torch.zeros((1,) + tuple(shape))
    with torch.no_grad():
        made, _ = calls(net, image)
        modules = list(collections.OrderedDict.fromkeys(
            call.module for call in made if isinstance(call.module, nn.Conv2d)))
        rows, columns = (lines_seen(net, modules, shape, axis) for axis in (-2, -1))
    layers = []
    for module in modules:
        call = next(call for call in made if call.module is module)
        weight = module.weight.detach().numpy()
        reads_image = call.input.data_ptr() == image.data_ptr() and module.groups == 1
        bias = np.zeros(len(weight), np.float32) if module.bias is None else \
            module.bias.detach().numpy()
        layers.append(Layer(names[module] or type(net).__name__, module,
                            weight if reads_image else None, bias,
                            patches(rows[module], columns[module])))
    return layers


def maps_of(made, module):
    """The `Maps` of the first call of `module` among some calls for one image."""
    index = next(k for k, call in enumerate(made) if call.module is module)
    maps = made[index].output[0]
    for call in made[index + 1:]:
        pooled = as_maps(call.input[0], len(maps))
        if pooled is not None and pooled.shape[1] < maps.shape[1]:
            return Maps(maps.numpy(), pooled.numpy())
        if isinstance(call.module, (nn.Conv2d, nn.Linear)):
            break  # the next layer takes them as they are
    return Maps(maps.numpy(), None)


def as_maps(values, number):
    """What a module received, as `number` square maps; None where it isn't that."""
    side = int(round((values.numel() / number) ** 0.5))
    if values.numel() != number * side * side or (values.dim() > 1 and len(values) != number):
        return None
    return values.reshape(number, side, side)


# --- Receptive fields -----------------------------------------------------------------------------


def lines_seen(net, modules, shape, axis):
    """Which rows (`axis` -2) or columns (-1) of the image each place of a module's maps sees:
    {module: bool (lines, H, W)}.

    Found out by making one line after the other NaN: whatever is NaN then has seen it. So it is
    right for any network.
    """
    lines = shape[axis]
    size = max(1, PIXELS_AT_ONCE // (shape[1] * shape[2]))
    seen = {module: [] for module in modules}
    for start in range(0, lines, size):
        x = torch.zeros((min(size, lines - start),) + tuple(shape))
        for k in range(len(x)):
            x[k].select(axis, start + k).fill_(float("nan"))
        made, _ = calls(net, x)
        for module in modules:
            output = next(call.output for call in made if call.module is module)
            seen[module].append(torch.isnan(output).any(1).numpy())
    return {module: np.concatenate(parts) for module, parts in seen.items()}


def patches(rows, columns):
    """The box that each place sees, (H, W, 4) as in `Layer`, from `lines_seen` of both axes."""
    def first_and_number(lines):
        """(H, W) each: the first line that is seen, and how many to the last."""
        first = lines.argmax(0)
        last = len(lines) - 1 - lines[::-1].argmax(0)
        return first, np.where(lines.any(0), last - first + 1, 0)

    row, height = first_and_number(rows)
    column, width = first_and_number(columns)
    return np.stack([row, column, height, width], -1)
