"""What the convolutions of any network respond to in a digit: filters, maps, receptive fields.

Everything comes through hooks on the network's innermost modules, nothing from knowing it. Knows
torch.
"""

import collections

import numpy as np
import torch
from torch import nn

from mnist.datasets.image_set import normalise
from MNISTmodel import calls

Layer = collections.namedtuple("Layer", "name module filters biases patches")
Layer.__doc__ = """One convolution, as the network computes with it.

name     what the network calls it: "conv1", "features.0"
module   the `torch.nn.Conv2d`
filters  float32 (N, H, W) where it reads the digit itself, one for each map; else None
biases   float32 (N,), zeros where it has none
patches  whole numbers (H, W, 4): for each place of its maps the patch of the digit that it sees:
         row, column, height, width
"""

Maps = collections.namedtuple("Maps", "maps pooled")
Maps.__doc__ = """What a layer makes of one digit.

maps    float32 (N, H, W)
pooled  float32 (N, h, w), the same maps made smaller, as the next layer receives them; None where
        it receives them as they are
"""


class FeatureReader:
    """A network with its inner layers, as `mnist.gui.window.DigitWindow` wants it."""

    batch_size = 64

    def __init__(self, weights):
        """`weights`: a `mnist.models.weights.Network`."""
        self.weights, self.net = weights, weights.net
        self.layers = convolutions(self.net)

    def look(self, digit):
        """uint8 (28, 28) → (the `Maps` of each layer, the digit read)."""
        with torch.no_grad():
            made, log_probs = calls(self.net, torch.from_numpy(normalise(digit[None])), copied=True)
        maps = [maps_of(made, layer.module) for layer in self.layers]
        return maps, int(log_probs.argmax())

    def read(self, images):
        """uint8 (B, 28, 28) → the digits read, (B,)."""
        with torch.no_grad():
            return self.net(torch.from_numpy(normalise(images))).argmax(1).numpy()


def convolutions(net):
    """A `Layer` for each convolution that takes part, in the order in which they do."""
    names = {module: name for name, module in net.named_modules()}
    digit = torch.zeros(1, 1, 28, 28)
    with torch.no_grad():
        made, _ = calls(net, digit)
        modules = collections.OrderedDict.fromkeys(
            call.module for call in made if isinstance(call.module, nn.Conv2d))
        seen = receptive_fields(net, list(modules))
    layers = []
    for module in modules:
        call = next(call for call in made if call.module is module)
        weight = module.weight.detach().numpy()
        reads_digit = call.input.data_ptr() == digit.data_ptr()
        bias = np.zeros(len(weight), np.float32) if module.bias is None else \
            module.bias.detach().numpy()
        layers.append(Layer(names[module] or type(net).__name__, module,
                            weight[:, 0] if reads_digit else None, bias, patches(seen[module])))
    return layers


def maps_of(made, module):
    """The `Maps` of the first call of `module` among some calls for one digit."""
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


def receptive_fields(net, modules):
    """Which pixels of the digit each place of a module's maps sees: {module: bool (784, H, W)}.

    Found out by making one pixel after the other NaN: whatever is NaN then has seen it. So it is
    right for any network.
    """
    x = torch.zeros(28, 1, 28, 28)
    seen = {module: [] for module in modules}
    for row in range(28):
        x[:] = 0
        x[torch.arange(28), 0, row, torch.arange(28)] = float("nan")
        made, _ = calls(net, x)
        for module in modules:
            output = next(call.output for call in made if call.module is module)
            seen[module].append(torch.isnan(output).any(1).numpy())
    return {module: np.concatenate(parts) for module, parts in seen.items()}


def patches(seen):
    """The box around the pixels that each place sees, (H, W, 4) as in `Layer`, from (784, H, W)."""
    pixels = seen.reshape((28, 28) + seen.shape[1:])

    def first_and_number(along):
        """(H, W) each: the first line with a pixel that is seen, and how many to the last."""
        first = along.argmax(0)
        last = 27 - along[::-1].argmax(0)
        number = np.where(along.any(0), last - first + 1, 0)
        return first, number

    row, height = first_and_number(pixels.any(1))
    column, width = first_and_number(pixels.any(0))
    return np.stack([row, column, height, width], -1)
